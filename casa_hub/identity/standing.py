"""Where a user stands: the one verdict that pages, API, spawns and log-ins share.

One request per user is under way at a time, whoever asks; the others wait for its answer. So no two refreshes race for
one refresh token (a second use of a rotated one ends the whole session at Keycloak), and a hub with 500 open pages asks
no more often than one with a single page.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections import defaultdict
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass, replace
from http import HTTPStatus
from typing import Any

from sqlalchemy.exc import SQLAlchemyError

from casa_hub.database import mended, roll_back
from casa_hub.identity.bindings import Identities, IdentityError, UnknownOwnerError
from casa_hub.identity.errors import OIDCError, cant_say
from casa_hub.identity.membership import Allowed, MalformedClaim, Refused
from casa_hub.identity.oidc import Issuer
from casa_hub.identity.session import Session
from casa_hub.identity.tokens import RefreshedTokenError
from casa_hub.identity.verdicts import Verdict
from casa_hub.keeper.times import Keeper

#: Seconds that a verdict other than "yes" counts without asking again, and a "yes" before a spawn.
FRESH = 30.0
#: Seconds after which a new "yes" is written to the hub's database, at the latest; less where the grace is short.
LAST_YES_SAVED = 600.0

_TAKEN_BACK = "The sign-in was taken back at the identity provider before its time."

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Standing:
    """A verdict on one user."""

    verdict: Verdict
    #: Epoch seconds of the verdict.
    at: float
    #: A sentence for people; "" after a "yes".
    reason: str
    #: Epoch seconds of the last "yes" of this log-in; 0 if there was none.
    last_yes: float
    #: Of the log-in that it is about; "" if there is none.
    session_id: str = ""
    #: What membership said, where it came so far.
    decision: Allowed | Refused | None = None
    #: A "yes" that nobody was asked for: the provider can't be, and the log-in isn't too old.
    aged: bool = False
    #: A "can't say" that is about this hub's registration at the provider.
    our_fault: bool = False
    #: Epoch seconds at which the access token should be replaced; infinite if there is no need or no way.
    due_at: float = math.inf
    #: Epoch seconds since when the provider refuses the refresh token although its end has not come: it was taken back
    #: (account deleted, session or consent revoked). 0 if that isn't so.
    revoked_at: float = 0.0
    #: Whether that was said earlier, and nothing this time: it is asked again soon.
    unheard: bool = False
    #: See `Session.added_groups`.
    added_groups: tuple[str, ...] = ()
    #: Epoch seconds at which the refresh token ends, and at which its person is told so; infinite without a known end.
    sign_in_ends_at: float = math.inf
    warn_at: float = math.inf


@dataclass(slots=True)
class _Inquiry:
    """Finding out about one user, while it is under way."""

    user: Any
    #: What was known when it began. Something else known at its end is of a log-in in between, which wins.
    before: Standing
    #: Time of the event loop when it began.
    since: float
    #: Whether new tokens were had.
    refreshed: bool = False
    #: Whether the provider refused the refresh token.
    refused: bool = False
    #: Of the log-in that is asked about, as in `Standing`.
    last_yes: float = 0.0
    due_at: float = math.inf


class Standings:
    """Keeps and finds out the standing of each user. Lives on the hub's event loop."""

    def __init__(
        self,
        issuer: Issuer,
        identities: Identities,
        keeper: Keeper,
        decide: Callable[[str, Mapping[str, Any], frozenset[str] | None], Allowed | Refused],
        *,
        groups_live: bool,
        clock: Callable[[], float],
        on_yes: Callable[[Any, Allowed, Collection[str]], None],
        on_tokens: Callable[[Any, Standing], Awaitable[None]],
        on_verdict: Callable[[str, Standing], None],
        technical: Collection[str] = (),
    ) -> None:
        """Needs the provider, the bindings of names, the times of memberships, and what follows.

        Args:
            issuer: the identity provider.
            identities: whose name a name is.
            keeper: how long what counts.
            decide: membership of a user name with these claims and granted scopes.
            groups_live: whether userinfo shows a lost group with an old access token.
            clock: epoch seconds.
            on_yes: is called with the hub's user, the decision of every "yes" and the groups that the site added at
                the log-in, to apply groups and admin rights.
            on_tokens: is awaited with the hub's user and standing after new tokens were stored.
            on_verdict: is called with user name and standing at every verdict, also a log-in's.
            technical: names of users who need no log-in; their standing is always "yes".
        """
        self._issuer = issuer
        self._identities = identities
        self._keeper = keeper
        self._decide = decide
        self._groups_live = groups_live
        self._clock = clock
        self._on_yes = on_yes
        self._on_tokens = on_tokens
        self._on_verdict = on_verdict
        self._technical = technical
        self._known: dict[str, Standing] = {}
        self._asking: dict[str, tuple[_Inquiry, asyncio.Task[Standing]]] = {}
        self._saving: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        #: What the hub's database didn't take: a rotated refresh token is nowhere else.
        self._unsaved: dict[str, Session] = {}

    def saving(self, username: str) -> asyncio.Lock:
        """Whoever reads or writes a user's auth state holds this: a log-in and a refresh at the same moment take
        turns. Reading is writing in JupyterHub while crypt keys are rotated.
        """
        return self._saving[username]

    async def session(self, user: Any) -> Session | None:
        """What is stored of a user's last log-in."""
        async with self.saving(user.name):
            stored = await self._stored(user)
        unsaved = self._unsaved.get(user.name)
        return unsaved if unsaved is not None and stored is not None and unsaved.id == stored.id else stored

    async def _stored(self, user: Any) -> Session | None:
        mended(user.db)
        return Session.from_auth_state(await user.get_auth_state())

    def logged_in(self, username: str, session: Session, decision: Allowed) -> None:
        """A log-in is a "yes" of its own."""
        at = session.last_yes
        standing = Standing(Verdict.YES, at, "", at, session.id, decision, due_at=_due_at(session))
        self._learn(username, _with_end(standing, session))

    async def refused(self, user: Any, reason: str, decision: Refused | None = None) -> None:
        """A refused log-in is a "no" for the same person's earlier ones, which may have no way to be asked about."""
        async with self.saving(user.name):
            session = await self._stored(user)
            if session is not None:
                await user.save_auth_state(replace(session, refused=reason).to_auth_state())
        session_id, last_yes = ("", 0.0) if session is None else (session.id, session.last_yes)
        known = self._known.get(user.name)
        if known is not None and known.session_id == session_id:
            last_yes = max(last_yes, known.last_yes)
        self._learn(user.name, Standing(Verdict.NO, self._clock(), reason, last_yes, session_id, decision))

    async def forget(self, user: Any, session_id: str) -> bool:
        """Drop what is stored of a log-in, unless there is a later one. Returns whether none is stored any more."""
        async with self.saving(user.name):
            session = await self._stored(user)
            last = session is None or session.id == session_id
            if last:
                await user.save_auth_state(None)
        known, unsaved = self._known.get(user.name), self._unsaved.get(user.name)
        if known is not None and known.session_id == session_id:
            del self._known[user.name]
        if unsaved is not None and unsaved.id == session_id:
            del self._unsaved[user.name]
        return last

    def last(self, username: str) -> Standing | None:
        """The last verdict, however old; None if nobody asked since the hub's start."""
        return self._known.get(username)

    async def settled(self, username: str) -> None:
        """Wait until nobody asks about this user."""
        if username in self._asking:
            await asyncio.wait({self._asking[username][1]})

    def _learn(self, username: str, standing: Standing) -> None:
        self._known[username] = standing
        self._on_verdict(username, standing)

    def doubt(self, username: str) -> None:
        """Ask again at the next occasion, however fresh the verdict is."""
        known = self._known.get(username)
        if known is not None:
            self._known[username] = replace(known, at=-math.inf)

    async def of(
        self, user: Any, *, max_age: float, patience: float | None = None, for_server: bool = False
    ) -> Standing:
        """The standing of one of the hub's users.

        Args:
            user: JupyterHub's user.
            max_age: seconds that a "yes" counts without asking again; another verdict counts for `FRESH` at most.
            patience: seconds since the asking began that one waits for its end; then "can't say" is returned, while
                the asking goes on for the benefit of the next. It holds while the last "yes" still counts in an
                outage; without that, and with None, one waits as long as the requests may take.
            for_server: whether a server is given the access token, so that a "yes" doesn't count without asking again
                when the token should be replaced.
        """
        known = await self.known(user)
        due = for_server and known.verdict is Verdict.YES and self._clock() >= known.due_at
        if self._counts(known, max_age) and not due:
            return known
        inquiry, task = self._inquire(user, known)
        if patience is None or self._clock() - known.last_yes >= self._keeper.outage_grace:
            await asyncio.wait({task})
            return task.result()
        # Not all of its patience for each of a page's requests: what hangs, hangs for all of them.
        left = inquiry.since + patience - asyncio.get_running_loop().time()
        done, _ = await asyncio.wait({task}, timeout=max(left, 0))
        if done:
            return task.result()
        if known.verdict is Verdict.NO or known.revoked_at:
            return known
        return replace(
            known, verdict=Verdict.CANT_SAY, reason="the identity provider hasn't answered yet", decision=None
        )

    async def known(self, user: Any) -> Standing:
        """The last verdict, or what the hub's database knows before the first; asks nobody."""
        if user.name in self._technical:
            return Standing(Verdict.YES, self._clock(), "", self._clock())
        known = self._known.get(user.name)
        if known is not None:
            return known
        session = await self.session(user)
        unasked = Standing(Verdict.CANT_SAY, -math.inf, "nobody asked yet", 0.0)
        if session is not None:
            unasked = replace(unasked, last_yes=session.last_yes, session_id=session.id, due_at=_due_at(session))
        return self._known.setdefault(user.name, unasked)

    def _counts(self, known: Standing, max_age: float) -> bool:
        # A dead refresh token doesn't come to life again: only the next log-in changes that verdict, unless somebody
        # has a reason to doubt it.
        if known.verdict is Verdict.LOG_IN_AGAIN and not known.unheard:
            return known.at > -math.inf
        # One of the future is of a clock that was put back since, and may be of long ago.
        return 0 <= self._clock() - known.at < (max_age if known.verdict is Verdict.YES else min(FRESH, max_age))

    def _inquire(self, user: Any, known: Standing) -> tuple[_Inquiry, asyncio.Task[Standing]]:
        """The asking that is under way, or a new one."""
        if user.name not in self._asking:
            inquiry = _Inquiry(user, known, asyncio.get_running_loop().time())
            name = user.name  # of now: an administrator may rename the user meanwhile
            task = asyncio.create_task(self._find_out(inquiry), name=f"membership of {name}")
            task.add_done_callback(lambda _: self._asking.pop(name, None))
            self._asking[name] = inquiry, task
        return self._asking[user.name]

    async def _find_out(self, inquiry: _Inquiry) -> Standing:
        user = inquiry.user
        try:
            standing = await self._ask_or_excuse(inquiry)
            newer = self._known.get(user.name)
            if newer is None:
                return self._no_log_in()  # its end was gone through while we asked
            if newer.session_id not in (inquiry.before.session_id, standing.session_id):
                return newer  # somebody logged in while we asked about the log-in before
            if newer is not inquiry.before and newer.verdict is Verdict.NO:
                return newer  # or tried to, and was refused
            silence = standing.aged or standing.verdict in (Verdict.CANT_SAY, Verdict.LOG_IN_AGAIN)
            if newer.verdict is Verdict.NO and silence:
                # An explicit word on this person isn't taken back by silence: a disabled account's session ends, too,
                # and the provider's log-out takes the refresh token with which one could ask.
                standing = replace(newer, at=self._clock())
            self._learn(user.name, standing)
            if isinstance(standing.decision, Allowed):
                self._on_yes(user, standing.decision, standing.added_groups)
            if inquiry.refreshed:
                await self._on_tokens(user, standing)
        except Exception:
            # Whatever this is, it isn't a "yes", and it isn't the user's fault either.
            log.exception("Membership of %s could not be found out", user.name)
            mended(user.db)  # nobody else hears of it who could roll back
            known = self._known.get(user.name)
            if known is None or not (known.session_id or known.verdict is Verdict.NO):
                return self._no_log_in()  # without a "yes" to count from, an outage would be over at once
            standing = _after_an_error(known, self._clock())
            self._learn(user.name, standing)
        return standing

    async def _ask_or_excuse(self, inquiry: _Inquiry) -> Standing:
        """What the provider says, or which verdict follows from its not saying it."""
        session = await self.session(inquiry.user)
        if session is None:
            return self._no_log_in()
        if inquiry.user.name in self._unsaved:
            await self._save(inquiry.user, session)
        last_yes = session.last_yes
        if inquiry.before.session_id == session.id:
            last_yes = max(last_yes, inquiry.before.last_yes)  # not every "yes" is stored
        last_yes = min(last_yes, self._clock())  # see _counts
        inquiry.last_yes, inquiry.due_at = last_yes, _due_at(session)
        if session.issuer.rstrip("/") != self._issuer.client.issuer.rstrip("/"):
            # Its tokens are nothing that the present provider may see.
            reason = "the log-in was at another identity provider than this hub's"
            return Standing(Verdict.LOG_IN_AGAIN, self._clock(), reason, last_yes, session.id)
        problem: Exception
        our_fault = unheard = False
        revoked_at = 0.0
        try:
            return await self._ask(inquiry, session)
        except OIDCError as error:
            problem, verdict, reason = error, error.answer.verdict, error.answer.reason
            our_fault = error.answer.our_fault
            outlived = session.outlived(self._clock(), self._issuer.client.leeway)
            # A token that was taken back does not run out later on.
            if inquiry.refused and (session.revoked_at or not outlived):
                revoked_at = await self._note_revoked(inquiry, session)
                reason = f"{_TAKEN_BACK} {reason}"
            elif verdict is Verdict.CANT_SAY and session.revoked_at and not inquiry.refreshed:
                # Silence gives nothing back: the restart of a hub in an outage does not open its pages again.
                verdict, reason, revoked_at = Verdict.LOG_IN_AGAIN, _TAKEN_BACK, session.revoked_at
                unheard = True
        except MalformedClaim as error:
            problem, verdict, reason = error, Verdict.CANT_SAY, str(error)
        except IdentityError as error:
            # Refused, but nobody's fault: servers aren't stopped for a table that can't be read.
            unknown = isinstance(error, UnknownOwnerError)
            problem, verdict, reason = error, Verdict.CANT_SAY if unknown else Verdict.NO, str(error)
        log.warning("Membership of %s: %s", inquiry.user.name, problem)
        return Standing(
            verdict,
            self._clock(),
            reason,
            last_yes,
            session.id,
            our_fault=our_fault,
            due_at=inquiry.due_at,
            revoked_at=revoked_at,
            unheard=unheard,
        )

    async def _ask(self, inquiry: _Inquiry, session: Session) -> Standing:
        user, now = inquiry.user, self._clock()
        if not session.refresh_token:
            expired = session.expires_at is not None and now >= session.expires_at
            if expired or not self._groups_live:
                return self._aged(inquiry, session, now)
        elif not self._groups_live or session.due(now):
            session = await self._refresh(inquiry, session)
        try:
            claims = await self._claims(inquiry, session)
        except OIDCError as error:
            if error.answer.verdict is not Verdict.LOG_IN_AGAIN or inquiry.refreshed or not session.refresh_token:
                raise
            # Only the access token is dead; the refresh token may have outlived it.
            session = await self._refresh(inquiry, session)
            claims = await self._claims(inquiry, session)
        self._identities.check(user.name, issuer=session.issuer, sub=session.sub)
        decision = self._decide(user.name, claims, session.scope)
        now = self._clock()
        if isinstance(decision, Refused) and decision.claim_withheld:
            # The provider keeps the groups from this client: nobody was said to be out.
            log.error("Membership of %s: %s", user.name, decision.reason)
            told = Standing(Verdict.CANT_SAY, now, decision.reason, inquiry.last_yes, session.id, decision)
            return replace(told, our_fault=True, due_at=inquiry.due_at)
        if isinstance(decision, Refused):
            log.warning("Membership of %s: refused, %s", user.name, decision.reason)
            return Standing(Verdict.NO, now, decision.reason, inquiry.last_yes, session.id, decision)
        saved_for = min(LAST_YES_SAVED, self._keeper.outage_grace / 10)
        if session.refused or session.revoked_at or not 0 <= now - session.last_yes <= saved_for:
            await self._save(user, replace(session, last_yes=now, claims=claims, refused="", revoked_at=0.0))
        return _with_end(Standing(Verdict.YES, now, "", now, session.id, decision, due_at=inquiry.due_at), session)

    async def _claims(self, inquiry: _Inquiry, session: Session) -> Mapping[str, Any]:
        try:
            return await self._issuer.userinfo(session.access_token, sub=session.sub)
        except OIDCError as error:
            if not (error.answer.unexplained and inquiry.refreshed):
                raise
            # Of a token that is a moment old this is userinfo's own fault, and says nothing of the person.
            raise cant_say(error.thing, "it refuses a new access token and does not say why") from error

    def _no_log_in(self) -> Standing:
        return Standing(Verdict.LOG_IN_AGAIN, self._clock(), "no log-in of this user is stored", 0.0)

    def _aged(self, inquiry: _Inquiry, session: Session, now: float) -> Standing:
        """Where the provider can't be asked, the log-in's "yes" counts for a time, or until a "no" at a later one."""
        if session.refused:
            return Standing(Verdict.NO, now, session.refused, inquiry.last_yes, session.id)
        if session.revoked_at:  # a log-out at the provider has dropped the refresh token since then
            standing = Standing(Verdict.LOG_IN_AGAIN, now, _TAKEN_BACK, inquiry.last_yes, session.id)
            return replace(standing, revoked_at=session.revoked_at)
        # The rules are the operator's, who may have changed them since; only the claims are as old as the log-in. A
        # site's hook may have taken some away: what isn't there is no "no".
        claims = session.claims if isinstance(session.claims, Mapping) else {}
        decision = self._decide(inquiry.user.name, claims, session.scope)
        if isinstance(decision, Refused) and not decision.claim_missing:
            return Standing(Verdict.NO, now, decision.reason, inquiry.last_yes, session.id, decision)
        if now - inquiry.last_yes < self._keeper.membership_max_age:
            return Standing(Verdict.YES, now, "", inquiry.last_yes, session.id, aged=True)
        reason = "the log-in is too old and the identity provider gave no refresh token"
        return Standing(Verdict.LOG_IN_AGAIN, now, reason, inquiry.last_yes, session.id)

    async def _refresh(self, inquiry: _Inquiry, session: Session) -> Session:
        """New tokens, stored before anything else is done with them: the old refresh token may be dead by now.

        A hub that dies between the provider's answer and the store has lost a rotated refresh token; no order of steps
        can prevent that, as the provider has ended the old one before it answers (RFC 6749, 6; some providers forgive
        a second use for some seconds). The hub that comes after it hears a refusal before the token's end, as if the
        sign-in had been taken back: pages ask for the log-in, what runs runs on for `Keeper.revoked_grace`, and with a
        log-in all is as before.
        """
        try:
            tokens = await self._issuer.refresh(session.refresh_token, sub=session.sub)
        except RefreshedTokenError as error:
            # The access token may be another person's; the refresh token may be the only one that is alive.
            kept = replace(session, refresh_token=error.tokens.refresh_token or session.refresh_token)
            await self._save(inquiry.user, kept)
            raise
        except OIDCError as error:
            inquiry.refused = error.answer.verdict is Verdict.LOG_IN_AGAIN
            if error.answer.status is not None and error.answer.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
                await self._hear_of_account(session)
            raise
        session = session.refreshed(tokens)
        await self._save(inquiry.user, session)
        inquiry.refreshed, inquiry.due_at = True, _due_at(session)
        return session

    async def _hear_of_account(self, session: Session) -> None:
        """Ask userinfo where a refresh fails at the provider: it may know that the account is gone.

        INDIGO IAM answers 500 to each refresh of an account that was deleted while one was under way. No other word of
        userinfo counts: the access token may hold groups of long ago.

        Raises:
            OIDCError: the provider's "no".
        """
        if session.expires_at is not None and self._clock() >= session.expires_at:
            return
        try:
            await self._issuer.userinfo(session.access_token, sub=session.sub)
        except OIDCError as error:
            if error.answer.verdict is Verdict.NO:
                raise

    async def _note_revoked(self, inquiry: _Inquiry, session: Session) -> float:
        """Since when the refresh token is taken back, epoch seconds; stored, for a restart must not begin it anew."""
        now = self._clock()
        before = inquiry.before.revoked_at if inquiry.before.session_id == session.id else 0.0
        since = min(session.revoked_at or before or now, now)  # a clock that was put back gives no more time
        if since != session.revoked_at:
            try:
                await self._save(inquiry.user, replace(session, revoked_at=since))
            except SQLAlchemyError as error:
                name = type(error).__name__
                log.error("When the sign-in of %s was taken back can't be stored (%s)", inquiry.user.name, name)  # noqa: TRY400
        return since

    async def _save(self, user: Any, session: Session) -> None:
        try:
            async with self.saving(user.name):
                stored = await self._stored(user)
                if stored is not None and stored.id == session.id:
                    # A site may have changed its own part since this session was read.
                    await user.save_auth_state(replace(session, others=stored.others).to_auth_state())
                else:
                    log.info("Tokens of an earlier log-in of %s are dropped: there is a newer one", user.name)
        except SQLAlchemyError:
            roll_back(user.db)  # or else nobody could use the hub's session any more
            self._unsaved[user.name] = session
            raise
        self._unsaved.pop(user.name, None)


def _after_an_error(known: Standing, now: float) -> Standing:
    """What was known, after an error of the hub: an explicit word isn't taken back by our own fault either."""
    if known.verdict is Verdict.NO:
        return replace(known, at=now)
    if known.revoked_at:
        return replace(known, at=now, unheard=True)
    return replace(known, at=now, verdict=Verdict.CANT_SAY, reason="an error of the hub", decision=None)


def _with_end(standing: Standing, session: Session) -> Standing:
    """A "yes" with the end of the sign-in that it came of, and the groups that the site added then."""
    standing = replace(standing, added_groups=session.added_groups)
    if session.refresh_expires_at is None or not session.refresh_token:
        return standing
    return replace(standing, sign_in_ends_at=session.refresh_expires_at, warn_at=session.warn_at)


def _due_at(session: Session) -> float:
    """When a session's access token should be replaced. One whose life isn't known is replaced at each asking."""
    return math.inf if not session.refresh_token or session.due_at is None else session.due_at
