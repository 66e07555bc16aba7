"""Forms with files (multipart/form-data), and other bodies that are pictures, as arguments of tools."""

import base64
from typing import NamedTuple
from urllib.parse import quote

from anyio import to_thread
from starlette.exceptions import HTTPException
from starlette.requests import Request

from tools.base import ToolError

MULTIPART = "multipart/form-data"
MAX_FIELDS = 100
MAX_FILE_NAME = 100
"""Characters of a file's name that are kept."""


class FormField(NamedTuple):
    """A field of a form."""

    name: str
    text: str
    """Its value; a file is a data: URI that the tools take."""
    is_file: bool


async def form_fields(request: Request, max_files: int) -> list[FormField]:
    """The fields of a form, in their order.

    The size of a body is limited before (`server.http.connections`). Files beyond a megabyte are on disk
    meanwhile.

    Raises:
        ToolError: `invalid_argument`: it is no form, or has too many fields or files.
    """
    try:
        async with request.form(max_files=max_files, max_fields=MAX_FIELDS) as form:
            return [
                FormField(name, value, False)
                if isinstance(value, str)
                else FormField(name, await data_uri(await value.read(), value.filename or ""), True)
                for name, value in form.multi_items()
            ]
    except HTTPException as error:
        raise ToolError(
            "invalid_argument", f"The form cannot be read: {error.detail}", "Send multipart/form-data."
        ) from error


async def data_uri(data: bytes, name: str = "") -> str:
    """A picture as a reference that the tools take, with the name of its file if it has one."""
    encoded = await to_thread.run_sync(base64.b64encode, data)
    named = f";name={quote(name.rpartition('/')[2], safe='')[:MAX_FILE_NAME]}" if name else ""
    return f"data:application/octet-stream{named};base64,{encoded.decode()}"  # its bytes say what it is
