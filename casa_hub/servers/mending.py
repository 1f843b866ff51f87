"""The task that mends running servers: it brings back objects that failed at the start or that somebody deleted.

It looks at all servers regularly, and a server that lacks something gets it at once. A failure is tried again like a
renewal (`casa_hub.servers.renewal_schedule.again`). Credentials that could not be minted are left to `renewals`.

A server whose owner's access is being ended gets nothing. After the hub's start, no server does until it is known whose
access the previous hub process has begun to end.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from casa_hub.errors import CasaError
from casa_hub.jupyterhub import HubApp, HubSpawner, HubUser
from casa_hub.metrics import MISSING
from casa_hub.servers import renewal_schedule
from casa_hub.servers.renewals import Missing, Renewals
from casa_hub.servers.running import RunningServer, reason_of, running_server, running_servers
from casa_hub.tasks import Background, in_turns, repeat, woken

#: Seconds between two looks at all servers.
_LOOK = 30.0
#: Servers that are mended at the same time.
_AT_ONCE = 4
#: The reason that the operator reads for a lost object, until a try to bring it back fails.
_GONE = "it does not exist"


@dataclass(slots=True, eq=False)
class _Server:
    """One start of a server."""

    spawner: HubSpawner
    running: RunningServer
    user: HubUser
    start_id: str
    #: From this time on it must have all its objects; monotonic.
    since: float
    #: What it lacks -> why.
    lacks: dict[str, str]
    failures: int = 0
    #: Time of the next try; monotonic.
    at: float = 0.0
    busy: bool = False


class Mending:
    """For the hub's event loop."""

    def __init__(self, app: HubApp, ends: Callable[[Any, str], bool], renewals: Renewals) -> None:
        """`ends(user, server name)`: whether the access is being ended, so that the server must get nothing."""
        self._app = app
        self._ends = ends
        self._renewals = renewals
        self._servers: dict[Any, _Server] = {}
        self._room = asyncio.Semaphore(_AT_ONCE)
        self._wake = asyncio.Event()
        self._background = Background()
        self._shown: set[str] = set()
        #: Spawners of servers whose objects can't be looked up; each was logged once.
        self._unseen: set[Any] = set()

    def begin(self) -> None:
        """Start the task, which runs as long as the hub."""
        self._background.start(self._run(), "mending of servers")

    def started(self, spawner: HubSpawner, missing: Mapping[str, str]) -> None:
        """Note a server that has just started, and what it is `missing` -> why."""
        running = running_server(spawner)
        if running is None or running.running_start is None:
            return
        server = self._notice(spawner.user, spawner, running, running.running_start)
        if missing:
            server.lacks, server.failures = dict(missing), 1
            server.at = renewal_schedule.again(None, time.monotonic(), 1)
            self._wake.set()

    def missing(self) -> list[Missing]:
        """All that running servers lack, credentials included, for the operator."""
        failed = [server for server in self._servers.values() if server.failures]
        things = [Missing(of.running.server.identity, what, why) for of in failed for what, why in of.lacks.items()]
        return things + self._renewals.missing()

    # -- the task

    async def _run(self) -> None:
        look = time.monotonic()

        async def turn() -> bool:
            nonlocal look
            if time.monotonic() >= look:
                look = time.monotonic() + _LOOK
                await self._look_around()
            self._mend_what_is_due()
            return False  # as long as the hub runs

        async def pause() -> None:
            waiting = [server.at for server in self._servers.values() if server.lacks and not server.busy]
            pause = min([look, *waiting]) - time.monotonic()
            await woken(self._wake, max(pause, 0.1))

        def failed(error: Exception) -> None:
            self._app.log.error("Could not look for what running servers lack; retrying", exc_info=error)

        await repeat(turn, pause, failed)

    async def _look_around(self) -> None:
        seen = set()
        async for user, spawner, running in in_turns(running_servers(self._app)):
            start_id = None if running is None else running.running_start
            if running is None or not start_id or self._ends(user, spawner.name):
                continue
            seen.add(spawner)
            server = self._servers.get(spawner)
            if server is None or server.start_id != start_id:
                server = self._notice(user, spawner, running, start_id)
            if not server.lacks and not server.busy:
                await self._look(server)
        for spawner in list(self._servers):
            if spawner not in seen and not spawner.pending:
                del self._servers[spawner]
        self._unseen &= seen
        self._show()

    async def _look(self, server: _Server) -> None:
        try:
            lacks = await server.running.lacks(server.since)
        except CasaError as error:
            self._cannot_say(server, str(error))
            return
        except Exception:  # a third party's minter, which is asked for its routes; the other servers must be looked at
            if server.spawner not in self._unseen:
                self._app.log.exception("Could not look for what %s lacks", server.running.server.identity)
            self._cannot_say(server, "an error of the hub")
            return
        self._unseen.discard(server.spawner)
        # Objects that the start could not make were already reported (`started`), perhaps by the previous hub process.
        server.lacks, server.at = dict.fromkeys(lacks or (), _GONE), time.monotonic()

    def _cannot_say(self, server: _Server, why: str) -> None:
        if server.spawner not in self._unseen:
            self._app.log.warning("It is unknown what %s lacks: %s", server.running.server.identity, why)
        self._unseen.add(server.spawner)

    def _notice(self, user: HubUser, spawner: HubSpawner, running: RunningServer, start_id: str) -> _Server:
        server = self._servers[spawner] = _Server(spawner, running, user, start_id, time.monotonic(), {})
        return server

    def _mend_what_is_due(self) -> None:
        now = time.monotonic()
        for server in self._servers.values():
            if server.lacks and not server.busy and server.at <= now:
                server.busy = True
                self._background.start(self._mend(server), f"mending of {server.running.server.identity}")

    async def _mend(self, server: _Server) -> None:
        try:
            async with self._room:
                await self._mend_in_turn(server)
        finally:
            server.busy = False
            self._show()
            self._wake.set()

    async def _mend_in_turn(self, server: _Server) -> None:
        running = server.running
        if running.running_start != server.start_id or self._ends(server.user, server.spawner.name):
            server.lacks, server.failures = {}, 0
            return
        if server.spawner.pending:  # it still starts, or already stops
            server.at = renewal_schedule.again(None, time.monotonic(), 1)
            return
        asked, before = dict(server.lacks), running.known_holding()
        failed = await self._bring_back(server)
        if running.running_start != server.start_id:  # it has stopped since, or its credentials were withdrawn
            server.lacks, server.failures = {}, 0
            return
        for what in sorted(asked.keys() - failed.keys()):
            self._app.log.warning("%s has %s again, which was missing: %s", running.server.identity, what, asked[what])
            server.since = time.monotonic()
        if running.known_holding() != before:  # it got new credentials, which expire at other times
            self._renewals.started(server.spawner)
        server.lacks = dict(failed)
        server.failures = server.failures + 1 if failed else 0
        server.at = renewal_schedule.again(None, time.monotonic(), max(server.failures, 1))
        if server.failures == 1:
            for what, why in failed.items():
                self._app.log.warning("%s lacks %s, which is tried again: %s", running.server.identity, what, why)

    async def _bring_back(self, server: _Server) -> Mapping[str, str]:
        """Bring back all that the server lacks. Returns what still is missing -> why."""
        try:
            return await server.running.bring_back(server.lacks.keys())
        except Exception as error:  # noqa: BLE001 - a third party's or the hub's database's is as good a reason to retry
            work = f"Bringing back what {server.running.server.identity} lacks"
            return dict.fromkeys(server.lacks, reason_of(error, self._app, work))

    def _show(self) -> None:
        """Set the metric of missing things."""
        counts: dict[str, int] = dict.fromkeys(self._shown, 0)
        for thing in self.missing():
            counts[thing.what] = counts.get(thing.what, 0) + 1
        self._shown = set(counts)
        for what, count in counts.items():
            MISSING.labels(what).set(count)
