"""ShapeWorld: a procedural world of coloured shapes, its words, its tasks and its judge.

The small model in the box is trained and measured on it. numpy and PIL only: importing it never
imports torch, and it knows nothing of models beyond the two methods `evaluate` calls.
"""

from omnigen2.nano.world.judge import Verdict, judge
from omnigen2.nano.world.read import Reading, read_scene
from omnigen2.nano.world.render import render
from omnigen2.nano.world.scene import COLOURS, SHAPES, SIZES, Scene, Thing, sample_scene
from omnigen2.nano.world.tasks import SPLITS, TASKS, example
from omnigen2.nano.world.wanted import Example

__all__ = [
    "COLOURS",
    "SHAPES",
    "SIZES",
    "SPLITS",
    "TASKS",
    "Example",
    "Reading",
    "Scene",
    "Thing",
    "Verdict",
    "example",
    "judge",
    "read_scene",
    "render",
    "sample_scene",
]
