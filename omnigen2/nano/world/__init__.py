"""ShapeWorld: a synthetic data set of coloured shapes, its text, its tasks and its checker.

nano is trained and evaluated on it. It depends on numpy and PIL only: importing it never imports torch, and
`evaluate` calls two methods of a model and nothing else.
"""

from omnigen2.nano.world.judge import Verdict, judge
from omnigen2.nano.world.read import Reading, read_scene
from omnigen2.nano.world.render import render
from omnigen2.nano.world.scene import COLOURS, SHAPES, SIZES, Scene, Thing, sample_scene
from omnigen2.nano.world.spec import Example
from omnigen2.nano.world.tasks import SPLITS, TASKS, example

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
