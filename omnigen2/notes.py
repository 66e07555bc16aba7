"""Notes to the caller on inputs and results that the model changed in size or form. Needs no torch."""

from collections.abc import Iterable, Sequence

from PIL.Image import Image

from omnigen2.sizes import Size


def about_inputs(images: Sequence[Image], sizes: Iterable[Size]) -> list[str]:
    """Notes on input images that the model sees at these (width, height), on white."""
    notes = []
    for number, (image, size) in enumerate(zip(images, sizes, strict=True), 1):
        name = _nth(number, len(images))
        if (frames := getattr(image, "n_frames", 1)) > 1:
            notes.append(f"{name} has {frames} frames; the model saw one.")
        if _is_transparent(image):
            notes.append(f"{name} has transparent parts; they were put on white.")
        if image.size != size:
            notes.append(f"{name} was reduced from {_named(image.size)} to {_named(size)} for the model.")
    return notes


def about_small_inputs(sizes: Sequence[Size], least: int, model: str) -> list[str]:
    """Notes on inputs of these (width, height) with a side shorter than `least` pixels."""
    small = [
        f"{_nth(number, len(sizes))} has {_named(size)} pixels"
        for number, size in enumerate(sizes, 1)
        if min(size) < least
    ]
    return [f"{', '.join(small)}; {model} works best with {least} and more per side."] if small else []


def about_result(made: Size, wanted: Size) -> list[str]:
    """A note if a picture is computed at another size than it is given out at."""
    if made == wanted:
        return []
    return [f"The result was computed at {_named(made)} and enlarged to {_named(wanted)}."]


def about_prompt(field: str, most: int) -> str:
    """The note that a text was cut."""
    return f"The {field} was longer than {most} tokens; what came after was ignored."


def _nth(number: int, count: int) -> str:
    return "The image" if count == 1 else f"Image {number}"


def _is_transparent(image: Image) -> bool:
    return image.has_transparency_data and image.convert("RGBA").getchannel("A").getextrema() != (255, 255)


def _named(size: Size) -> str:
    return f"{size[0]}x{size[1]}"
