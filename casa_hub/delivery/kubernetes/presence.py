"""Which of the servers' objects there are: one list of each kind for all servers, however many ask."""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from casa_hub.delivery.deadline import Deadline
from casa_hub.delivery.kubernetes import marks
from casa_hub.delivery.kubernetes.api import KubernetesError

if TYPE_CHECKING:
    from casa_hub.delivery.kubernetes.delivery import KubernetesDelivery

#: Seconds for which a list counts: of one namespace, and of all together, which costs the API server of a large cluster
#: more.
_ONE, _ALL = 20.0, 600.0
#: Seconds for all the lists of one look.
_LOOK = 60.0


@dataclass(frozen=True, slots=True)
class Seen:
    """What a look has found."""

    #: Kinds that could be listed.
    kinds: frozenset[str]
    #: Kind, name and start id of each object.
    objects: frozenset[tuple[str, str, str]]


@dataclass(frozen=True, slots=True)
class _Look:
    #: Monotonic.
    began: float
    seen: asyncio.Task[Seen]


class Presence:
    """Lives on the hub's event loop."""

    def __init__(
        self,
        delivery: KubernetesDelivery,
        namespace: str,
        log: logging.Logger | logging.LoggerAdapter[logging.Logger],
    ) -> None:
        """`namespace`: the servers'; "": many."""
        self._delivery = delivery
        self._namespace = namespace
        self._log = log
        #: Kinds that could not be listed last time, of which the log knows.
        self._unseen: set[str] = set()
        self._looks: dict[str, _Look] = {}

    async def of(self, namespace: str, since: float) -> Seen | None:
        """The objects in a namespace; None if the last look began before `since` (monotonic), and counts still."""
        where, counts = (namespace, _ONE) if self._namespace else ("", _ALL)
        look = self._looks.get(where)
        if look is None or time.monotonic() - look.began >= counts:
            look = self._looks[where] = _Look(time.monotonic(), asyncio.create_task(self._list(where)))
            look.seen.add_done_callback(lambda task: self._forget(where, task))
        if look.began < since:
            return None
        # Shielded: others wait for it, too.
        return await asyncio.shield(look.seen)

    async def _list(self, namespace: str) -> Seen:
        deadline = Deadline(_LOOK)
        kinds, objects = set(), set()
        for each in self._delivery.kinds():
            kind = each["kind"]
            try:
                found = await self._delivery.objects([each], namespace, deadline)
            except KubernetesError as error:
                # A kind that isn't installed, a right that the hub hasn't; the other kinds are looked for all the same.
                if kind not in self._unseen:
                    self._log.warning("What is deleted by hand doesn't come back while this lasts: %s", error)
                self._unseen.add(kind)
                continue
            self._unseen.discard(kind)
            kinds.add(kind)
            objects |= {(kind, one["metadata"]["name"], marks.start_id_of(one)) for one in found}
        return Seen(frozenset(kinds), frozenset(objects))

    def _forget(self, namespace: str, task: asyncio.Task[Seen]) -> None:
        """A look that failed is no look: the next who wants to know asks again."""
        look = self._looks.get(namespace)
        if (task.cancelled() or task.exception() is not None) and look is not None and look.seen is task:
            del self._looks[namespace]
