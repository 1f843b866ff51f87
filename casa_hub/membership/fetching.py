"""What the credentials of somebody's servers are made of, fetched with the person's own access token.

After the membership check, and never for somebody who is refused. What was fetched is kept with the log-in, encrypted
like its tokens, and counts for two thirds of its life. A request is shared by all who want its answer, and it goes on
when nobody waits any more: the next one finds its answer.
"""

from __future__ import annotations

import asyncio
import logging
import traceback
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

from casa_hub import metrics
from casa_hub.credentials.fetching import Answer, Fetch, Fetched, FetchError, Outcomes, Why
from casa_hub.errors import CasaError, CredentialError
from casa_hub.identity.fetches import Fetches
from casa_hub.identity.session import Kept, Session
from casa_hub.jupyterhub import HubUser
from casa_hub.membership.recheck import Recheck
from casa_hub.tasks import Background

#: Requests at the same time: for starts, which somebody waits for, and for renewals. So a thousand renewals delay no
#: start, and five hundred starts don't drown the provider.
_STARTS, _RENEWALS = 16, 8
#: Seconds that a renewal waits: for a refresh of the access token (30) and the request itself.
_RENEWAL_PATIENCE = 45.0

_LOG_IN = "Log out and in again."

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Asking:
    """One request."""

    user: HubUser
    #: Of the credential.
    name: str
    fetch: Fetch
    #: Among which other requests.
    room: asyncio.Semaphore


@dataclass(slots=True)
class _Person:
    """What is under way for one of the hub's users."""

    tasks: dict[str, asyncio.Task[Fetched]] = field(default_factory=dict)
    #: Of this log-in, fetched and not stored yet.
    session_id: str = ""
    new: dict[str, Kept] = field(default_factory=dict)


