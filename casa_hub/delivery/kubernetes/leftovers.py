"""Finds and removes leftovers: pods without a living server. At the hub's start, then every minute, and on demand.

A pod is left over when a hub is killed in the middle of a start; when the API server is away while a failed start is
undone or a server is stopped; or when a creation succeeds after the hub has given it up. The pod owns all other objects
of its server, so only pods are looked for.

Only certain leftovers are removed without being asked. A pod whose server the database doesn't know stays: it may be
another hub's, or the database is new. The operator decides with `casa-hub gc`, which also removes objects whose pod was
deleted without them (``kubectl delete pod --cascade=orphan``).
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
from casa_hub.delivery.kubernetes import ownership
from casa_hub.delivery.kubernetes.api import KubernetesError, described
from casa_hub.delivery.kubernetes.manifests import Object, Start
from casa_hub.delivery.removals import Removal, removal
from casa_hub.metrics import LEFTOVERS

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from casa_hub.delivery.kubernetes.delivery import KubernetesDelivery

#: Seconds between two looks; and until the next one after a look that failed, or a pod that may be left.
_PERIOD, _SOON = 60.0, 5.0
#: Seconds that one look may take.
_LOOK_TIMEOUT = 60.0
#: Seconds that JupyterHub's first poll of a server waits for the first look.
_FIRST_LOOK_TIMEOUT = 5.0

_POD: Object = {"apiVersion": "v1", "kind": "Pod"}

#: Names of user and server.
Owner = tuple[str, str]


class Leftovers:
    """All methods are for the hub's event loop."""

    def __init__(
        self,
        delivery: KubernetesDelivery,
        namespace: str,
        database: Session,
        log: logging.Logger | logging.LoggerAdapter[logging.Logger],
    ) -> None:
        """`namespace` of the servers; "" if each user has one. Made before JupyterHub polls any server."""
        self._delivery = delivery
        self._namespace = namespace
        self._servers = _Servers(database)
        self._log = log
        #: Servers whose start the previous hub process did not finish; empty after the first look that succeeds.
        self._interrupted = self._servers.interrupted()
        #: Ids of starts of this hub process while `_interrupted` is not empty; never removed as interrupted.
        self._own_starts: set[str] = set()
        #: Servers that may have left a pod, whether the database knows them or not.
        self._suspects: set[Owner] = set()
        #: Namespaces to look in; "" is all. A profile or a hook may have put a server into another namespace.
        self._namespaces = {namespace}
        self._wake = asyncio.Event()
        self._looked = asyncio.Event()

    def begins(self, start: Start) -> None:
        """Note that this hub is about to create a pod."""
        if self._interrupted:
            self._own_starts.add(start.start_id)

    def suspect(self, start: Start) -> None:
        """Look soon: this server may have left a pod."""
        self._suspects.add((start.server.username, start.server.name))
        self._namespaces.add(start.namespace)
        self._wake.set()

    async def first_look(self) -> None:
        """Wait for the first look, so that a pod that it removes is not taken for a running server."""
        try:
            async with asyncio.timeout(_FIRST_LOOK_TIMEOUT):
                await self._looked.wait()
        except TimeoutError:
            self._looked.set()  # later polls don't wait again

    async def watch(self) -> None:
        """Look for leftovers until cancelled."""
        failures = 0
        while True:
            # Look again soon: a request of the previous hub process may arrive after the first look.
            done = _SOON if self._interrupted else _PERIOD
            pause = min(_SOON * 2**failures, _PERIOD)
            try:
                await self._look()
                pause, failures = done, 0
            except KubernetesError as error:
                self._log.warning("Could not remove pods that an earlier hub may have left; retrying: %s", error)
                failures += 1
            except Exception:  # noqa: BLE001 - the database's, say: the next look may succeed
                self._log.exception("Could not remove pods that an earlier hub may have left; retrying")
                failures += 1
            self._looked.set()
            try:
                async with asyncio.timeout(pause):
                    await self._wake.wait()
                await asyncio.sleep(_SOON)  # a request that has just failed would fail again
            except TimeoutError:
                pass
            self._wake.clear()

    async def collect(self, *, dry_run: bool) -> list[Removal]:
        """Remove pods and objects of this installation without a living server. With `dry_run`, only list them.
        Raises KubernetesError if the API server can't list them; nothing was removed then.
        """
        deadline = Deadline(_LOOK_TIMEOUT)
        namespaces = _simplified({self._namespace, *self._namespaces})
        # Objects before pods: an object whose pod is missing from the later list has lost it. The pod of a start under
        # way exists before its objects.
        kinds = self._delivery.kinds()
        objects = [each for name in namespaces for each in await self._delivery.objects(kinds, name, deadline)]
        pods = await self._pods(namespaces, deadline)
        # No await from here to the choice, as in `_look`.
        idle = {owner for owner, _ in pods} - self._servers.running()
        known = self._servers.known(idle)
        in_use = self._servers.pods()
        starts = {ownership.start_id_of(pod) for _, pod in pods}
        doomed = []
        for owner, pod in pods:
            start = ownership.start_of(pod, self._delivery.hub)
            if owner in idle and not _is_spared(pod, in_use) and start is not None:
                state = "doesn't run" if owner in known else "isn't in this hub's database"
                why = f"server {owner[1]!r} of {owner[0]} {state}"
                doomed.append(({**_POD, "metadata": pod["metadata"]}, why))
        doomed += [(thing, "its pod is gone") for thing in objects if ownership.start_id_of(thing) not in starts]

        async def remove(thing: Object, why: str) -> Removal:
            async def act() -> None:
                await self._delivery.delete(thing, deadline)

            return await removal(described(thing), why, act, dry_run=dry_run)

        removals = [await remove(thing, why) for thing, why in doomed]
        if not dry_run:
            LEFTOVERS.set(sum(bool(one.error) for one in removals))
        return removals

    async def _look(self) -> None:
        deadline = Deadline(_LOOK_TIMEOUT)
        suspects = frozenset(self._suspects)
        interrupted = self._interrupted
        pods = await self._pods(_simplified(self._namespaces), deadline)
        # No await from here to the choice. So the database is read after the pods were listed, and a listed pod whose
        # server doesn't run in the database can't belong to a start under way.
        in_use = self._servers.pods()
        present = [(owner, pod) for owner, pod in pods if "deletionTimestamp" not in pod["metadata"]]
        running = self._servers.running()
        idle = {owner for owner, _ in present} - running
        # A renamed user may run a pod whose annotations name somebody who has the old name now.
        spared = {ownership.start_id_of(pod) for _, pod in present if _is_spared(pod, in_use)}
        left = idle & (self._servers.known(idle) | suspects)
        doubtful = self._interrupted - left
        hub = self._delivery.hub
        starts = [(owner, ownership.start_of(pod, hub), pod) for owner, pod in present if owner in left | doubtful]
        half = [(start, pod) for owner, start, pod in starts if start and owner in doubtful]
        errors = [
            *[
                await self._remove(start, pod, deadline)
                for owner, start, pod in starts
                if start and owner in left and start.start_id not in spared
            ],
            *[
                await self._remove_if_half(start, pod, deadline)
                for start, pod in half
                if start.start_id not in self._own_starts
            ],
        ]
        failed = [error for error in errors if error is not None]
        if self._namespace in self._namespaces:  # else only some of the pods were looked at
            unknown = [pod for owner, pod in present if owner in idle - left]
            LEFTOVERS.set(len(failed) + sum(ownership.start_id_of(pod) not in spared for pod in unknown))
        for error in failed:  # only now: all removals were tried
            raise error
        self._suspects -= suspects - running
        self._interrupted = frozenset()
        self._own_starts.clear()
        if not interrupted:
            # Listing a whole cluster every minute is too much for its API server. From now on, `suspect` names the
            # namespaces of failed starts and stops.
            self._namespaces.discard("")

    async def _pods(self, namespaces: Iterable[str], deadline: Deadline) -> list[tuple[Owner, Object]]:
        """This hub's pods, each with its owner."""
        found = [pod for name in namespaces for pod in await self._delivery.pods(name, deadline)]
        return [(ownership.owner_of(pod), pod) for pod in found]

    async def _remove_if_half(self, start: Start, pod: Object, deadline: Deadline) -> KubernetesError | None:
        try:
            if await self._delivery.is_complete(start, ownership.record_of(pod, start.server), deadline):
                return None
        except KubernetesError as error:
            return error
        return await self._remove(start, pod, deadline)

    async def _remove(self, start: Start, pod: Object, deadline: Deadline) -> KubernetesError | None:
        name = pod["metadata"]["name"]
        self._log.warning("Removing pod %s/%s, left by a start or stop that failed", start.namespace, name)
        try:
            await self._delivery.take_down(start, name, deadline)
        except KubernetesError as error:
            return error
        return None


