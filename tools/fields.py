"""What requests are put together from, beside the parameters of the model (`omnigen2.params`).

A request inherits its fields. Pydantic lists those of the last base first, so what an agent should read first
(the image, the instruction) is the last base.
"""

from typing import Annotated

from pydantic import Field

from omnigen2.params import MAX_REFERENCES, Adapters, Decoding, Sampling
from tools.base import OUTLIVES_THE_CALL, Request

MAX_WORDS = 8000
"""Characters of a prompt, instruction or question; a model cuts after its number of tokens and says so."""

Words = Annotated[str, Field(min_length=1, max_length=MAX_WORDS)]
# Room for a picture inside the request, as base64; what the store takes is for the store to say.
Reference = Annotated[str, Field(min_length=1, max_length=100_000_000)]
Region = tuple[int, int, int, int]
"""x, y, width and height in pixels, from the upper left corner."""


class ImageIn(Request):
    """One image."""

    image: Reference
    """Id from an earlier result, image or data URI, file or https URL."""


class ImagesIn(Request):
    """Several images, in an order that words can refer to."""

    images: list[Reference] = Field(min_length=1, max_length=MAX_REFERENCES)
    """Ids from earlier results, in the order in which the words speak of them; or URIs, files, https URLs."""


class PartIn(Request):
    """A part of the image, which an edit is held to."""

    region: Region | None = None
    """Change only this part, [x, y, width, height] in pixels."""
    mask: Reference | None = None
    """Change only where this image of the same size is transparent, or white if all of it is opaque."""

    @property
    def holds(self) -> bool:
        """Whether a part is given."""
        return self.region is not None or self.mask is not None


class Worded(Request):
    """A request to the model in words."""

    @property
    def words(self) -> str:
        """What the model reads."""
        raise NotImplementedError


class Prompted(Worded):
    """A picture in words."""

    prompt: Words
    """What the picture should show: subjects, their colours and places, style, light."""

    @property
    def words(self) -> str:
        return self.prompt


class Instructed(Worded):
    """A change in words."""

    instruction: Words
    """What to do, as an order, such as "make the circle blue"."""

    @property
    def words(self) -> str:
        return self.instruction


class Asked(Worded):
    """A question about images."""

    question: Words = "Describe the image."
    """What you want to know, such as "How many circles are there?"."""

    @property
    def words(self) -> str:
        return self.question


class ModelIn(Request):
    """Which model does it."""

    model: str | None = Field(default=None, min_length=1, max_length=300)
    """Another model than the loaded one."""


class Background(Request):
    """Whether to wait."""

    background: Annotated[bool, OUTLIVES_THE_CALL] = False
    """Answer at once with a job_id; get_job gives the result later."""


class ImageRequest(Background, Adapters, ModelIn, Sampling, Worded):
    """What every request for pictures has."""


class TextRequest(Background, ModelIn, Decoding, Worded):
    """What every request for text has."""


class JobIn(Request):
    """One job."""

    job_id: str = Field(min_length=1, max_length=100)
    """The job_id of an earlier result."""
