"""What the credentials of somebody's servers are made of, fetched with the person's own access token.

After the membership check, and never for somebody who is refused. What was fetched is kept with the log-in, encrypted
like its tokens, and counts for two thirds of its life. A request is shared by all who want its answer, and it goes on
when nobody waits any more: the next one finds its answer.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TypeAlias

from sqlalchemy.exc import SQLAlchemyError

from casa_hub.credentials.fetching import Answer, Fetch, Fetched, FetchError, Outcomes, Why
from casa_hub.errors import CasaError, CredentialError, without_text
from casa_hub.identity.fetches import Fetches
from casa_hub.identity.session import Kept, Session
from casa_hub.jupyterhub import HubUser
from casa_hub.membership.fetch_outcomes import FetchOutcomes, Trouble
from casa_hub.membership.member import Standing
from casa_hub.membership.recheck import Recheck
from casa_hub.tasks import Background

#: Requests at the same time to each who is asked: for starts, which somebody waits for, and for renewals. So a thousand
#: renewals delay no start, five hundred starts don't drown the provider, and a silent service holds up no other one.
_STARTS, _RENEWALS = 16, 8
#: Seconds that a renewal waits: for a refresh of the access token (30) and the request itself.
_RENEWAL_PATIENCE = 45.0

_LOG_IN = "Log out and in again."
_ITS_PACKAGE = "This is a fault of the credential's package. Tell the operator of this hub; its log says more."
_ITS_LOG = "Tell the operator of this hub; its log says more."

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Asking:
    """One request."""

    user: HubUser
    #: The log-in of whoever it is for.
    session: Session
    #: Of the credential.
    name: str
    fetch: Fetch
    #: Among which other requests.
    room: asyncio.Semaphore


@dataclass(slots=True)
class _LogIn:
    """What is under way with the token of one log-in."""

    #: By the credential's name.
    tasks: dict[str, asyncio.Task[_Outcome]] = field(default_factory=dict)
    #: Fetched and not stored yet.
    new: dict[str, Kept] = field(default_factory=dict)


_Outcome: TypeAlias = Fetched | FetchError


class Fetching:
    """Lives on the hub's event loop. Its users are JupyterHub's."""

    def __init__(self, recheck: Recheck, fetches: Fetches) -> None:
        self._recheck = recheck
        self._fetches = fetches
        self._log_ins = recheck.log_ins
        self._members = recheck.members
        #: By the random id of the log-in: the database may give the number of a deleted user to another person.
        self._under_way: dict[str, _LogIn] = {}
        self._outcomes = FetchOutcomes(self._members.now)
        #: By `Fetch.url`, and whether for starts.
        self._rooms: dict[tuple[str, bool], asyncio.Semaphore] = {}
        self._background = Background()

    async def kept(self, user: HubUser, wanted: Mapping[str, Fetch]) -> dict[str, Fetched]:
        """Of `wanted` (name of a credential -> request) what is kept and has not expired; asks nobody."""
        session = await self._log_ins.session(user)
        return {} if session is None else self._of(session, wanted)

    async def of(
        self,
        user: HubUser,
        wanted: Mapping[str, Fetch],
        *,
        newer_than: Mapping[str, datetime] | None = None,
        say: Callable[[str], None] = lambda _: None,
    ) -> Outcomes:
        """All of `wanted`, or why not. Never raises.

        Where nobody answers, the last one goes on for as long as it lives.

        Args:
            user: JupyterHub's user, whose membership was checked.
            wanted: name of a credential -> request.
            newer_than: for a renewal, name of a credential -> when that was fetched which the server has, perhaps
                without its fraction of a second. None: for a start, which waits `Keeper.fetch_patience` at most.
            say: is told a sentence for people, if somebody has to be asked.
        """
        since = asyncio.get_running_loop().time()  # among many starts, reading the log-in takes seconds, too
        try:
            session = await self._log_ins.session(user)
        except SQLAlchemyError as error:
            log.error("The log-in of %s can't be read (%s)", user.name, type(error).__name__)  # noqa: TRY400
            return dict.fromkeys(wanted, FetchError("the hub's database", "can't be read", _ITS_LOG))
        if session is None:
            problem = CredentialError("access token", "is missing: the hub holds none for this user", _LOG_IN)
            return dict.fromkeys(wanted, problem)
        usable = {
            name: one
            for name, one in self._of(session, wanted).items()
            if newer_than is None or one.at.replace(microsecond=0) > newer_than.get(name, _NEVER)
        }
        now = self._now()
        outcomes: dict[str, Fetched | CredentialError] = {
            name: one for name, one in usable.items() if now < one.counts_until(f"{name} {session.id}")
        }
        left = [name for name in wanted if name not in outcomes]
        if not left:
            return outcomes
        say(f"Asking for {_listed([wanted[name].title for name in left])}")
        is_start = newer_than is None
        tasks = {
            name: self._task(_Asking(user, session, name, wanted[name], self._room(wanted[name], is_start)))
            for name in left
        }
        patience = self._members.settings.fetch_patience if is_start else _RENEWAL_PATIENCE
        left_over = since + patience - asyncio.get_running_loop().time()
        await asyncio.wait(tasks.values(), timeout=max(left_over, 0))
        now = self._now()
        for name, task in tasks.items():
            outcome = _outcome(task, wanted[name], patience)
            silence = isinstance(outcome, FetchError) and outcome.why is Why.OUTAGE
            last = usable.get(name) if silence else None
            outcomes[name] = last if last is not None and last.expires_at > now else outcome
        return outcomes

    def _of(self, session: Session, wanted: Mapping[str, Fetch]) -> dict[str, Fetched]:
        under_way, now = self._under_way.get(session.id), self._now()
        new = {} if under_way is None else under_way.new
        return {
            name: kept.fetched
            for name, kept in {**session.fetched, **new}.items()
            if name in wanted and kept.fingerprint == wanted[name].fingerprint and kept.fetched.expires_at > now
        }

    def _now(self) -> datetime:
        return datetime.fromtimestamp(self._members.now(), UTC)

    def troubles(self) -> Sequence[Trouble]:
        """What can't be fetched now, for the operator."""
        return self._outcomes.troubles()

    # -- one request

    def _room(self, fetch: Fetch, is_start: bool) -> asyncio.Semaphore:
        return self._rooms.setdefault((fetch.url, is_start), asyncio.Semaphore(_STARTS if is_start else _RENEWALS))

    def _task(self, asking: _Asking) -> asyncio.Task[_Outcome]:
        """The request that is under way, or a new one."""
        tasks = self._under_way.setdefault(asking.session.id, _LogIn()).tasks
        if asking.name not in tasks:
            task = asyncio.create_task(self._fetch(asking), name=f"{asking.fetch.title} of {asking.user.name}")
            tasks[asking.name] = self._background.keep(task)
        return tasks[asking.name]

    async def _fetch(self, asking: _Asking) -> _Outcome:
        name, fetch, used = asking.name, asking.fetch, asking.session
        try:
            # The membership is checked in its turn, too: not before, since others may take minutes; and not of all at
            # once, since a restarted hub knows of none, and a thousand renewals may be due.
            async with asking.room:
                used, outcome = await self._ask(asking)
        except FetchError as error:
            outcome = error
        except CasaError as error:
            outcome = FetchError(fetch.title, error.problem, error.remedy)
        except Exception:
            log.exception("%s could not be asked for", fetch.title)
            outcome = FetchError(fetch.title, "an error of the hub", _ITS_LOG)
        finally:
            del self._under_way[asking.session.id].tasks[name]
        self._outcomes.note(name, asking.user.id, outcome)
        if not isinstance(outcome, FetchError):
            self._under_way.setdefault(used.id, _LogIn()).new[name] = Kept(fetch.fingerprint, outcome)
        for session_id in {asking.session.id, used.id}:
            self._store_if_complete(asking.user, session_id)
        return outcome

    def _store_if_complete(self, user: HubUser, session_id: str) -> None:
        """Store what was fetched with a log-in's token, as soon as nothing more is under way: each store is a commit
        of the hub's database.
        """
        log_in = self._under_way.get(session_id, _LogIn())
        if log_in.new and not log_in.tasks:
            self._background.start(self._store(user, session_id, log_in), f"what was fetched for {user.name}")
        self._tidy(session_id, log_in)

    async def _store(self, user: HubUser, session_id: str, log_in: _LogIn) -> None:
        new = dict(log_in.new)
        try:
            await self._log_ins.keep(user, session_id, new)
        finally:
            for name, kept in new.items():
                if log_in.new.get(name) is kept:
                    del log_in.new[name]
            self._tidy(session_id, log_in)

    def _tidy(self, session_id: str, log_in: _LogIn) -> None:
        if not log_in.tasks and not log_in.new and self._under_way.get(session_id) is log_in:
            del self._under_way[session_id]

    async def _ask(self, asking: _Asking) -> tuple[Session, _Outcome]:
        """What was fetched, and with which log-in's token. Raises FetchError: it was not asked for."""
        user = asking.user
        await self._check(asking, self._members.settings.recheck_interval)
        session, outcome = await self._ask_once(asking)
        if not isinstance(outcome, FetchError) or outcome.why is not Why.SIGN_IN:
            return session, outcome
        # The provider may have ended this access token before its time (IAM does at each refresh), and only that.
        newer = await self._session(asking)
        if newer.access_token == session.access_token:
            self._recheck.doubt(user.name)
            await self._check(asking, 0)
            newer = await self._session(asking)
        return (session, outcome) if newer.access_token == session.access_token else await self._ask_once(asking)

    async def _check(self, asking: _Asking, max_age: float) -> None:
        """Ask about the membership, unless somebody did not long ago. Raises FetchError: there is none."""
        standing = await self._recheck.of(asking.user, max_age=max_age, for_server=True)
        self._refuse(asking, standing, standing.session_id)

    async def _session(self, asking: _Asking) -> Session:
        """The log-in of somebody who is a member, as far as is known now. Raises FetchError for any other."""
        user, before = asking.user, asking.session
        session = await self._log_ins.session(user)
        standing = await self._log_ins.known(user)
        self._refuse(asking, standing, "" if session is None else session.id)
        if session is None or not session.access_token or not self._log_ins.is_of_this_provider(session):
            raise _refusal(asking, "there is no log-in")
        if (session.issuer, session.sub) != (before.issuer, before.sub):
            raise _refusal(asking, "somebody else has logged in")
        return session

    def _refuse(self, asking: _Asking, standing: Standing, session_id: str) -> None:
        """Raises FetchError for who may have no server."""
        member = self._members[asking.user.name]
        if not self._members.outcome(member, standing).may_start or member.ending(session_id):
            raise _refusal(asking, standing.reason or "there is no log-in")

    async def _ask_once(self, asking: _Asking) -> tuple[Session, _Outcome]:
        """What an answer means, and with which log-in's token it was had. Raises FetchError: it was not asked for."""
        session = await self._session(asking)
        try:
            reply = await self._fetches.ask(asking.fetch, session.access_token)
        except FetchError as error:
            return session, error
        # Who has left meanwhile gets nothing. The log-in is read again only if there is another one.
        standing = await self._log_ins.known(asking.user)
        self._refuse(asking, standing, session.id)
        if standing.session_id != session.id:
            await self._session(asking)
        return session, self._read(
            asking.fetch, Answer(reply.status, reply.body, self._now(), session.issuer, session.sub)
        )

    def _read(self, fetch: Fetch, answer: Answer) -> _Outcome:
        try:
            fetched = fetch.read(answer)
            if not isinstance(fetched.value, str) or not fetched.at.tzinfo or not fetched.expires_at.tzinfo:
                raise TypeError(fetch.title)  # noqa: TRY301 - the same fault of the same package
        except FetchError as error:
            return error
        except Exception as error:  # noqa: BLE001 - a site's own; its text may hold a secret
            log.error("%s: its answer could not be read: %s", fetch.title, without_text(error))  # noqa: TRY400
            return FetchError(fetch.title, "the answer could not be read", _ITS_PACKAGE)
        if fetched.expires_at <= answer.now:
            return FetchError(fetch.title, "what was fetched has expired already", "Compare the clocks of both sides.")
        return fetched


_NEVER = datetime.min.replace(tzinfo=UTC)


def _refusal(asking: _Asking, why: str) -> FetchError:
    problem = f"your sign-in doesn't count for it: {why}".rstrip(".")
    return FetchError(asking.fetch.title, problem, _LOG_IN, Why.SIGN_IN)


def _outcome(task: asyncio.Task[_Outcome], fetch: Fetch, patience: float) -> _Outcome:
    if not task.done():
        problem = f"there is no answer after {patience:g} seconds"
        return FetchError(fetch.title, problem, "The hub waits for it, and the running server gets it.")
    return task.result()


def _listed(titles: Collection[str]) -> str:
    """For people: "a, b and c"."""
    *first, last = titles
    return f"{', '.join(first)} and {last}" if first else last
