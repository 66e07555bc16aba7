"""ShapeWorld: a procedural world of coloured shapes, its words, its tasks and its judge.

The small model in the box is trained and measured on it. numpy and PIL only: importing it never
imports torch, and it knows nothing of models beyond the two methods `evaluate` calls.
"""

from omnigen2.shapeworld.render import render
from omnigen2.shapeworld.scene import COLOURS, SHAPES, SIZES, Scene, Thing, sample_scene

__all__ = ["COLOURS", "SHAPES", "SIZES", "Scene", "Thing", "render", "sample_scene"]
