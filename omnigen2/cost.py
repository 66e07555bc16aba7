"""Estimates of the work and memory a task needs, from its sizes and parameters alone. Needs no torch.

One count of what guidance runs serves two purposes: the queue compares whole tasks (`cost`), and the engine
fills its token budget with denoising steps (`step_tokens`).
"""

from collections import Counter

from omnigen2.checkpoints.card import Limits
from omnigen2.guidance import Branch, guide
from omnigen2.sizes import reduced
from omnigen2.task import ImageTask, Task, TextTask

MEGAPIXEL = 1_000_000
PIXELS_PER_TOKEN = 28 * 28
"""Pixels of an image per token of the language model: 14 x 14 patches, merged 2 x 2 (Qwen2.5-VL)."""
PUBLISHED_LIMITS = Limits.model_construct()


def cost(task: Task, limits: Limits = PUBLISHED_LIMITS) -> float:
    """Total work of a task, more than 0; comparable between tasks of one kind.

    The unit is megapixels passed through the transformer for an `ImageTask`, tokens for a `TextTask`.
    """
    if isinstance(task, TextTask):
        return (task.decoding.max_tokens or 1) + _reference_pixels(task, limits) / PIXELS_PER_TOKEN
    runs = Counter(branch for step in guide(task.sampling, bool(task.images)) for branch, _ in step.weights)
    pixels = sum(count * _branch_pixels(task, branch, limits) for branch, count in runs.items())
    return max(1, pixels) / MEGAPIXEL * (task.sampling.num_images or 1)


def step_tokens(task: ImageTask, limits: Limits, patch_side: int) -> int:
    """Tokens of one guided denoising step of the task: all branches of all its pictures.

    `patch_side` is the side in pixels of the square that one token covers. The length of the text is an
    estimate, as nothing is tokenized.
    """
    branches = {branch for step in guide(task.sampling, bool(task.images)) for branch, _ in step.weights}
    text = min(limits.max_text_tokens, 40 + len(task.prompt) // 3)
    tokens = sum(text + _branch_pixels(task, branch, limits) // patch_side**2 for branch in branches)
    return tokens * (task.sampling.num_images or 1)


def input_pixels(task: Task) -> int:
    """Pixels of the task's input images as decoded; each takes 3 or 4 bytes of host memory."""
    return sum(image.width * image.height for image in task.images)


def _branch_pixels(task: ImageTask, branch: Branch, limits: Limits) -> int:
    """Pixels that one run of a branch processes: the picture, and the references if the branch has them."""
    assert task.sampling.width is not None and task.sampling.height is not None
    picture = min(task.sampling.width * task.sampling.height, limits.max_pixels)
    return picture + (0 if branch == Branch.BARE else _reference_pixels(task, limits))


def _reference_pixels(task: Task, limits: Limits) -> int:
    """Pixels of the input images at the sizes at which the model sees them."""
    sizes = (reduced(image.width, image.height, limits) for image in task.images)
    return sum(width * height for width, height in sizes)
