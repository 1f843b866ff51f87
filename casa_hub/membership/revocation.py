"""What follows when somebody's access ends, in an order in which nothing is lost half way.

1. In one commit, at once: API and OAuth tokens deleted, cookies ended, and a note in the database that this revocation
   has begun. From here on a hub that is killed goes on with it at its next start.
2. For each running server, all at the same time: what it holds is told to the audit, for those who must block it; its
   files and routes are withdrawn; it is stopped as JupyterHub stops it.
3. The refresh token is ended at the identity provider, the log-in forgotten, the note removed.

What fails is tried again until it is done. What the person begins in the meantime, let in by a new log-in, stays.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from jupyterhub import orm

from casa_hub import metrics
from casa_hub.audit import Action, Event, tell
from casa_hub.database import committed, mended
from casa_hub.errors import CasaError
from casa_hub.identity.errors import OIDCError
from casa_hub.jupyterhub import HubApp, HubSpawner, HubUser
from casa_hub.membership.log_ins import LogIns
from casa_hub.membership.member import Member, Members, Revocation, RevocationReport
from casa_hub.membership.tables import Entry, Ledger
from casa_hub.moments import exact
from casa_hub.outside import Outside
from casa_hub.record import AnyRecord, Unreadable, to_block
from casa_hub.servers.running import RunningServer, running_server
from casa_hub.tasks import Background, repeat

#: Servers that are ended at the same time; all of a hub's at once would stall it and the API server.
_AT_ONCE = 20
#: Seconds that one try of a step may take: to read what a server holds, and all else.
_READ = 5.0
_STEP = 30.0
#: Seconds between two looks whether a pending start or stop is over: JupyterHub has no event for it.
_LOOK = 0.2
#: Seconds until the first further try, and at most.
_AGAIN, _LATEST = 1.0, 300.0
#: JupyterHub's own OAuth client: its tokens belong to users and servers, not to browsers.
_NO_BROWSER = "jupyterhub"

log = logging.getLogger(__name__)


class Revocations:
    """Lives on the hub's event loop."""

    def __init__(self, app: HubApp, members: Members, log_ins: LogIns | None, outside: Outside | None = None) -> None:
        """`log_ins`: None with an authenticator that isn't ours. `outside`: what people hold outside of servers."""
        self._app = app
        self._members = members
        self._log_ins = log_ins
        self._outside = outside or Outside()
        self._ledger = Ledger(app.db)
        #: The `Member.revocation` of all who have one.
        self._under_way: set[Revocation] = set()
        #: Whether all is known that an earlier hub has begun to end.
        self.resumed = False
        self._at_once = asyncio.Semaphore(_AT_ONCE)
        self._background = Background()

    async def resume(self) -> None:
        """Go on with what an earlier hub has begun; when this one knows its users and servers. Repeated without harm.
        Raises SQLAlchemyError.
        """
        self._ledger.open()
        for entry in self._ledger.all(self._members.now()):
            if self._members[entry.username].revocation is not None:
                continue
            user = self._user(entry.username) if entry.done is not None else await self._whose(entry)
            if user is None:
                self._ledger.remove(entry.username)
                continue
            if entry.done is not None:
                self._members[entry.username].last_revocation = entry
                continue
            log.warning("Going on with the end of the access of %s: %s", entry.username, entry.reason)
            began = datetime.fromtimestamp(entry.began, UTC).replace(tzinfo=None)
            # A server started since then was allowed by a newer log-in.
            servers = {
                name
                for name, spawner in user.spawners.items()
                if spawner.active and (spawner.orm_spawner.started is None or spawner.orm_spawner.started < began)
            }
            self._start(Revocation(entry, user, user.id, servers))
        self.resumed = True

    async def _whose(self, entry: Entry) -> Any:
        """Whose access it is that ends: the log-in tells, since an administrator may have renamed the user."""
        named = self._user(entry.username)
        log_ins = self._log_ins
        if log_ins is None or not entry.session_id or await _has_log_in(log_ins, named, entry.session_id):
            return named
        stored = self._app.db.query(orm.User.name).filter(orm.User.encrypted_auth_state.is_not(None))
        for (name,) in stored.all():
            user = self._user(name)
            if await _has_log_in(log_ins, user, entry.session_id):
                return user
        return named  # there is another log-in now

    async def end(self, user: HubUser, reason: str, *, why: str, by: str = "") -> RevocationReport:
        """End all access of one of the hub's users: servers, their credentials and routes, tokens, cookies, sessions.

        Tokens and cookies have ended when this first waits for anything. Returns after the first try of all the rest.
        `reason`: a sentence for the audit and for the user's page. `why`: one of `metrics.WHYS`. `by`: who asked for
        it; "" for the hub itself.
        Raises SQLAlchemyError if the hub's database can't be written; nothing was ended then.
        """
        # No wait if this log-in was asked about before.
        session_id = (await self._log_ins.known(user)).session_id if self._log_ins is not None else ""
        revocation = self._members[user.name].revocation
        if revocation is None or revocation.entry.session_id != session_id:
            revocation = self._begin(user, Entry(user.name, session_id, reason, why, by, self._members.now()))
        await revocation.tried.wait()
        return revocation.report

    def may_end(self, user: HubUser, name: str) -> bool:
        """Whether nothing must be brought to a server of one of JupyterHub's users: its end is under way, or may be."""
        return not self.resumed or any(one.user is user and name in one.servers for one in self._under_way)

    def has_any(self, user: HubUser) -> bool:
        """Whether there is anything to end."""
        mended(self._app.db)
        return bool(user.active or user.encrypted_auth_state is not None or user.api_tokens)

    # -- first, in one commit

    def _begin(self, user: HubUser, entry: Entry) -> Revocation:
        self._ledger.open()
        with committed(self._app.db):
            tokens = end_tokens(self._app.db, user)
            self._ledger.note(entry)
        log.warning("The access of %s ends: %s", user.name, entry.reason)
        servers = {name for name, spawner in user.spawners.items() if spawner.active}
        # In the same turn: what a newer log-in takes outside from now on is its own.
        outside = self._outside.take(user.id, datetime.now(UTC))
        revocation = Revocation(entry, user, user.id, servers, outside=outside, tokens=tokens)
        self._start(revocation)
        return revocation

    def _start(self, revocation: Revocation) -> None:
        name = revocation.entry.username
        self._set(self._members[name], revocation)
        self._background.start(self._go_through(revocation), f"revocation of {name}")

    def _set(self, member: Member, revocation: Revocation | None) -> None:
        if member.revocation is not None:
            self._under_way.discard(member.revocation)
        member.revocation = revocation
        if revocation is not None:
            self._under_way.add(revocation)
        metrics.LEAVING.set(len(self._under_way))

    # -- then, until it is done

    async def _go_through(self, revocation: Revocation) -> None:
        name, wait = revocation.entry.username, _AGAIN

        async def try_once() -> bool:
            revocation.still = await self._try(revocation)
            return not revocation.still

        def failed(error: Exception) -> None:
            log.error("The access of %s could not be ended in all parts", name, exc_info=error)
            revocation.still = ("an error of the hub",)

        async def pause() -> None:
            nonlocal wait
            revocation.tried.set()
            log.error("The end of the access of %s is tried again: %s", name, "; ".join(revocation.still))
            await asyncio.sleep(wait)
            wait = min(wait * 2, _LATEST)

        try:
            await repeat(try_once, pause, failed)
        finally:
            revocation.tried.set()
            member = self._members[name]
            if member.revocation is revocation:
                self._set(member, None)

    async def _try(self, revocation: Revocation) -> tuple[str, ...]:
        """One try of all that is left. Returns what still is, as sentences."""
        await self._audit_outside(revocation)
        mended(self._app.db)  # the try before may have failed for the database
        # The same object: somebody else may have the name by now, and databases reuse the id.
        there = self._app.users.get(revocation.user_id)
        user = revocation.user if there is revocation.user else None
        if user is not None:
            names = sorted(revocation.servers)
            ends = [self._end_server(revocation, user, name) for name in names]
            outcomes = await asyncio.gather(*ends, return_exceptions=True)
            problems = []
            for name, outcome in zip(names, outcomes, strict=True):
                if outcome is None:
                    revocation.servers.discard(name)
                else:
                    problems.append(f"server {name!r}: {_text(outcome)}")
        else:
            problems = []
        left = await self._end_session(revocation, user, last=not problems)
        problems += [left] if left else []
        if not problems:
            self._finish(revocation)
        return tuple(problems)

    def _finish(self, revocation: Revocation) -> None:
        entry, servers = revocation.entry, len(revocation.stopped)
        member = self._members[entry.username]
        if member.revocation is revocation:  # else a later one has its note there
            done = self._members.now()
            self._ledger.done(entry.username, done, servers)
            member.last_revocation, member.told_at = replace(entry, done=done, servers=servers), None
        metrics.ACCESS_ENDED.labels(entry.why).inc()
        ended = Event(Action.ACCESS_ENDED, entry.username, reason=entry.reason, by=entry.requested_by)
        tell(self._app.tornado_settings, ended)

    # -- servers

    async def _end_server(self, revocation: Revocation, user: HubUser, name: str) -> None:
        """Raises if it isn't ended."""
        async with self._at_once, asyncio.timeout(_STEP):
            spawner = user.spawners.get(name)
            if spawner is None or not spawner.active:
                return
            running = running_server(spawner)
            problem: Exception | None = None
            while True:
                if self._is_let_in_since(revocation, user, spawner):
                    return
                # Also before a pending start is over, and again after it.
                if running is not None:
                    await self._audit_revoked(revocation, user, name, running)
                    try:
                        await running.withdraw()
                    except Exception as error:  # noqa: BLE001 - whatever it is, it is stopped all the same
                        problem = error
                if not spawner.pending:
                    break
                await self._not_pending(spawner, running)
            if spawner.active:
                await self._stop(revocation, user, name, spawner)
            revocation.stopped.add(name)
        if problem is not None and running is not None:
            await running.withdraw()

    def _is_let_in_since(self, revocation: Revocation, user: HubUser, spawner: HubSpawner) -> bool:
        """Whether a new log-in has started it, after the one that was to be ended had ended by itself."""
        now = self._members[user.name].standing
        if now is None or now.session_id == revocation.entry.session_id:
            return False
        return bool(getattr(spawner, "casa_log_in", None) == now.session_id)

    async def _not_pending(self, spawner: HubSpawner, running: Any) -> None:
        """Wait until a start or stop is over, or it is only now known what a start was given."""
        before = None if running is None else running.running_start
        while spawner.pending:
            await asyncio.sleep(_LOOK)  # nobody has an event of it
            if running is not None and running.running_start not in (None, before):
                return

    async def _stop(self, revocation: Revocation, user: HubUser, name: str, spawner: HubSpawner) -> None:
        """As JupyterHub's own handler does, whose method needs a request."""

        async def stop() -> None:
            try:
                await self._app.proxy.delete_user(user, name)
            finally:
                await user.stop(name)
            # Also if nobody waits any more: the next server of this name belongs to a newer log-in.
            revocation.servers.discard(name)
            revocation.stopped.add(name)

        spawner._stop_pending = True  # noqa: SLF001 - JupyterHub's own marks; others wait for them
        spawner._stop_future = asyncio.ensure_future(stop())  # noqa: SLF001
        spawner._stop_future.add_done_callback(lambda done: done.cancelled() or done.exception())  # noqa: SLF001
        try:
            # Not cancelled with us: a stop that is broken off leaves JupyterHub with half a server.
            await asyncio.shield(spawner._stop_future)  # noqa: SLF001
        finally:
            if spawner._stop_future.done():  # noqa: SLF001
                spawner._stop_future, spawner._stop_pending = None, False  # noqa: SLF001

    async def _audit_revoked(self, revocation: Revocation, user: HubUser, name: str, running: RunningServer) -> None:
        """What others must block if it was copied: told before it is withdrawn and nobody knows it any more."""
        if name in revocation.told:
            return
        unseen = ""
        try:
            async with asyncio.timeout(_READ):
                holding = await running.holding()
        except (CasaError, TimeoutError) as error:
            # The end doesn't wait for that: what was minted is in the audit as well, since then.
            log.error("What server %r of %s held is not known: %s", name, user.name, _text(error))  # noqa: TRY400
            if name in revocation.told_in_part:
                return
            holding, unseen = None, "what it held last can't be read"
        at_start = running.known_holding()
        if at_start is not None and (holding is None or _tells_less(holding.record, at_start.record)):
            holding = at_start
        if holding is None:
            return
        (revocation.told_in_part if unseen else revocation.told).add(name)
        reason = revocation.entry.reason
        found = to_block(holding.record, datetime.now(UTC))
        credentials = [replace(one, problem=one.problem or unseen) for one in found]
        for which, problem in {(one.credential or "any credential", one.problem) for one in credentials if one.problem}:
            log.error(
                "Of %s of server %r of %s, the events `revoked` may not tell all that must be blocked: %s. The events "
                "`minted` and `renewed` of start %s do.",
                which,
                name,
                user.name,
                problem,
                holding.start_id,
            )
        for one in credentials:
            event = Event(
                Action.REVOKED,
                user.name,
                server=name,
                start_id=holding.start_id,
                credential=one.credential,
                identifiers=one.identifiers,
                expires_at=exact(one.expires_at),
                started_as=running.server.username if running.server.username != user.name else "",
                reason=f"{reason} (This may not be all of it: {one.problem}.)" if one.problem else reason,
                by=revocation.entry.requested_by,
            )
            tell(self._app.tornado_settings, event)

    async def _audit_outside(self, revocation: Revocation) -> None:
        """What others must block that was taken to laptops and CI: nobody can withdraw it there."""
        entry = revocation.entry
        while revocation.outside:
            held = revocation.outside.pop()
            tell(
                self._app.tornado_settings,
                held.event(Action.REVOKED, entry.username, reason=entry.reason, by=entry.requested_by),
            )
            await asyncio.sleep(0)  # there may be a thousand

    # -- the log-in

    async def _end_session(self, revocation: Revocation, user: HubUser | None, *, last: bool) -> str:
        """End the log-in at the provider, and forget it if all else is done (`last`). Returns what is left to do.

        `user`: None if it has been deleted.
        """
        log_ins = self._log_ins
        if log_ins is None:
            return ""
        if user is not None and revocation.refresh_token is None:
            await self._members[user.name].settled()  # it may bring another refresh token
            session = await log_ins.session(user)
            ours = session is not None and session.id == revocation.entry.session_id
            if session is not None and ours and log_ins.is_of_this_provider(session):
                revocation.refresh_token = session.refresh_token
            else:
                revocation.refresh_token = ""
        if revocation.refresh_token:
            try:
                if not await log_ins.issuer.revoke(revocation.refresh_token):
                    log.info(
                        "The identity provider ends no refresh tokens: that of %s expires", revocation.entry.username
                    )
            except OIDCError as error:
                return str(error)
            revocation.refresh_token = ""
        if user is not None and last and await log_ins.forget(user, revocation.entry.session_id):
            # What a request has made that was let in before the first commit, and waited for the provider.
            with committed(self._app.db):
                late = end_tokens(self._app.db, user)
            revocation.tokens += late
        return ""

    # -- the hub

    def _user(self, username: str) -> Any:
        return self._app.users.get(username)