class Fetching:
    """Lives on the hub's event loop. Its users are JupyterHub's."""

    def __init__(self, recheck: Recheck, fetches: Fetches) -> None:
        self._recheck = recheck
        self._fetches = fetches
        self._log_ins = recheck.log_ins
        self._members = recheck.members
        self._people: dict[int, _Person] = {}
        self._for_starts, self._for_renewals = asyncio.Semaphore(_STARTS), asyncio.Semaphore(_RENEWALS)
        self._background = Background()

    async def kept(self, user: HubUser, wanted: Mapping[str, Fetch]) -> dict[str, Fetched]:
        """Of `wanted` (name of a credential -> request) what is kept and has not expired; asks nobody."""
        session = await self._log_ins.session(user)
        return {} if session is None else self._of(user, session, wanted, self._now())

    async def of(
        self,
        user: HubUser,
        wanted: Mapping[str, Fetch],
        *,
        newer_than: Mapping[str, datetime] | None = None,
        say: Callable[[str], None] = lambda _: None,
    ) -> Outcomes:
        """All of `wanted`, or why not. Never raises.

        Args:
            user: JupyterHub's user, whose membership was checked.
            wanted: name of a credential -> request.
            newer_than: for a renewal, name of a credential -> when that was fetched which the server has. None: for a
                start, which waits `Keeper.fetch_patience` at most.
            say: is told a sentence for people, if somebody has to be asked.
        """
        starts, now = newer_than is None, self._now()
        session = await self._log_ins.session(user)
        if session is None:
            problem = CredentialError("access token", "is missing: the hub holds none for this user", _LOG_IN)
            return dict.fromkeys(wanted, problem)
        outcomes: dict[str, Fetched | CredentialError] = {
            name: one
            for name, one in self._of(user, session, wanted, now).items()
            if now < one.counts_until(f"{name} {session.id}")
            and (starts or one.at > (newer_than or {}).get(name, _NEVER))
        }
        left = [name for name in wanted if name not in outcomes]
        if not left:
            return outcomes
        say(f"Asking for {_listed([wanted[name].title for name in left])}")
        room = self._for_starts if starts else self._for_renewals
        tasks = {name: self._task(_Asking(user, name, wanted[name], room), session.id) for name in left}
        patience = self._members.settings.fetch_patience if starts else _RENEWAL_PATIENCE
        await asyncio.wait(tasks.values(), timeout=patience)
        for name, task in tasks.items():
            outcomes[name] = _outcome(task, wanted[name], patience)
        return outcomes

    def _of(self, user: HubUser, session: Session, wanted: Mapping[str, Fetch], now: datetime) -> dict[str, Fetched]:
        person = self._people.get(user.id)
        new = person.new if person is not None and person.session_id == session.id else {}
        return {
            name: kept.fetched
            for name, kept in {**session.fetched, **new}.items()
            if name in wanted and kept.fingerprint == wanted[name].fingerprint and kept.fetched.expires_at > now
        }

    def _now(self) -> datetime:
        return datetime.fromtimestamp(self._members.now(), UTC)

    # -- one request

    def _task(self, asking: _Asking, session_id: str) -> asyncio.Task[Fetched]:
        """The request that is under way, or a new one."""
        user, name = asking.user, asking.name
        person = self._people.setdefault(user.id, _Person())
        if name not in person.tasks:
            if person.session_id != session_id:
                person.session_id, person.new = session_id, {}
            work = self._fetch(asking, person, session_id)
            task = asyncio.create_task(work, name=f"{asking.fetch.title} of {user.name}")
            task.add_done_callback(lambda done: done.cancelled() or done.exception())  # perhaps nobody waits any more
            person.tasks[name] = self._background.keep(task)
        return person.tasks[name]

    async def _fetch(self, asking: _Asking, person: _Person, session_id: str) -> Fetched:
        user, name, fetch = asking.user, asking.name, asking.fetch
        try:
            try:
                fetched = await self._ask(asking)
            except FetchError as error:  # told by whoever wanted it
                metrics.FETCHES.labels(name, error.why.value).inc()
                raise
            metrics.FETCHES.labels(name, "fetched").inc()
            if person.session_id == session_id:
                person.new[name] = Kept(fetch.fingerprint, fetched)
            return fetched
        finally:
            del person.tasks[name]
            if not person.tasks:  # together: each is a commit of the hub's database
                self._background.start(self._store(user, person), f"what was fetched for {user.name}")

    async def _store(self, user: HubUser, person: _Person) -> None:
        new = dict(person.new)
        if new:
            await self._log_ins.keep(user, person.session_id, new)
        for name, kept in new.items():
            if person.new.get(name) is kept:
                del person.new[name]
        if not person.tasks and not person.new and self._people.get(user.id) is person:
            del self._people[user.id]

    async def _ask(self, asking: _Asking) -> Fetched:
        """Raises FetchError."""
        session = await self._member(asking, self._members.settings.recheck_interval)
        try:
            return await self._ask_with(session, asking)
        except FetchError as error:
            if error.why is not Why.SIGN_IN:
                raise
            # The provider may have ended this access token before its time (IAM does at each refresh), and only that.
            self._recheck.doubt(asking.user.name)
            newer = await self._member(asking, 0)
            if newer.access_token == session.access_token:
                raise
            return await self._ask_with(newer, asking)

    async def _member(self, asking: _Asking, max_age: float) -> Session:
        """The log-in of somebody who is a member, with a fresh access token. Raises FetchError."""
        user = asking.user
        standing = await self._recheck.of(user, max_age=max_age, for_server=True)
        member = self._members[user.name]
        refused = not self._members.outcome(member, standing).may_start or member.ending(standing.session_id)
        session = None if refused else await self._log_ins.session(user)
        if session is None or not session.access_token or not self._log_ins.is_of_this_provider(session):
            problem = f"nothing is asked for without a membership: {standing.reason or 'there is no log-in'}"
            raise FetchError(asking.fetch.title, problem.rstrip("."), _LOG_IN, Why.SIGN_IN)
        return session

    async def _ask_with(self, session: Session, asking: _Asking) -> Fetched:
        fetch = asking.fetch
        async with asking.room:
            reply = await self._fetches.ask(fetch, session.access_token)
        now = self._now()
        try:
            fetched = fetch.read(Answer(reply.status, reply.body, now, session.issuer, session.sub))
        except FetchError:
            raise
        except Exception as error:  # noqa: BLE001 - a site's own; its text may hold a secret
            where = traceback.extract_tb(error.__traceback__)[-1]
            log.error("%s: its answer could not be read: %s at %s:%s", fetch.title, type(error).__name__, *where[:2])  # noqa: TRY400
            problem = "the answer could not be read"
            raise FetchError(fetch.title, problem, "Tell the operator of this hub; its log says more.") from None
        if fetched.expires_at <= now:
            raise FetchError(fetch.title, "what was fetched has expired already", "Compare the clocks of both sides.")
        return fetched


_NEVER = datetime.min.replace(tzinfo=UTC)


def _outcome(task: asyncio.Task[Fetched], fetch: Fetch, patience: float) -> Fetched | CredentialError:
    if not task.done():
        problem = f"there is no answer after {patience:g} seconds"
        return FetchError(fetch.title, problem, "The hub waits for it, and the running server gets it.")
    error = task.exception()
    if error is None:
        return task.result()
    if isinstance(error, CredentialError):
        return error
    if isinstance(error, CasaError):
        return FetchError(fetch.title, error.problem, error.remedy)
    log.error("%s could not be asked for", fetch.title, exc_info=error)
    return FetchError(fetch.title, "an error of the hub", "Tell the operator of this hub; its log says more.")


def _listed(titles: Collection[str]) -> str:
    """For people: "a, b and c"."""
    *first, last = titles
    return f"{', '.join(first)} and {last}" if first else last
