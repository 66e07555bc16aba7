"""How much work a task is, before it is done: for fairness, and for estimates of time once it is measured.

The unit only has to be the same for tasks of one kind: megapixels denoised for pictures, tokens for text.
"""

from omnigen2.guidance import Branch, guide
from omnigen2.task import ImageTask, Task, TextTask

MEGAPIXEL = 1_000_000
TOKENS_PER_MEGAPIXEL = 1300
"""What the language model makes of a picture it reads: a token per 28 x 28 pixels."""


def pixels(task: Task) -> int:
    """Pixels of the pictures that a task is given."""
    return sum(image.width * image.height for image in task.images)


def cost(task: Task) -> float:
    """The work in a task, more than 0."""
    return _text_cost(task) if isinstance(task, TextTask) else _image_cost(task)


def _image_cost(task: ImageTask) -> float:
    """Every branch of every step denoises what is made; all but the bare one see the references, too."""
    seen = pixels(task)
    made = (task.sampling.width or 0) * (task.sampling.height or 0) or seen
    branches = [branch for step in guide(task.sampling, bool(task.images)) for branch, _ in step.weights]
    runs = sum(made + seen * (branch != Branch.BARE) for branch in branches)
    return max(1, runs) / MEGAPIXEL * (task.sampling.num_images or 1)


def _text_cost(task: TextTask) -> float:
    return (task.decoding.max_tokens or 1) + pixels(task) / MEGAPIXEL * TOKENS_PER_MEGAPIXEL
