"""Tasks for the tiny checkpoint."""

from PIL import Image

from omnigen2.params import ReferenceSampling
from omnigen2.task import ImageTask


def image_task(seed: int = 1, steps: int = 4, images: tuple[Image.Image, ...] = ()) -> ImageTask:
    """A picture of 32 x 32 pixels."""
    sampling = ReferenceSampling(
        width=32, height=32, num_images=1, seed=seed, steps=steps, text_guidance_scale=3.0,
        image_guidance_scale=1.5, cfg_range=(0.0, 1.0), scheduler="euler", speed="exact", negative_prompt="",
    )  # fmt: skip
    return ImageTask("a red circle", images, sampling)