def end_tokens(db: Any, user: HubUser, *, browsers_only: bool = False) -> int:
    """End a user's cookies, OAuth codes and tokens, or of the tokens only those of browsers. The caller commits.
    Returns how many tokens there were.
    """
    user.orm_user.cookie_id = orm.new_token()
    tokens = db.query(orm.APIToken).filter_by(user_id=user.id)
    if browsers_only:
        tokens = tokens.filter(orm.APIToken.client_id != _NO_BROWSER)
    ended = tokens.all()
    for each in [*ended, *db.query(orm.OAuthCode).filter_by(user_id=user.id)]:
        db.delete(each)
    return len(ended)


async def _has_log_in(log_ins: LogIns, user: HubUser, session_id: str) -> bool:
    session = await log_ins.session(user) if user is not None else None
    return session is not None and session.id == session_id


def _tells_less(record: AnyRecord, at_start: AnyRecord) -> bool:
    """Whether more can be read in the record of a server's start than in its newest one."""
    return isinstance(record, Unreadable) and not record.credentials and not isinstance(at_start, Unreadable)


def _text(error: BaseException) -> str:
    """An error as a sentence. Only our own errors are known to hold no secret."""
    if isinstance(error, TimeoutError):
        return "it takes longer than expected"
    return str(error) if isinstance(error, CasaError) else type(error).__name__
