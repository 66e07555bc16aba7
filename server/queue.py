"""Fair queueing: clients share the work equally, short requests overtake long ones, none is starved.

A pure data structure; it knows nothing of jobs, models or time. Self-clocked fair queueing (Golestani 1994):
virtual time counts work, in the unit of the costs.

- every client has a virtual time, which advances by the cost of each request served; the request with the
  earliest virtual finish time is next. So clients share the work equally, however many requests each sends.
- a new client starts at the queue's virtual time: being idle earns no credit, being new costs nothing.
- a request waits at most until every other client was served as much as it asks for itself: a short one
  overtakes, a long one is never starved. The same holds among the requests of one client.
"""

from dataclasses import dataclass, field
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(slots=True)
class _Entry(Generic[T]):
    number: int
    item: T
    cost: float
    due: float
    """Order among the requests of its client: virtual time at arrival plus cost."""


@dataclass(slots=True)
class _Client(Generic[T]):
    clock: float
    entries: list[_Entry[T]] = field(default_factory=list[_Entry[T]])


class FairQueue(Generic[T]):
    """Items that wait, each for a client and with a cost. For one thread; others may ask for its length."""

    def __init__(self) -> None:
        self._clients: dict[str, _Client[T]] = {}
        self._clock = 0.0
        self._count = 0
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def push(self, item: T, client: str, cost: float) -> None:
        """Let an item wait; `cost` is the work it asks for."""
        self._count += 1
        self._length += 1
        entry = _Entry(self._count, item, cost, self._clock + cost)
        self._clients.setdefault(client, _Client(self._clock)).entries.append(entry)

    def order(self) -> list[T]:
        """All items, as they would be taken if no other came."""
        return [entry.item for _, _, entry, _ in self._tags()]

    def pop(self, item: T | None = None) -> T:
        """Take the next item or, where there is no room for that one yet, another that waits.

        Raises:
            IndexError: nothing waits.
        """
        tags = self._tags()
        end, _, entry, name = next((tag for tag in tags if tag[2].item is item), tags[0])
        client = self._clients[name]
        client.clock += entry.cost
        if entry is tags[0][2]:
            self._clock = max(self._clock, end)
        self._drop(name, entry)
        return entry.item

    def discard(self, item: T) -> None:
        """Take an item out, if it waits."""
        for name, client in list(self._clients.items()):
            for entry in client.entries:
                if entry.item is item:
                    self._drop(name, entry)
                    return

    def _tags(self) -> list[tuple[float, int, _Entry[T], str]]:
        """Each entry with the clock at which it would end, soonest first; of equals, the older one first."""
        tags: list[tuple[float, int, _Entry[T], str]] = []
        for name, client in self._clients.items():
            end = client.clock
            for entry in sorted(client.entries, key=lambda entry: entry.due):
                end += entry.cost
                tags.append((end, entry.number, entry, name))
        return sorted(tags, key=lambda tag: tag[:2])

    def _drop(self, name: str, entry: _Entry[T]) -> None:
        client = self._clients[name]
        client.entries.remove(entry)
        self._length -= 1
        if not client.entries:  # what it overtook with is forgotten; `Lane.take` bounds that
            del self._clients[name]
