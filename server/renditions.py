"""Smaller copies of stored images, for browsers and conversations: made when asked for, kept for a while."""

import threading
from collections import OrderedDict
from collections.abc import Callable

from storage import Digest, StoreView

PREVIEW = "/preview"
"""The form of a preview, as addresses have it; that of any other copy is its width in pixels."""
MOST_BYTES = 64_000_000
"""Bytes of the copies that are kept in memory; the one that was asked for longest ago goes first."""

Rendition = tuple[bytes, str]
"""An encoded picture and its MIME type."""


class Renditions:
    """A cache of copies, by image and form. An image never changes, so no copy is ever out of date."""

    def __init__(self, most: int = MOST_BYTES) -> None:
        """At most `most` bytes are kept."""
        self._kept: OrderedDict[tuple[Digest, str], Rendition] = OrderedDict()
        self._bytes, self._most = 0, most
        self._lock = threading.Lock()

    def get(self, image: Digest, form: str, make: Callable[[], Rendition]) -> Rendition:
        """The copy of an image in a form; `make` makes it if it is not kept. Callable from any thread."""
        key = image, form
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        made = make()
        with self._lock:
            if key not in self._kept:
                self._kept[key] = made
                self._bytes += len(made[0])
            while self._bytes > self._most:
                self._bytes -= len(self._kept.popitem(last=False)[1][0])
        return made

    def preview(self, store: StoreView, reference: str) -> Rendition:
        """The preview of an image that a view of the store shows. Raises what `StoreView.get` does."""
        image = store.get(reference).id
        return self.get(image, PREVIEW, lambda: store.preview(image))
