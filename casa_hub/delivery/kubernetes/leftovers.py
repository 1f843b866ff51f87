"""What no server is any more: pods, found after a hub's start and then every minute, and removed; and on demand all.

What can leave one: a hub that was killed half way through a start; an API server that was away when a failed start was
to be undone or a server to be stopped; a creation that came through after everybody had given it up. A pod owns all
else that its server has in Kubernetes, so nothing else has to be looked for.

What is removed unasked must be certain. A server that JupyterHub's database doesn't know is left alone: it may be
another hub's, or the database is a new one; somebody must look at it, and says so by `casa-hub gc`. That also removes
what Kubernetes' garbage collector was told to leave (``kubectl delete pod --cascade=orphan``).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING, Any

from jupyterhub import orm
from sqlalchemy.exc import SQLAlchemyError

from casa_hub.database import mended, roll_back
from casa_hub.delivery.deadline import Deadline
from casa_hub.delivery.gc import Removal, removal
from casa_hub.delivery.kubernetes import marks
from casa_hub.delivery.kubernetes.api import KubernetesError, described
from casa_hub.delivery.kubernetes.manifests import Object, Start

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from casa_hub.delivery.kubernetes.delivery import KubernetesDelivery

#: Seconds between two looks; and between one that failed, or something that was left behind, and the next.
_PERIOD, _SOON = 60.0, 5.0
#: Seconds for one look.
_LOOK = 60.0
#: Seconds that JupyterHub's first look at a server waits for ours.
_FIRST = 5.0

_POD: Object = {"apiVersion": "v1", "kind": "Pod"}

#: User and server.
Whose = tuple[str, str]


class Leftovers:
    """All methods are for the hub's event loop."""

    def __init__(
        self,
        delivery: KubernetesDelivery,
        namespace: str,
        database: Session,
        log: logging.Logger | logging.LoggerAdapter[logging.Logger],
    ) -> None:
        """`namespace`: the servers'; "": many. Made before any server is looked at."""
        self._delivery = delivery
        self._namespace = namespace
        self._servers = _Servers(database)
        self._log = log
        #: Servers that an earlier hub has not finished starting; looked at once.
        self._interrupted = self._servers.interrupted()
        #: Start ids of this hub, as long as they may be mistaken for interrupted ones.
        self._here: set[str] = set()
        #: Servers whose pods may be left, whether the database knows them or not.
        self._owed: set[Whose] = set()
        #: Where to look: a profile or a hook may have sent a server elsewhere. "" is everywhere.
        self._namespaces = {namespace}
        self._wake = asyncio.Event()
        self._looked = asyncio.Event()

    def begins(self, start: Start) -> None:
        """This hub is about to create a pod."""
        if self._interrupted:
            self._here.add(start.start_id)

    def owe(self, start: Start) -> None:
        """A pod of this server may be left: look soon."""
        self._owed.add((start.server.username, start.server.name))
        self._namespaces.add(start.namespace)
        self._wake.set()

    async def first_look(self) -> None:
        """Wait until there was one: a pod that is about to be removed is no server that runs."""
        try:
            async with asyncio.timeout(_FIRST):
                await self._looked.wait()
        except TimeoutError:
            self._looked.set()  # nobody else waits

    async def watch(self) -> None:
        """Look again and again."""
        failures = 0
        while True:
            # A request of a hub that was killed may still be on its way when this one looks first.
            done = _SOON if self._interrupted else _PERIOD
            pause = min(_SOON * 2**failures, _PERIOD)
            try:
                await self._look()
                pause, failures = done, 0
            except KubernetesError as error:
                self._log.warning("Pods that an earlier hub may have left, or a stop that failed, stay: %s", error)
                failures += 1
            except Exception:  # noqa: BLE001 - the database's, say: the next look may do better
                self._log.exception("Pods that an earlier hub may have left, or a stop that failed, stay")
                failures += 1
            self._looked.set()
            try:
                async with asyncio.timeout(pause):
                    await self._wake.wait()
                await asyncio.sleep(_SOON)  # what failed just now would fail again
            except TimeoutError:
                pass
            self._wake.clear()

    async def collect(self, *, dry_run: bool) -> list[Removal]:
        """Remove all of this installation that has no living server, or only tell of it.

        Raises:
            KubernetesError: the API server can't say what there is; nothing was removed.
        """
        deadline = Deadline(_LOOK)
        where = _where({self._namespace, *self._namespaces})
        # The objects first: one whose pod isn't there afterwards has none any more, and is of no start under way.
        kinds = self._delivery.kinds()
        objects = [each for name in where for each in await self._delivery.objects(kinds, name, deadline)]
        pods = await self._pods(where, deadline)
        # From here to the choice without a pause, as in a look.
        idle = {whose for whose, _ in pods} - self._servers.running()
        known = self._servers.known(idle)
        in_use = self._servers.pods()
        starts = {marks.start_id_of(pod) for _, pod in pods}
        doomed = []
        for whose, pod in pods:
            if whose in idle and not _is_kept(pod, in_use) and marks.start_of(pod, self._delivery.hub) is not None:
                state = "doesn't run" if whose in known else "isn't in this hub's database"
                why = f"server {whose[1]!r} of {whose[0]} {state}"
                doomed.append(({**_POD, "metadata": pod["metadata"]}, why))
        doomed += [(one, "its pod is gone") for one in objects if marks.start_id_of(one) not in starts]

        async def remove(one: Object, why: str) -> Removal:
            async def act() -> None:
                await self._delivery.delete(one, deadline)

            return await removal(described(one), why, act, dry_run=dry_run)

        return [await remove(one, why) for one, why in doomed]

    async def _look(self) -> None:
        deadline = Deadline(_LOOK)
        owed = frozenset(self._owed)
        interrupted = self._interrupted
        pods = await self._pods(_where(self._namespaces), deadline)
        # From here to the choice without a pause: what the database says is then newer than the pods, and a pod whose
        # server doesn't run by now is of no start that is to come.
        in_use = self._servers.pods()
        there = [(whose, pod) for whose, pod in pods if "deletionTimestamp" not in pod["metadata"]]
        running = self._servers.running()
        idle = {whose for whose, _ in there} - running
        # A user who was renamed may run a pod that bears the name of another user by now.
        runs = {marks.start_id_of(pod) for _, pod in there if _is_kept(pod, in_use)}
        left = idle & (self._servers.known(idle) | owed)
        doubtful = self._interrupted - left
        starts = [
            (whose, marks.start_of(pod, self._delivery.hub), pod) for whose, pod in there if whose in left | doubtful
        ]
        half = [(start, pod) for whose, start, pod in starts if start and whose in doubtful]
        errors = [
            *[
                await self._remove(start, pod, deadline)
                for whose, start, pod in starts
                if start and whose in left and start.start_id not in runs
            ],
            *[
                await self._remove_if_half(start, pod, deadline)
                for start, pod in half
                if start.start_id not in self._here
            ],
        ]
        for error in filter(None, errors):  # each had its try
            raise error
        self._owed -= owed - running
        self._interrupted = frozenset()
        self._here.clear()
        if not interrupted:
            # To go through a whole cluster every minute is too much for its API server, and where something goes wrong
            # from now on is known.
            self._namespaces.discard("")

    async def _pods(self, namespaces: Iterable[str], deadline: Deadline) -> list[tuple[Whose, Object]]:
        """This hub's pods, each with whose it is."""
        found = [pod for name in namespaces for pod in await self._delivery.pods(name, deadline)]
        return [(marks.whose(pod), pod) for pod in found]

    async def _remove_if_half(self, start: Start, pod: Object, deadline: Deadline) -> KubernetesError | None:
        try:
            if await self._delivery.is_complete(start, marks.record_of(pod, start.server), deadline):
                return None
        except KubernetesError as error:
            return error
        return await self._remove(start, pod, deadline)

    async def _remove(self, start: Start, pod: Object, deadline: Deadline) -> KubernetesError | None:
        name = pod["metadata"]["name"]
        self._log.warning("Removing pod %s/%s, left behind by a failed stop or start", start.namespace, name)
        try:
            await self._delivery.take_down(start, name, deadline)
        except KubernetesError as error:
            return error
        return None


