"""The task that renews what servers hold, when two thirds of its life are gone.

One task for all servers, which sleeps until the next renewal is due, or until it looks around for servers that it does
not know: those that an earlier hub started. It keeps no secret and no record, only times.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import itertools
import logging
import time
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, TypeVar

from casa_hub.errors import CasaError
from casa_hub.facility import Facility
from casa_hub.jupyterhub import HubApp, HubSpawner, HubUser
from casa_hub.keeper import schedule
from casa_hub.keeper.kept import Holding, Kept, kept_of, running
from casa_hub.metrics import LIFE_LEFT, OVERDUE, UNKEPT
from casa_hub.moments import iso, when
from casa_hub.record import EDITED, EDITED_ENTRY, WITHOUT_US, ServerRecord, Unreadable
from casa_hub.tasks import Background

#: Servers that are renewed at the same time.
_AT_ONCE = 4
#: Seconds between the beginnings of two renewals: after a long pause of the hub, a thousand may be due.
_PACE = 0.02
#: Seconds between two looks around; and in a hub's first minute, when JupyterHub finds its servers again.
_LOOK, _FIRST_LOOKS, _FIRST_MINUTE = 10.0, 1.0, 60.0
#: Servers, or credentials, that are looked at in one turn of the hub's loop.
_IN_ONE_TURN = 50

T = TypeVar("T")

log = logging.getLogger(__name__)

#: What to say after a reason from `casa_hub.record`.
_RESTART = "It runs on with what it has; restart it to have that renewed"


@dataclass(frozen=True, slots=True)
class Report:
    """How `Renewals.renew_now` went."""

    #: Servers (identity) all of whose credentials were renewed.
    renewed: tuple[str, ...]
    #: Server (identity) -> why some weren't, as a sentence.
    failed: dict[str, str]


@dataclass(frozen=True, slots=True)
class Overdue:
    """A credential of a running server whose renewal fails."""

    #: Identity.
    server: str
    credential: str
    #: ISO 8601; "" for one that doesn't expire.
    until: str
    why: str


@dataclass(frozen=True, slots=True)
class Missing:
    """Something that a running server should have and has not."""

    #: Identity.
    server: str
    #: Name of a credential, or kind of an object.
    what: str
    why: str


@dataclass(slots=True)
class _Credential:
    """Times of what a server holds (epoch seconds)."""

    #: Of the renewal that brought it; -1: it is missing, and is tried again like a renewal that failed.
    order: int
    issued: float
    expires: float | None
    #: When to renew it; None: not by time.
    at: float | None
    #: Whether a new one is wanted whatever its expiry is.
    anyhow: bool = False
    #: Whether nobody needs to hear of a failure: it is only looked whether there is something newer.
    quiet: bool = False
    #: Renewals that failed in a row, and why.
    failures: int = 0
    why: str = ""
    #: Whether the operator was told that it is about to expire.
    told: bool = False
    #: Whether its entry in the record can't be read, so that it is never renewed.
    unreadable: bool = False

    def life_left(self, now: float) -> float:
        """The part of its life that is left, 0 to 1; 1 for what has no end."""
        if self.expires is None:
            return 1.0
        return min(max((self.expires - now) / max(self.expires - self.issued, 1e-3), 0.0), 1.0)


@dataclass(slots=True, eq=False)
class _Server:
    """One start of a server."""

    spawner: HubSpawner
    kept: Kept
    identity: str
    start_id: str
    credentials: dict[str, _Credential] = field(default_factory=dict)
    #: Why nothing of it can be renewed, without a full stop; "" if it can.
    unkept: str = ""
    #: When to look at its newest record, since that of its start can't be read.
    look: float | None = None
    #: When there is something to do next.
    at: float | None = None
    busy: bool = False


class Renewals:
    """Lives on the hub's event loop."""

    def __init__(self, app: HubApp, facility: Facility, clock: Callable[[], float] = time.time) -> None:
        self._app = app
        self._facility = facility
        self._clock = clock
        self._servers: dict[Any, _Server] = {}
        #: (when, number, server); one whose `at` is another by now is none.
        self._due: list[tuple[float, int, _Server]] = []
        self._numbers = itertools.count()
        self._room = asyncio.Semaphore(_AT_ONCE)
        self._wake = asyncio.Event()
        self._background = Background()
        self._shown: set[str] = set()

    def begin(self) -> None:
        """Go on as long as the hub runs; nothing where servers get no credentials."""
        if self._facility.minters:
            self._background.start(self._run(), "renewals")

    def started(self, spawner: HubSpawner) -> None:
        """A server has just started: look at it without waiting for the next look around."""
        kept = kept_of(spawner)
        if self._facility.minters and kept is not None and kept.running_start is not None:
            self._notice(spawner, kept)

    async def bring(self, spawner: HubSpawner, names: Collection[str]) -> None:
        """Something newer has come for these credentials of a server, as their user's token; nothing if it doesn't run.

        What fails is logged, and tried again.
        """
        kept = kept_of(spawner)
        server = None if kept is None else self._known(spawner, kept)
        if server is not None and not server.unkept:
            await self._renew(server, [name for name in names if name in self._facility.minters], anyhow=True)

    async def renew_now(self, usernames: Collection[str] | None = None, names: Collection[str] = ()) -> Report:
        """Renew at once, in haste: `names` (default: all credentials) of all running servers, or of these users.

        Whatever their expiry is: their keys are other ones. What fails is tried again, as ever.
        """
        report = Report((), {})
        renewed: list[str] = []
        servers = iter(
            [
                (spawner, kept)
                for user, spawner, kept in running(self._app)
                if kept is not None and (usernames is None or user.name in usernames)
            ]
        )

        async def work() -> None:
            for spawner, kept in servers:  # shared: each goes on with the next one
                async with self._room:
                    failed = await self._renew_one_now(spawner, kept, names)
                if failed:
                    report.failed[kept.server.identity] = "; ".join(f"{name}: {why}" for name, why in failed.items())
                elif failed is not None:
                    renewed.append(kept.server.identity)
                await asyncio.sleep(0)

        await asyncio.gather(*(work() for _ in range(_AT_ONCE)))
        return Report(tuple(renewed), report.failed)

    async def _renew_one_now(self, spawner: HubSpawner, kept: Kept, names: Collection[str]) -> Mapping[str, str] | None:
        """What failed; None if the server doesn't run."""
        server = self._known(spawner, kept)
        if server is None:
            return {"all": "it can't be seen now, or is about to end"}
        if server.unkept:
            return {"all": f"{server.unkept}. {_RESTART}"}
        unknown = {name: "this hub has no such credential" for name in names if name not in self._facility.minters}
        failed = await self._renew(server, names or list(self._facility.minters), anyhow=True)
        if server.unkept:
            return {"all": f"{server.unkept}. {_RESTART}"}
        if failed is None:
            return None
        # Of all, those that the server lacks may well fail again.
        asked = names or [name for name, one in server.credentials.items() if one.order >= 0]
        return unknown | {name: why for name, why in failed.items() if name in asked}

    # -- the task

    async def _run(self) -> None:
        begun = time.monotonic()
        look = begun
        while True:
            try:
                if time.monotonic() >= look:
                    look = time.monotonic() + (_LOOK if time.monotonic() > begun + _FIRST_MINUTE else _FIRST_LOOKS)
                    await self._look_around()
                if await self._begin_next():
                    continue
            except Exception:  # whatever it is, the next turn may do better, and nothing may end this
                self._app.log.exception("Looking for credentials that are due")
            pause = look - time.monotonic()
            if self._due and not self._room.locked():
                pause = min(pause, self._due[0][0] - self._clock())
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(pause, _PACE)):
                    await self._wake.wait()
            self._wake.clear()

    async def _look_around(self) -> None:
        seen = set()
        async for _, spawner, kept in _in_turns(running(self._app)):
            seen.add(spawner)
            if kept is not None:
                self._known(spawner, kept)
        for spawner in list(self._servers):
            if spawner not in seen and not spawner.pending:
                del self._servers[spawner]
        await self._show()

    async def _show(self) -> None:
        """Let the operator see what is about to expire."""
        now = self._clock()
        overdue: dict[str, int] = {}
        life_left: dict[str, float] = {}
        async for server, name, credential in _in_turns(self._credentials()):
            self._tell_if_late(server, name, credential, now)
            if credential.order >= 0:
                overdue[name] = overdue.get(name, 0) + bool(credential.failures)
            if credential.order >= 0 and not credential.unreadable:
                life_left[name] = min(life_left.get(name, 1.0), credential.life_left(now))
        for name in self._shown - overdue.keys():
            for gauge in (OVERDUE, LIFE_LEFT):
                with contextlib.suppress(KeyError):  # one that never came has no life
                    gauge.remove(name)
        self._shown = set(overdue)
        for name, count in overdue.items():
            OVERDUE.labels(name).set(count)
        for name, part in life_left.items():
            LIFE_LEFT.labels(name).set(part)
        UNKEPT.set(sum(bool(server.unkept) for server in self._servers.values()))

    def overdue(self) -> list[Overdue]:
        """What could not be renewed so far, for the operator."""
        return [
            Overdue(server.identity, name, "" if one.expires is None else iso(one.expires), one.why)
            for server, name, one in self._credentials()
            if one.failures and one.order >= 0
        ]

    def missing(self) -> list[Missing]:
        """Credentials that running servers lack, for the operator."""
        return [Missing(server.identity, name, one.why) for server, name, one in self._credentials() if one.order < 0]

    def _credentials(self) -> Iterator[tuple[_Server, str, _Credential]]:
        for server in list(self._servers.values()):
            for name, credential in list(server.credentials.items()):
                yield server, name, credential

    async def _begin_next(self) -> bool:
        """Begin with the server that is due first; whether there is one, and room for it."""
        while self._due and not self._room.locked() and self._due[0][0] <= self._clock():
            when, _, server = heapq.heappop(self._due)
            if server.at != when or self._servers.get(server.spawner) is not server:
                continue
            server.at = None
            if server.busy:  # what comes next is planned at its end
                continue
            server.busy = True
            await self._room.acquire()  # at once: there is room
            self._background.start(self._attend(server), f"renewal of {server.identity}")
            await asyncio.sleep(_PACE)
            return True
        return False

    # -- one server

    def _known(self, spawner: HubSpawner, kept: Kept) -> _Server | None:
        """What is known of a server; None if it can't be said now which start of it runs."""
        start_id = kept.running_start
        if start_id is None or not self._facility.minters:
            return None
        known = self._servers.get(spawner)
        if known is not None and known.start_id == start_id:
            return known
        return self._notice(spawner, kept, ours=False)

    def _notice(self, spawner: HubSpawner, kept: Kept, *, ours: bool = True) -> _Server:
        """Another start of a server; `ours`: this hub's."""
        holding = kept.first_holding()
        identity = kept.server.identity
        start_id = holding.start_id if holding is not None else kept.running_start or ""
        server = self._servers[spawner] = _Server(spawner, kept, identity, start_id)
        if holding is None:
            self._cannot_keep(server, holding)
            return server
        if isinstance(holding.record, Unreadable):
            server.look = self._clock()  # its newest record may be another one
        else:
            self._update(server, holding.record)
        if not ours:
            # The hub before may have died between a new token of the user and its delivery. A credential that the
            # server never had comes with the next token: nothing is asked for its sake.
            for name, credential in server.credentials.items():
                if self._comes_by_itself(name) and credential.order >= 0:
                    credential.at, credential.quiet = self._clock(), True
        self._plan(server)
        return server

    def _comes_by_itself(self, name: str) -> bool:
        """Whether a credential needs no try by time: it is brought with its user's next token."""
        return name in self._facility.minters and self._facility.minters[name].renewal == "token"

    def _cannot_keep(self, server: _Server, holding: Holding | None) -> None:
        """Nothing of a server that runs can be renewed; the operator hears of it once."""
        record = holding.record if holding is not None else None
        before, server.credentials = server.unkept, {}
        server.unkept = record.why if isinstance(record, Unreadable) else EDITED if server.start_id else WITHOUT_US
        if server.unkept != before:
            self._app.log.error(
                "No credential of the server %s is renewed: %s. %s", server.identity, server.unkept, _RESTART
            )

    def _update(self, server: _Server, record: ServerRecord, later: Mapping[str, datetime] | None = None) -> None:
        """Take over what a server holds now."""
        now, before = self._clock(), server.credentials
        server.unkept = ""
        server.credentials = {name: one for name, one in before.items() if one.order < 0}
        jitter = schedule.jitter(server.identity, server.start_id)
        for name, entry in record.credentials.items():
            known = before.get(name)
            if known is not None and known.order == entry.order and not known.unreadable:
                server.credentials[name] = known
                continue
            if known is not None and known.order < 0:
                self._app.log.info("%s of %s, which was missing, is there now", name, server.identity)
            elif known is not None and known.failures:
                self._app.log.info("%s of %s is renewed after all", name, server.identity)
            issued, expires = entry.issued_at.timestamp(), _seconds(entry.expires_at)
            minter = self._facility.minters.get(name)
            by_time = minter is not None and minter.renewal == "time" and expires is not None
            at = schedule.due(issued, expires, jitter) if by_time and expires is not None else None
            server.credentials[name] = _Credential(entry.order, issued, expires, at)
        for name, why in record.missing.items():
            known = before.get(name)
            if name not in self._facility.minters:
                continue
            if known is None or known.order >= 0:
                at = None if self._comes_by_itself(name) else schedule.again(None, now, 1)
                known = _Credential(-1, now, None, at, failures=1, why=why)
            server.credentials[name] = known
        for name, broken in record.unreadable.items():
            self._cannot_renew(server, name, before.get(name), _seconds(broken.expires_at))
        for name, moment in (later or {}).items():
            one = server.credentials[name]
            again = max(moment.timestamp(), schedule.again(one.expires, now, 1))
            one.at, one.quiet = again if self._facility.minters[name].renewal == "time" else None, False

    def _cannot_renew(self, server: _Server, name: str, known: _Credential | None, expires: float | None) -> None:
        """The entry of one credential in a server's record can't be read; the operator hears of it once."""
        if known is not None and known.unreadable:
            server.credentials[name] = known
            return
        why = f"{EDITED_ENTRY}. {_RESTART}"
        server.credentials[name] = _Credential(
            0, self._clock(), expires, None, failures=1, why=why, told=True, unreadable=True
        )
        self._app.log.error("%s of the server %s is not renewed: %s", name, server.identity, why)

    def _plan(self, server: _Server) -> None:
        """Note when there is something to do for it next."""
        times = [server.look, *(one.at for one in server.credentials.values())]
        at = min((each for each in times if each is not None), default=None)
        if at != server.at and at is not None:
            heapq.heappush(self._due, (at, next(self._numbers), server))
            self._wake.set()
        server.at = at

    async def _attend(self, server: _Server) -> None:
        """Renew what is due of a server; the room for it is had."""
        try:
            # After a restart of the hub, only what the server held at its start is known so far.
            if server.look is not None:
                server.look = self._clock() + _LOOK  # if it fails
            holding = await server.kept.holding()
            server.look = None
            if holding is None or holding.start_id != server.start_id or isinstance(holding.record, Unreadable):
                self._end(server, holding)
                return
            quiet = [name for name, one in server.credentials.items() if one.quiet]
            self._update(server, holding.record)
            for name in quiet:  # still to be looked for, also where an earlier hub has brought one since the start
                if name in server.credentials:
                    server.credentials[name].at, server.credentials[name].quiet = self._clock(), True
            due = self._due_of(server)
            whatever = [name for name in due if server.credentials[name].anyhow]
            for names in (whatever, [name for name in due if name not in whatever]):
                if names:
                    await self._renew(server, names, anyhow=names is whatever)
        except CasaError as error:
            self._failed(server, dict.fromkeys(self._due_of(server), str(error)))
        except Exception:  # a third party's, or the hub's database: as good a reason to try again
            self._app.log.exception("Renewing credentials of %s", server.identity)
            self._failed(server, dict.fromkeys(self._due_of(server), "an error of the hub; its log says more"))
        finally:
            server.busy = False
            self._room.release()
            self._plan(server)
            self._wake.set()

    def _due_of(self, server: _Server) -> list[str]:
        now = self._clock()

        def due(one: _Credential) -> bool:
            if one.at is None:
                return False
            if one.failures or one.expires is None or one.quiet:
                return one.at <= now
            return schedule.along(one.issued, one.expires, one.at) <= now

        return [name for name, one in server.credentials.items() if due(one)]

    async def _renew(self, server: _Server, names: Collection[str], *, anyhow: bool) -> Mapping[str, str] | None:
        """Renew some of its credentials: what failed, and why; None if the server doesn't run any more."""
        retry = True
        try:
            holding = await server.kept.renew(names, anyhow=anyhow)
            if holding is None or isinstance(holding.record, Unreadable):
                self._end(server, holding)
                return None
            self._update(server, holding.record, holding.later)
            failed, retry = holding.failed, False
        except CasaError as error:
            failed = dict.fromkeys(names, str(error))
        except Exception:  # see _attend
            self._app.log.exception("Renewing credentials of %s", server.identity)
            failed = dict.fromkeys(names, "an error of the hub; its log says more")
        self._failed(server, failed, anyhow=anyhow, retry=retry)
        self._plan(server)
        return failed

    def _end(self, server: _Server, holding: Holding | None = None) -> None:
        """It has stopped, or its credentials were withdrawn: there is nothing more to do for this start.

        If it runs all the same, its record (`holding`) can't be read or was taken away, and the operator must know.
        """
        server.credentials = {}
        if not server.spawner.pending and server.kept.running_start == server.start_id:
            self._cannot_keep(server, holding)

    # -- failures

    def _failed(self, server: _Server, failed: Mapping[str, str], *, anyhow: bool = False, retry: bool = True) -> None:
        """`retry`: also of what will come by itself, as its user's next token."""
        if failed and server.kept.running_start != server.start_id:  # because it is stopping
            self._end(server)
            return
        now = self._clock()
        for name, why in failed.items():
            one = server.credentials.get(name)
            if one is not None and one.unreadable:
                continue
            if one is None:
                if not retry:  # its start didn't ask for one
                    continue
                one = server.credentials[name] = _Credential(-1, now, None, None)
            by_itself = name not in self._facility.minters or self._comes_by_itself(name)
            if one.quiet and not retry:
                one.at, one.quiet = None, False
                continue
            # Of what is missing, the reason so far is known: the start has told it.
            news = one.failures == 0 or (one.order < 0 and why != one.why)
            one.failures, one.why, one.anyhow = one.failures + 1, why, one.anyhow or anyhow
            one.at = None if by_itself and not retry else schedule.again(one.expires, now, one.failures)
            if news:
                until = "" if one.expires is None else f", which is valid until {when(one.expires)}"
                keeps = "it runs without" if one.order < 0 else f"it keeps the one it has{until}"
                self._app.log.warning("No new %s for %s, %s: %s", name, server.identity, keeps, why)
            self._tell_if_late(server, name, one, now)

    def _tell_if_late(self, server: _Server, name: str, one: _Credential, now: float) -> None:
        if one.told or one.at is None or one.expires is None or not schedule.is_late(one.issued, one.expires, now):
            return
        if not one.failures and now < one.at + _LOOK:  # its time has not come, or has just come
            return
        one.told = True
        self._app.log.error(
            "%s of %s expires at %s, and there is no new one: %s",
            name,
            server.identity,
            when(one.expires),
            one.why or "its turn hasn't come yet",
        )


async def _in_turns(things: Iterator[T]) -> AsyncIterator[T]:
    """All of them; others on the loop get their turns in between."""
    for number, thing in enumerate(things, 1):
        yield thing
        if number % _IN_ONE_TURN == 0:
            await asyncio.sleep(0)


def _seconds(moment: datetime | None) -> float | None:
    return None if moment is None else moment.timestamp()


async def hand_out_token(user: HubUser) -> None:
    """Give the newest token to the running servers: the old one may be dead (IAM: clearAccessTokensOnRefresh)."""
    minters = Facility.in_settings(user.settings, user.settings["config"]).minters
    names = [name for name, minter in minters.items() if minter.renewal == "token"]
    for spawner in list(user.spawners.values()):
        renew = getattr(spawner, "renew_credentials", None)
        if names and renew is not None and spawner.active and not spawner.pending:
            try:
                await renew(names)
            except CasaError as error:
                log.error("Token of %s for server %r: %s", user.name, spawner.name, error)  # noqa: TRY400
