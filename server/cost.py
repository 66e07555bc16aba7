"""How much work a task is, before it is done: for fairness, and for estimates of time once it is measured.

The unit only has to be the same for tasks of one kind: megapixels denoised for pictures, tokens for text.
"""

from omnigen2.task import ImageTask, Task, TextTask

MEGAPIXEL = 1_000_000
TOKENS_PER_MEGAPIXEL = 1300
"""What the language model makes of a picture it reads: a token per 28 x 28 pixels."""


def cost(task: Task) -> float:
    """The work in a task, more than 0."""
    return _text_cost(task) if isinstance(task, TextTask) else _image_cost(task)


def _image_cost(task: ImageTask) -> float:
    sampling = task.sampling
    seen = sum(image.width * image.height for image in task.images)
    made = (sampling.width or 0) * (sampling.height or 0) or seen
    guided = (sampling.text_guidance_scale or 0) > 1
    by_images = bool(task.images) and (sampling.image_guidance_scale or 0) > 1
    branches = 1 + guided + (guided and by_images)
    pictures, steps = sampling.num_images or 1, sampling.steps or 1
    return max(1, made + seen) / MEGAPIXEL * branches * steps * pictures


def _text_cost(task: TextTask) -> float:
    seen = sum(image.width * image.height for image in task.images)
    return (task.decoding.max_tokens or 1) + seen / MEGAPIXEL * TOKENS_PER_MEGAPIXEL