def _simplified(namespaces: Collection[str]) -> list[str]:
    """The namespaces; only "" (all) if it is among them."""
    return [""] if "" in namespaces else sorted(namespaces)


def _is_spared(pod: Object, in_use: Collection[tuple[str, str]]) -> bool:
    """Whether a pod is being deleted, or is `in_use`, perhaps by a user who had another name when it started."""
    meta = pod["metadata"]
    return "deletionTimestamp" in meta or (meta["namespace"], meta["name"]) in in_use


class _Servers:
    """Looks up servers in JupyterHub's database. Reads columns, not objects, for speed with thousands of rows."""

    def __init__(self, database: Session) -> None:
        self._database = database

    def running(self) -> frozenset[Owner]:
        """Servers that run, start or stop."""
        return self._those(orm.Spawner.server_id.is_not(None))

    def interrupted(self) -> frozenset[Owner]:
        """Servers whose start has no address yet."""
        return self._those(orm.Spawner.server.has(orm.Server.ip == ""))

    def known(self, servers: Iterable[Owner]) -> frozenset[Owner]:
        """All servers in the database of the users of `servers`."""
        names = {username for username, _ in servers}
        return self._those(orm.User.name.in_(names)) if names else frozenset()

    def pods(self) -> frozenset[tuple[str, str]]:
        """Namespace and name of each running server's pod, as saved by KubeSpawner; right for renamed users, too."""
        # Not the column of states alone: SQLAlchemy can't cache a query by its type, and says so in the log.
        saved = mended(self._database).query(orm.Spawner).filter(orm.Spawner.server_id.is_not(None))
        states = (spawner.state or {} for spawner in saved)
        return frozenset((state["namespace"], state["pod_name"]) for state in states if "namespace" in state)

    def _those(self, condition: Any) -> frozenset[Owner]:
        mended(self._database)
        try:
            # Other code of the hub may be in the middle of a change in the same session: don't flush it.
            with self._database.no_autoflush:
                query = self._database.query(orm.User.name, orm.Spawner.name).join(orm.Spawner.user).filter(condition)
                return frozenset((username, name) for username, name in query)
        except SQLAlchemyError:
            roll_back(self._database)  # otherwise the session stays unusable
            raise
