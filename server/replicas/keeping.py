"""Keeps the replicas of one model alive: starts, compares with the front, watches, adds and ends them.

One task of the event loop per replica (`Keeper._keep`), and one that adds and removes replicas.
"""

import asyncio
import hashlib
import math
import secrets
import time
from contextlib import suppress
from dataclasses import asdict
from typing import Any

from omnigen2.checkpoints.card import ModelCard
from omnigen2.factory import BackendFactory
from omnigen2.memory.placement import Placement
from omnigen2.task import OutOfMemory, Task
from server.errors import without_folders
from server.log import get_logger
from server.replicas.cluster import Cluster
from server.replicas.delivery import is_lost
from server.replicas.members import Member, Members
from server.replicas.replica import Software

BEAT_S = 2.0
"""Seconds between looks at a replica."""
SILENCE_S = 5.0
"""Seconds without an answer after which a replica is not given more work until it answers again."""
AGAIN_S = 0.5
"""Seconds until a lost replica is looked for again; more after each failure in a row."""
LATER = 20
"""Most times that long."""
REFUSED_S = 60.0
"""Seconds until a replica that could not be had is tried again: the host may have mended what was wrong."""
PLACE_S = 600.0
"""Seconds in which a replica must be placed on a machine; a cluster may have to start one."""
LOADS = 5
"""Times that a replica may be lost before its model was ever loaded."""
SCALE_S = 1.0
"""Seconds between looks at whether there are as many replicas as the work needs."""
GROW_S = 2.0
"""Seconds for which work must wait before a replica is added."""
ASKED_S = 1.0
"""Seconds within which it is asked again whether there is room, if there is still something that waits."""
CROWDED = 4
"""Tasks at once with which a replica is given no more, as long as another replica may come."""
SHRINK_S = 120.0
"""Seconds without work after which a replica that is not needed is ended."""
log = get_logger(__name__)


class Refused(ValueError):
    """A replica does not fit this server: its software or its weights are others."""


