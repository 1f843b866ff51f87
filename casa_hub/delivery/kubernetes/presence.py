"""Finds out which objects of servers exist. One list of each kind serves all servers that ask."""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from casa_hub.delivery.deadline import Deadline
from casa_hub.delivery.kubernetes import ownership
from casa_hub.delivery.kubernetes.api import KubernetesError

if TYPE_CHECKING:
    from casa_hub.delivery.kubernetes.delivery import KubernetesDelivery

#: Seconds for which a list is used: of one namespace, and of all namespaces, which costs the API server of a large
#: cluster more.
_ONE_NAMESPACE, _ALL_NAMESPACES = 20.0, 600.0
#: Seconds that all lists of one look may take.
_LOOK_TIMEOUT = 60.0


@dataclass(frozen=True, slots=True)
class Seen:
    """The result of a look."""

    #: Kinds that could be listed.
    kinds: frozenset[str]
    #: Kind, name and start id of each object.
    objects: frozenset[tuple[str, str, str]]


@dataclass(frozen=True, slots=True)
class _Look:
    #: Monotonic time.
    began: float
    seen: asyncio.Task[Seen]


class Presence:
    """For the hub's event loop."""

    def __init__(
        self,
        delivery: KubernetesDelivery,
        namespace: str,
        log: logging.Logger | logging.LoggerAdapter[logging.Logger],
    ) -> None:
        """`namespace` of the servers; "" if each user has one."""
        self._delivery = delivery
        self._namespace = namespace
        self._log = log
        #: Kinds that could not be listed last time; each was logged once.
        self._unlisted: set[str] = set()
        self._looks: dict[str, _Look] = {}

    async def of(self, namespace: str, since: float) -> Seen | None:
        """The objects in a namespace. None if the look that is still in use began before `since` (monotonic)."""
        where, max_age = (namespace, _ONE_NAMESPACE) if self._namespace else ("", _ALL_NAMESPACES)
        look = self._looks.get(where)
        if look is None or time.monotonic() - look.began >= max_age:
            look = self._looks[where] = _Look(time.monotonic(), asyncio.create_task(self._list(where)))
            look.seen.add_done_callback(lambda task: self._forget(where, task))
        if look.began < since:
            return None
        # Shielded, because other servers wait for the same look.
        return await asyncio.shield(look.seen)

    async def _list(self, namespace: str) -> Seen:
        deadline = Deadline(_LOOK_TIMEOUT)
        kinds, objects = set(), set()
        for each in self._delivery.kinds():
            kind = each["kind"]
            try:
                found = await self._delivery.objects([each], namespace, deadline)
            except KubernetesError as error:
                # The kind isn't installed, or the hub lacks the right to list it. The other kinds are still listed.
                if kind not in self._unlisted:
                    self._log.warning("Objects that somebody deletes don't come back for now: %s", error)
                self._unlisted.add(kind)
                continue
            self._unlisted.discard(kind)
            kinds.add(kind)
            objects |= {(kind, thing["metadata"]["name"], ownership.start_id_of(thing)) for thing in found}
        return Seen(frozenset(kinds), frozenset(objects))

    def _forget(self, namespace: str, task: asyncio.Task[Seen]) -> None:
        """Drop a look that failed, so that the next caller lists again."""
        look = self._looks.get(namespace)
        if (task.cancelled() or task.exception() is not None) and look is not None and look.seen is task:
            del self._looks[namespace]
