"""The task that renews the credentials of running servers, when two thirds of their life are over.

One task serves all servers. It sleeps until the next renewal is due, and looks every few seconds for running servers
that it doesn't know: those that an earlier hub process started. It keeps times, but no secret and no record.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import itertools
import logging
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime

from casa_hub.credentials.fetching import Outcomes
from casa_hub.facility import Facility
from casa_hub.jupyterhub import HubApp, HubSpawner, HubUser
from casa_hub.metrics import LIFE_LEFT, OVERDUE, UNKEPT
from casa_hub.moments import iso, when
from casa_hub.record import EDITED, EDITED_ENTRY, WITHOUT_US, CredentialRecord, ServerRecord, Unreadable
from casa_hub.servers import renewal_schedule
from casa_hub.servers.renewal_state import RenewedCredential, RenewedServer, State
from casa_hub.servers.running import Holding, RunningServer, reason_of, running_server, running_servers
from casa_hub.tasks import Background, in_turns, repeat, woken

#: Servers that are renewed at the same time.
_AT_ONCE = 4
#: Seconds between the beginnings of two renewals: after a long pause of the hub, a thousand may be due.
_PACE = 0.02
#: Seconds between two looks for running servers, later and in a hub's first minute, when JupyterHub finds its servers.
_LOOK, _FIRST_LOOKS, _FIRST_MINUTE = 10.0, 1.0, 60.0

log = logging.getLogger(__name__)

#: What to say after a reason from `casa_hub.record`.
_RESTART = "It runs on with what it has; restart it to have that renewed"


@dataclass(frozen=True, slots=True)
class Report:
    """How `Renewals.renew_now` went."""

    #: Servers (identity) all of whose credentials were renewed.
    renewed: tuple[str, ...]
    #: Server (identity) -> why some credentials were not renewed, as a sentence.
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


@dataclass(frozen=True, slots=True)
class Held:
    """What a running server has of one credential, for people. Times are epoch seconds."""

    name: str
    issued: float
    #: None if it doesn't expire, or if the server lacks it.
    expires: float | None
    #: When time brings the next one, or the next try; None if time brings none.
    next_at: float | None
    #: Whether the server should have it and has not.
    missing: bool
    #: Why the server lacks it, or why its renewal fails; "" if all is well.
    why: str
    #: Public id of the secret that it was made with, where a facility may have several (`dask`); else "".
    secret: str = ""


class Renewals:
    """Lives on the hub's event loop."""

    def __init__(self, app: HubApp, facility: Facility, clock: Callable[[], float] = time.time) -> None:
        self._app = app
        self._facility = facility
        self._clock = clock
        self._servers: dict[HubSpawner, RenewedServer] = {}
        #: Heap of (when, number, server). An entry is void once the server's `at` is another time.
        self._due: list[tuple[float, int, RenewedServer]] = []
        self._numbers = itertools.count()
        self._room = asyncio.Semaphore(_AT_ONCE)
        self._wake = asyncio.Event()
        self._background = Background()
        #: Credentials that the metrics show.
        self._shown: set[str] = set()

    def begin(self) -> None:
        """Renew as long as the hub runs; do nothing if servers get no credentials."""
        if self._facility.minters:
            self._background.start(self._run(), "renewals")

    def started(self, spawner: HubSpawner) -> None:
        """Take note of a server that has just started."""
        running = running_server(spawner)
        if self._facility.minters and running is not None and running.running_start is not None:
            self._notice(spawner, running)

    async def bring(self, spawner: HubSpawner, names: Collection[str]) -> None:
        """Renew these credentials of a running server now, because what they are made of is new: its user's token.

        Failures are logged and tried again. Nothing happens if the server doesn't run.
        """
        running = running_server(spawner)
        server = None if running is None else self._known(spawner, running)
        if server is not None and not server.unkept:
            await self._renew(server, [name for name in names if name in self._facility.minters], force=True)

    async def hand_out_token(self, user: HubUser) -> None:
        """Give the newest token to the running servers: the old one may be dead (IAM: clearAccessTokensOnRefresh)."""
        names = [name for name, minter in self._facility.minters.items() if minter.renewal == "token"]
        for spawner in list(user.spawners.values()):
            if names and spawner.active and not spawner.pending:
                await self.bring(spawner, names)

    def logged_in(self, username: str) -> None:
        """Try at once what could not be fetched so far: others are asked with the token of the new log-in."""
        now = self._clock()
        for server in self._servers.values():
            if server.spawner.user.name != username:
                continue
            for name, one in server.credentials.items():
                if one.failures and one.state is not State.UNREADABLE and self._facility.needs_fetching(name):
                    one.at = now
            self._plan(server)

    async def renew_now(
        self,
        usernames: Collection[str] | None = None,
        names: Collection[str] = (),
        *,
        only: Callable[[HubSpawner], bool] = lambda _: True,
    ) -> Report:
        """Renew credentials now, whatever their expiry is, because their keys are other ones. Failures are tried again.

        `usernames`: whose servers; None for all running servers. `names`: of the credentials, or of the sections that
        make several; none for all. `only`: which of these servers.
        """
        names = self._facility.named(names)
        servers = [
            (spawner, running)
            for user, spawner, running in running_servers(self._app)
            if running is not None and (usernames is None or user.name in usernames) and only(spawner)
        ]
        asked = list(names or self._facility.minters)
        fetched = [name for name in asked if self._facility.needs_fetching(name)]
        others = [name for name in asked if name not in fetched]
        failures: dict[str, dict[str, str]] = {}
        stopped: set[str] = set()

        async def renew(
            spawner: HubSpawner, running: RunningServer, some: Collection[str], brought: Outcomes | None
        ) -> None:
            async with self._room:
                failed = await self._renew_one_now(spawner, running, some, brought, by_name=bool(names))
            if failed is None:
                stopped.add(running.server.identity)
            elif failed:
                failures.setdefault(running.server.identity, {}).update(failed)

        async def work(each: Iterator[tuple[HubSpawner, RunningServer]]) -> None:
            for spawner, running in each:  # all workers take from the same iterator
                await renew(spawner, running, others, None)
                await asyncio.sleep(0)

        async def ask(spawner: HubSpawner, running: RunningServer) -> None:
            await renew(spawner, running, fetched, await running.fetch(fetched))

        each = iter(servers if others or not fetched else ())
        await asyncio.gather(*(work(each) for _ in range(_AT_ONCE)))
        asking = []  # afterwards, and all at once: a silent provider takes most of a minute
        for spawner, running in servers if fetched else ():
            asking.append(asyncio.create_task(ask(spawner, running), name=f"renewal of {running.server.identity}"))
            await asyncio.sleep(_PACE)
        await asyncio.gather(*asking)
        identities = [running.server.identity for _, running in servers]
        return Report(
            tuple(one for one in identities if one not in failures and one not in stopped),
            {one: "; ".join(f"{name}: {why}" for name, why in failed.items()) for one, failed in failures.items()},
        )

    async def _renew_one_now(
        self,
        spawner: HubSpawner,
        running: RunningServer,
        names: Collection[str],
        fetched: Outcomes | None,
        *,
        by_name: bool,
    ) -> Mapping[str, str] | None:
        """Name of a credential, or ``all`` -> why it was not renewed; None if the server has stopped.

        `by_name`: whether the operator has named them; else they belong to all of the server.
        """
        server = self._known(spawner, running)
        if server is None:
            return {"all": "it can't be seen now, or is about to end"}
        unknown = {name: "this hub has no such credential" for name in names if name not in self._facility.minters}
        failed: Mapping[str, str] | None = {}
        if not server.unkept:
            failed = await self._renew(server, names, force=True, fetched=fetched)
        if server.unkept:
            return {"all": f"{server.unkept}. {_RESTART}"}
        if failed is None:
            return None
        # Asked for all: what the server already lacked is not this renewal's failure.
        known = server.credentials
        asked = names if by_name else [name for name, one in known.items() if one.state is not State.MISSING]
        return unknown | {name: why for name, why in failed.items() if name in asked}

    def overdue(self) -> list[Overdue]:
        """Credentials whose renewal fails, for the operator."""
        return [
            Overdue(server.identity, name, "" if one.expires is None else iso(one.expires), one.why)
            for server, name, one in self._credentials()
            if one.overdue
        ]

    def missing(self) -> list[Missing]:
        """Credentials that running servers lack, for the operator."""
        return [
            Missing(server.identity, name, one.why)
            for server, name, one in self._credentials()
            if one.state is State.MISSING
        ]

    def ask(self, spawner: HubSpawner, now: float, pause: float) -> bool:
        """Note that a server's user asks for a renewal; False if the last time was less than `pause` seconds ago.

        Each renewal takes one of the few places of all servers, so nobody may ask for one after the other.
        """
        server = self._servers.get(spawner)
        if server is None:
            return True
        if now - server.asked_at < pause:
            return False
        server.asked_at = now
        return True

    def unkept(self, spawner: HubSpawner) -> str:
        """Why none of a running server's credentials can be renewed, without a full stop; "" if they can."""
        server = self._servers.get(spawner)
        return "" if server is None else server.unkept

    def held(self, spawner: HubSpawner) -> list[Held]:
        """What a running server has of each credential."""
        server = self._servers.get(spawner)
        return [
            Held(name, one.issued, one.expires, one.at, one.state is State.MISSING, one.why, one.secret)
            for name, one in ({} if server is None else server.credentials).items()
        ]

    def _credentials(self) -> Iterator[tuple[RenewedServer, str, RenewedCredential]]:
        for server in list(self._servers.values()):
            for name, credential in list(server.credentials.items()):
                yield server, name, credential

    # -- the task

    async def _run(self) -> None:
        begun = look = time.monotonic()

        async def turn() -> bool:
            nonlocal look
            now = time.monotonic()
            if now >= look:
                look = now + (_LOOK if now > begun + _FIRST_MINUTE else _FIRST_LOOKS)
                await self._look_around()
            await self._begin_due(until=look)
            return False  # as long as the hub runs

        async def pause() -> None:
            pause = look - time.monotonic()
            if self._due and not self._room.locked():
                pause = min(pause, self._due[0][0] - self._clock())
            await woken(self._wake, max(pause, _PACE))

        def failed(error: Exception) -> None:
            self._app.log.error("Could not look for credentials that are due; retrying", exc_info=error)

        await repeat(turn, pause, failed)

    async def _look_around(self) -> None:
        seen = set()
        async for _, spawner, running in in_turns(running_servers(self._app)):
            seen.add(spawner)
            if running is not None:
                self._known(spawner, running)
        for spawner in list(self._servers):
            if spawner not in seen and not spawner.pending:
                del self._servers[spawner]
        await self._show()

    async def _show(self) -> None:
        """Tell the log and the metrics what is about to expire."""
        now = self._clock()
        overdue: dict[str, int] = {}
        life_left: dict[str, float] = {}
        async for server, name, one in in_turns(self._credentials()):
            self._warn_if_late(server, name, one, now)
            if one.state is not State.MISSING:
                overdue[name] = overdue.get(name, 0) + one.overdue
            if one.state in {State.HELD, State.UNSURE}:
                life_left[name] = min(life_left.get(name, 1.0), one.life_left(now))
        for name in self._shown - overdue.keys():
            for gauge in (OVERDUE, LIFE_LEFT):
                with contextlib.suppress(KeyError):  # an unreadable one has no life
                    gauge.remove(name)
        self._shown = set(overdue)
        for name, count in overdue.items():
            OVERDUE.labels(name).set(count)
        for name, part in life_left.items():
            LIFE_LEFT.labels(name).set(part)
        UNKEPT.set(sum(bool(server.unkept) for server in self._servers.values()))

    async def _begin_due(self, until: float) -> None:
        """Begin with all servers that are due, as far as there is room, until it is time (monotonic) to look around."""
        while self._due and self._due[0][0] <= self._clock() and not self._room.locked() and time.monotonic() < until:
            when, _, server = heapq.heappop(self._due)
            if server.at != when or self._servers.get(server.spawner) is not server:
                continue
            server.at = None
            asked = [name for name in server.due(self._clock()) if self._facility.needs_fetching(name)]
            if asked:
                for name in asked:
                    server.credentials[name].asking = True
                self._background.start(self._fetch(server, asked), f"what {server.identity} is renewed by")
                self._plan(server)
                await asyncio.sleep(_PACE)
                continue
            if server.busy:  # `_attend` plans the next try when it ends
                continue
            server.busy = True
            await self._room.acquire()  # at once: there is room
            self._background.start(self._attend(server), f"renewal of {server.identity}")
            await asyncio.sleep(_PACE)

    # -- one server

    def _known(self, spawner: HubSpawner, running: RunningServer) -> RenewedServer | None:
        """The start of a server that runs; None if it isn't known now which one runs."""
        start_id = running.running_start
        if start_id is None or not self._facility.minters:
            return None
        known = self._servers.get(spawner)
        if known is not None and known.start_id == start_id:
            return known
        return self._notice(spawner, running, ours=False)

    def _notice(self, spawner: HubSpawner, running: RunningServer, *, ours: bool = True) -> RenewedServer:
        """Take note of another start of a server; `ours`: whether this hub process started it."""
        holding = running.known_holding()
        start_id = holding.start_id if holding is not None else running.running_start or ""
        server = self._servers[spawner] = RenewedServer(spawner, running, running.server.identity, start_id)
        if holding is None:
            self._cannot_keep(server, holding)
            return server
        if isinstance(holding.record, Unreadable):
            server.look = self._clock()  # the newest record may be readable
        else:
            self._update(server, holding.record)
        if not ours:
            # A token that the server never had comes with its user's next one: nothing is asked for its sake.
            self._make_unsure(server, [name for name in server.credentials if self._comes_by_itself(name)])
        self._plan(server)
        return server

    def _comes_by_itself(self, name: str) -> bool:
        """Whether a credential needs no try by time, because its user's next token brings it."""
        return name in self._facility.minters and self._facility.minters[name].renewal == "token"

    def _make_unsure(self, server: RenewedServer, names: Collection[str]) -> None:
        for name in names:
            one = server.credentials.get(name)
            if one is not None and one.state in {State.HELD, State.UNSURE}:
                one.state, one.at = State.UNSURE, self._clock()

    def _cannot_keep(self, server: RenewedServer, holding: Holding | None) -> None:
        """Nothing of a running server can be renewed; the log says so once."""
        record = holding.record if holding is not None else None
        before, server.credentials = server.unkept, {}
        server.unkept = record.why if isinstance(record, Unreadable) else EDITED if server.start_id else WITHOUT_US
        if server.unkept != before:
            self._app.log.error(
                "No credential of the server %s is renewed: %s. %s", server.identity, server.unkept, _RESTART
            )

    def _update(self, server: RenewedServer, record: ServerRecord, later: Mapping[str, datetime] | None = None) -> None:
        """Take over what a server has now; `later`: see `Holding.later`."""
        now, before = self._clock(), server.credentials
        server.unkept = ""
        server.credentials = {name: one for name, one in before.items() if one.state is State.MISSING}
        missing = {name: why for name, why in record.missing.items() if name in self._facility.minters}
        for name, entry in record.credentials.items():
            if name not in missing:
                server.credentials[name] = self._held(server, name, entry, before.get(name))
        for name, why in missing.items():
            if name not in server.credentials:
                at = None if self._comes_by_itself(name) else renewal_schedule.again(None, now, 1)
                server.credentials[name] = RenewedCredential(State.MISSING, now, None, at, failures=1, why=why)
        for name, broken in record.unreadable.items():
            known = before.get(name)
            if known is None or known.state is not State.UNREADABLE:
                why = f"{EDITED_ENTRY}. {_RESTART}"
                known = RenewedCredential(
                    State.UNREADABLE, now, _seconds(broken.expires_at), None, why=why, warned=True
                )
                self._app.log.error("%s of the server %s is not renewed: %s", name, server.identity, why)
            server.credentials[name] = known
        for name, moment in (later or {}).items():
            one = server.credentials[name]
            again = max(moment.timestamp(), renewal_schedule.again(one.expires, now, 1))
            one.at = again if self._facility.minters[name].renewal == "time" else None
            one.state = State.HELD

    def _held(
        self, server: RenewedServer, name: str, entry: CredentialRecord, known: RenewedCredential | None
    ) -> RenewedCredential:
        """A credential by its entry in the record; `known`: what was known of it before."""
        if known is not None:
            if known.state in {State.HELD, State.UNSURE} and known.order == entry.order:
                return known
            if known.state is State.MISSING:
                self._app.log.info("%s of %s, which was missing, is there now", name, server.identity)
            elif known.overdue:
                self._app.log.info("%s of %s is renewed after all", name, server.identity)
        issued, expires, at = entry.issued_at.timestamp(), _seconds(entry.expires_at), None
        minter = self._facility.minters.get(name)
        if minter is not None and minter.renewal == "time" and expires is not None:
            at = renewal_schedule.due(issued, expires, renewal_schedule.jitter(server.identity, server.start_id))
        return RenewedCredential(State.HELD, issued, expires, at, entry.order, secret=entry.state.get("secret", ""))

    def _plan(self, server: RenewedServer) -> None:
        """Note when there is something to do for a server next."""
        times = [server.look, *(one.at for one in server.credentials.values() if not one.asking)]
        at = min((each for each in times if each is not None), default=None)
        if at != server.at and at is not None:
            heapq.heappush(self._due, (at, next(self._numbers), server))
            self._wake.set()
        server.at = at

    async def _attend(self, server: RenewedServer) -> None:
        """Renew what is due of a server. The caller has acquired `_room`."""
        try:
            if not await self._read(server):
                return
            await self._renew_due(
                server, [name for name in server.due(self._clock()) if not self._facility.needs_fetching(name)]
            )
        except Exception as error:  # noqa: BLE001 - a third party's or the hub's database's is as good a reason to retry
            self._failed(server, dict.fromkeys(server.due(self._clock()), self._reason(server, error)))
        finally:
            server.busy = False
            self._room.release()
            self._plan(server)
            self._wake.set()

    async def _read(self, server: RenewedServer) -> bool:
        """Read what a server has now; False if nothing more is done for it. Raises as `RunningServer.holding`.

        After a restart of the hub, only what the server had at its start is known so far.
        """
        if server.look is not None:
            server.look = self._clock() + _LOOK  # if it fails
        holding = await server.running.holding()
        server.look = None
        if holding is None or holding.start_id != server.start_id or isinstance(holding.record, Unreadable):
            self._end(server, holding)
            return False
        unsure = [name for name, one in server.credentials.items() if one.state is State.UNSURE]
        self._update(server, holding.record)
        self._make_unsure(server, unsure)  # also where an earlier hub has brought a newer one since the start
        return True

    async def _fetch(self, server: RenewedServer, names: Collection[str]) -> None:
        """Renew credentials (`names`) that others are asked for first: for seconds, in which nothing else waits."""
        try:
            if not await self._read(server):
                return
            fetched = await server.running.fetch(names)
            async with self._room:
                await self._renew_due(server, names, fetched)
        except Exception as error:  # noqa: BLE001 - as in `_attend`
            self._failed(server, dict.fromkeys(names, self._reason(server, error)))
        finally:
            for name in names:
                if name in server.credentials:
                    server.credentials[name].asking = False
            self._plan(server)
            self._wake.set()

    async def _renew_due(self, server: RenewedServer, names: Collection[str], fetched: Outcomes | None = None) -> None:
        forced = [name for name in names if name in server.credentials and server.credentials[name].force]
        for some in (forced, [name for name in names if name not in forced]):
            if some:
                await self._renew(server, some, force=some is forced, fetched=fetched)

    async def _renew(
        self, server: RenewedServer, names: Collection[str], *, force: bool, fetched: Outcomes | None = None
    ) -> Mapping[str, str] | None:
        """Renew some of a server's credentials. Returns what failed -> why; None if the server doesn't run any more."""
        refused = False
        try:
            holding = await server.running.renew(names, force=force, fetched=fetched)
            if holding is None or isinstance(holding.record, Unreadable):
                self._end(server, holding)
                return None
            self._update(server, holding.record, holding.later)
            failed, refused = holding.failed, True
        except Exception as error:  # noqa: BLE001 - see `_attend`
            failed = dict.fromkeys(names, self._reason(server, error))
        self._failed(server, failed, force=force, refused=refused)
        self._plan(server)
        return failed

    def _end(self, server: RenewedServer, holding: Holding | None = None) -> None:
        """Nothing more is done for this start: it has stopped, or its credentials were withdrawn.

        If it runs all the same, its record was taken away or is unreadable (`holding`), and the log says so.
        """
        server.credentials = {}
        if not server.spawner.pending and server.running.running_start == server.start_id:
            self._cannot_keep(server, holding)

    # -- failures

    def _reason(self, server: RenewedServer, error: Exception) -> str:
        return reason_of(error, self._app, f"Renewing credentials of {server.identity}")

    def _failed(
        self, server: RenewedServer, failed: Mapping[str, str], *, force: bool = False, refused: bool = False
    ) -> None:
        """Plan another try of what `failed` (name of a credential -> why), and log it.

        `refused`: whether a minter refused to mint, so that what comes with a user's token can only wait for the next
        token; else the delivery failed.
        """
        if failed and server.running.running_start != server.start_id:  # because it is stopping
            self._end(server)
            return
        now = self._clock()
        for name, why in failed.items():
            one = server.credentials.get(name)
            if one is None:
                if refused:  # its start did not ask for this credential
                    continue
                one = server.credentials[name] = RenewedCredential(State.MISSING, now, None, None)
            if one.state is State.UNREADABLE:
                continue
            if one.state is State.UNSURE and refused:  # there is no newer one
                one.state, one.at, one.failures, one.why = State.HELD, None, 0, ""
                continue
            is_missing = one.state is State.MISSING
            news = one.failures == 0 or why != one.why  # the start has logged the reason of what is missing
            one.failures, one.why, one.force = one.failures + 1, why, one.force or force
            waits = refused and (name not in self._facility.minters or self._comes_by_itself(name))
            one.at = None if waits else renewal_schedule.again(one.expires, now, one.failures)
            if news:
                until = "" if one.expires is None else f", which is valid until {when(one.expires)}"
                keeps = "it runs without" if is_missing else f"it keeps the one it has{until}"
                self._app.log.warning("No new %s for %s, %s: %s", name, server.identity, keeps, why)
            self._warn_if_late(server, name, one, now)

    def _warn_if_late(self, server: RenewedServer, name: str, one: RenewedCredential, now: float) -> None:
        """Log once that a credential is about to expire without a new one."""
        if (
            one.warned
            or one.at is None
            or one.expires is None
            or not renewal_schedule.is_late(one.issued, one.expires, now)
        ):
            return
        if not one.failures and now < one.at + _LOOK:  # its time has not come, or has just come
            return
        one.warned = True
        why = one.why or "its turn hasn't come yet"
        until = when(one.expires)
        self._app.log.error("%s of %s expires at %s, and there is no new one: %s", name, server.identity, until, why)


def _seconds(moment: datetime | None) -> float | None:
    return None if moment is None else moment.timestamp()