class Keeper:
    """Starts and watches the replicas of one model, from `least` to `most` of them."""

    def __init__(
        self,
        cluster: Cluster,
        factory: BackendFactory,
        model: str,
        placement: Placement,
        least: int,
        most: int,
    ) -> None:
        self.members = Members()
        self.card: ModelCard | None = None
        """The card of the replicas, all of which have the same."""
        self.least, self.most = least, most
        self._cluster = cluster
        self._maker = secrets.token_hex(4)
        self._made_of = (self._maker, factory, model, placement, cluster.threads())
        self._device = placement.device
        own = hashlib.sha256(repr((model, placement)).encode()).hexdigest()[:8]
        self._base = f"{model.rstrip('/').rpartition('/')[2]}-{own}"
        self._tasks: dict[Member, asyncio.Task[None]] = {}
        self._scaling: asyncio.Task[None] | None = None
        self._first: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._short: dict[type[Task], tuple[float, float]] = {}
        """Kinds of tasks that no replica has room for: since when, and when that was last asked."""

    async def start(self) -> None:
        """Start the replicas; return once the first one is ready.

        Raises:
            ValueError, OSError, ...: what loading the model raised, or `Refused`.
        """
        for _ in range(self.least):
            self._add()
        if self.most > self.least:
            self._scaling = asyncio.create_task(self._scale())
        await self._first

    async def stop(self, *, end: bool) -> None:
        """Watch them no more; `end`: and have them end, unless another server uses them."""
        tasks = [*self._tasks.values(), *([self._scaling] if self._scaling else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for member in self.members:
            self._part(member, end=end)

    def lost(self, member: Member) -> None:
        """A replica failed while it worked: give it nothing until it was found again."""
        if member.state in ("ready", "silent"):
            self._set(member, "lost", "its process, its machine or the connection to it ended")

    def has_room(self, task: Task, unplaced: int) -> bool:
        """Whether a replica would begin with one more task than the `unplaced` ones at once. For any thread.

        If not, a replica is added soon, and takes what waits: what a replica has begun with stays there.
        """
        growing = len(self.members.all) < self.most or any(own.state == "loading" for own in self.members)
        full = CROWDED if growing else math.inf
        with_room = self.members.with_room(task)
        has_room = sum(len(own.attempts) < full for own in with_room) > unplaced
        now, kind = time.monotonic(), type(task)
        since, last = self._short.pop(kind, (now, now))
        if not has_room:
            self._short[kind] = since if now - last < ASKED_S else now, now
        return has_room

    # -- one replica ----------------------------------------------------------------------------------

    def _add(self) -> None:
        taken = {member.name for member in self.members}
        name = next(name for name in map(f"{self._base}-{{}}".format, range(self.most)) if name not in taken)
        member = Member(name, None, idle_since=time.monotonic())
        self.members.all.append(member)
        self._tasks[member] = asyncio.create_task(self._keep(member))

    async def _keep(self, member: Member) -> None:
        """Find or start a replica, again and again, and watch it while it is ready."""
        losses = 0
        while True:
            try:
                await self._connect(member)
                losses = 0
                self._set(member, "ready")
                if not self._first.done():
                    self._first.set_result(None)
                await self._watch(member)
            except Exception as error:
                losses += 1
                if self._is_final(member, error, losses):
                    self._give_up(member, error)
                    await asyncio.sleep(REFUSED_S)
                    losses = 0
                    continue
                self._set(member, "lost" if member.card else "loading", _reason(error))
            await asyncio.sleep(min(losses + 1, LATER) * AGAIN_S)

    def _is_final(self, member: Member, error: Exception, losses: int) -> bool:
        """Whether it is of no use to try again soon. What was ready once may be so again."""
        if member.card is not None:
            return isinstance(error, Refused)
        return losses >= LOADS or not is_lost(self._cluster.ray, error)

    async def _connect(self, member: Member) -> None:
        """Wait until the replica has loaded its model.

        One that an earlier server left, that does not fit and that nobody uses, is replaced.

        Raises:
            Refused: it does not fit this server.
            OutOfMemory: no machine has room for it.
        """
        difference = await self._meet(member)
        if difference and not member.in_use and member.seen.get("maker") != self._maker:
            log.info("an old replica is replaced", name=member.name, because=difference)
            self._end(member)
            await asyncio.sleep(AGAIN_S)
            difference = await self._meet(member)
        if difference:
            raise Refused(
                f"replica {member.name} does not fit this server: {difference}; "
                "install the same version and the same weights at both ends"
            )

    async def _meet(self, member: Member) -> str:
        """In what a replica differs from what this server needs; empty if it fits. Raises OutOfMemory."""
        member.actor = await asyncio.to_thread(self._cluster.actor, member.name, self._device, *self._made_of)
        try:
            there = await asyncio.wait_for(_get(member.actor.software.remote()), PLACE_S)
        except TimeoutError:
            raise OutOfMemory(
                f"no machine of the cluster has had room for a replica for {PLACE_S} s"
            ) from None
        member.seen = {"maker": there.pop("maker")}
        member.in_use = bool(set(there.pop("fronts")) - {self._cluster.front})
        here = asdict(Software.here())
        if there != here:
            return f"it runs {_listed(there)}, this server {_listed(here)}"
        if member.state == "lost":
            self._set(member, "loading")
        try:
            facts = await _get(member.actor.ready.remote(self._cluster.front))
        except Exception as error:
            if not is_lost(self._cluster.ray, error):
                self._end(member)  # it loads once: only another process may succeed
            raise
        card = ModelCard.model_validate(facts.pop("card"))
        difference = _difference(self.card or await asyncio.to_thread(self._expected), card)
        if not difference:
            self.card = member.card = card
            member.seen |= facts
        return difference

    def _expected(self) -> ModelCard | None:
        _, factory, model, *_ = self._made_of
        return factory.identify(model)

    async def _watch(self, member: Member) -> None:
        """Look at a replica every few seconds. Returns once it was lost; raises how."""
        while member.state != "lost":
            try:
                asked = _get(member.actor.state.remote(self._cluster.front))
                member.seen |= await asyncio.wait_for(asked, SILENCE_S)
                if member.state == "silent":
                    self._set(member, "ready")
            except TimeoutError:
                if member.state == "ready":
                    self._set(member, "silent", f"it has not answered for {SILENCE_S:.0f} s")
            await asyncio.sleep(BEAT_S)

    def _give_up(self, member: Member, error: Exception) -> None:
        """A replica cannot be had: its model cannot be loaded, or it does not fit."""
        cause = getattr(error, "cause", None) or error
        self._set(member, "refused", _reason(error))
        if not isinstance(error, Refused):
            self._end(member)
        others = [each for each in self.members if each.state != "refused"]
        if not self._first.done() and not others:
            self._first.set_exception(cause)

    def _part(self, member: Member, *, end: bool) -> None:
        """Leave a replica to the other servers of the cluster; `end`: it ends if there are none."""
        if end and (self._cluster.is_own or not member.seen):  # nobody else has it; it has never answered
            self._end(member)
        elif member.actor is not None and member.state != "refused":
            with suppress(Exception):  # it is gone already
                member.actor.part.remote(self._cluster.front, end)

    def _end(self, member: Member) -> None:
        if member.actor is not None:
            with suppress(Exception):  # it is gone already
                self._cluster.ray.kill(member.actor)

    def _set(self, member: Member, state: Any, reason: str = "") -> None:
        if member.state != state:
            say = log.info if state == "ready" else log.warning
            say("replica", name=member.name, state=state, reason=reason)
        member.state, member.reason = state, reason
        if state == "lost":
            member.adapters.clear()
        self.members.touch()

    # -- how many -------------------------------------------------------------------------------------

    async def _scale(self) -> None:
        """Add a replica when work waits, and end one that has had none for long."""
        while True:
            await asyncio.sleep(SCALE_S)
            now = time.monotonic()
            for member in self.members:
                if member.attempts:
                    member.idle_since = now
            waiting = any(
                now - since > GROW_S and now - last < ASKED_S for since, last in list(self._short.values())
            )
            loading = any(member.state == "loading" for member in self.members)
            if waiting and not loading and len(self.members.all) < self.most:
                self._add()
                log.info("a replica is added", replicas=len(self.members.all))
            ready = self.members.ready()
            idle = [member for member in ready if now - member.idle_since > SHRINK_S]
            if idle and len(ready) > self.least:
                self._remove(idle[-1])

    def _remove(self, member: Member) -> None:
        self.members.all.remove(member)
        self._tasks.pop(member).cancel()
        self._part(member, end=True)
        log.info("a replica is ended", replicas=len(self.members.all))


async def _get(ref: Any) -> Any:
    return await ref


def _reason(error: Exception) -> str:
    """What an error says, for operators, without the traceback and the folders of another machine."""
    return without_folders(str(getattr(error, "cause", None) or error))[:300]


def _difference(expected: ModelCard | None, card: ModelCard) -> str:
    """In what the model of a replica differs from the one of this server, if it does."""
    if expected is None:
        return ""
    if expected.digest is not None and expected.digest != card.digest:
        return f"its weights have the digest {card.digest}, those of this server {expected.digest}"
    return "" if expected.limits == card.limits else "the limits on the cards of the model differ"


def _listed(software: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in software.items())