def _where(namespaces: Collection[str]) -> list[str]:
    """Each of the namespaces; only "" (all) if that is among them."""
    return [""] if "" in namespaces else sorted(namespaces)


def _is_kept(pod: Object, in_use: Collection[tuple[str, str]]) -> bool:
    """Whether a pod is about to go, or runs (`in_use`) for a user whom its annotations may know by an older name."""
    meta = pod["metadata"]
    return "deletionTimestamp" in meta or (meta["namespace"], meta["name"]) in in_use


class _Servers:
    """What JupyterHub's database says of servers; columns only, for thousands of rows cost it milliseconds."""

    def __init__(self, database: Session) -> None:
        self._database = database

    def running(self) -> frozenset[Whose]:
        """Those that run, start or stop."""
        return self._those(orm.Spawner.server_id.is_not(None))

    def interrupted(self) -> frozenset[Whose]:
        """Of those, the ones whose start has not come to an address yet."""
        return self._those(orm.Spawner.server.has(orm.Server.ip == ""))

    def known(self, servers: Iterable[Whose]) -> frozenset[Whose]:
        """Which of the servers there are at all."""
        names = {username for username, _ in servers}
        return self._those(orm.User.name.in_(names)) if names else frozenset()

    def pods(self) -> frozenset[tuple[str, str]]:
        """Namespace and name of the pod of each that runs, as KubeSpawner noted them: its user may be renamed since."""
        mended(self._database)
        query = self._database.query(orm.Spawner.state).filter(orm.Spawner.server_id.is_not(None))
        return frozenset(
            (state["namespace"], state["pod_name"]) for (state,) in query if state and "namespace" in state
        )

    def _those(self, condition: Any) -> frozenset[Whose]:
        mended(self._database)
        try:
            # The session is the hub's: what others have half changed there isn't written because we ask.
            with self._database.no_autoflush:
                query = self._database.query(orm.User.name, orm.Spawner.name).join(orm.Spawner.user).filter(condition)
                return frozenset((username, name) for username, name in query)
        except SQLAlchemyError:
            roll_back(self._database)  # or else nobody could use it any more
            raise
