"""Where a user stands: the one verdict that pages, API, spawns and log-ins share.

One request per user is under way at a time, whoever asks; the others wait for its answer. So no two refreshes race for
one refresh token (a second use of a rotated one ends the whole session at Keycloak), and a hub with 500 open pages asks
no more often than one with a single page.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import replace
from http import HTTPStatus
from typing import Any

from sqlalchemy.exc import SQLAlchemyError

from casa_hub import metrics
from casa_hub.database import mended
from casa_hub.identity.errors import OIDCError, cant_say
from casa_hub.identity.session import Session
from casa_hub.identity.tokens import RefreshedTokenError
from casa_hub.identity.verdicts import Verdict
from casa_hub.jupyterhub import HubUser
from casa_hub.membership.groups import MalformedClaim
from casa_hub.membership.log_ins import LogIns, due_at
from casa_hub.membership.member import Inquiry, Member, Standing
from casa_hub.membership.policy import Allowed, Refused
from casa_hub.membership.usernames import Identities, IdentityError, UnknownOwnerError

#: Seconds for which a verdict counts without asking again: any but "yes"; before a spawn "yes", too.
FRESH = 30.0
#: Seconds after which a new "yes" is written to the hub's database, at the latest; less where the grace is short.
LAST_YES_SAVED = 600.0

_TAKEN_BACK = "The sign-in was taken back at the identity provider before its time."

log = logging.getLogger(__name__)

# Each verdict is counted from the hub's start, at 0: else Prometheus would not count the first one.
for _verdict in Verdict:
    metrics.VERDICTS.labels(_verdict)


class Recheck:
    """Finds out where each person stands. Lives on the hub's event loop."""

    def __init__(
        self,
        log_ins: LogIns,
        identities: Identities,
        decide: Callable[[str, Mapping[str, Any], frozenset[str] | None], Allowed | Refused],
        *,
        groups_live: bool,
        on_yes: Callable[[Any, Allowed, Collection[str]], None],
    ) -> None:
        """Needs the log-ins, the bindings of names, and what follows.

        Args:
            log_ins: what is stored of them, and the provider.
            identities: whose name a name is.
            decide: membership of a user name with these claims and granted scopes.
            groups_live: whether userinfo shows a lost group with an old access token.
            on_yes: is called with the hub's user, the decision of every "yes" and the groups that the site added at
                the log-in, to apply groups and admin rights.
        """
        self.log_ins = log_ins
        self.members = log_ins.members
        self._issuer = log_ins.issuer
        self._identities = identities
        self._decide = decide
        self._groups_live = groups_live
        self._on_yes = on_yes
        self._settings = self.members.settings
        #: Is called at every verdict, also a log-in's.
        self.on_verdict: Callable[[Member], None] = lambda _: None
        #: Is called with the user's name after a log-in.
        self.on_log_in: Callable[[str], None] = lambda _: None
        #: Is awaited after new tokens were stored, unless they came with a "no".
        self.on_tokens: Callable[[HubUser], Awaitable[None]] = lambda _: asyncio.sleep(0)

    def logged_in(self, username: str, session: Session, decision: Allowed) -> None:
        """A log-in is a "yes" of its own."""
        at = session.last_yes
        standing = Standing(Verdict.YES, at, "", at, session.id, decision, due_at=due_at(session))
        self._learn(self.members[username], _with_end(standing, session))
        self.on_log_in(username)

    async def refused(self, user: HubUser, reason: str, decision: Refused | None = None) -> None:
        """A refused log-in is a "no" for the person's earlier log-ins, too: the provider may offer no way to ask."""
        member = self.members[user.name]
        async with member.saving:
            session = await self.log_ins.stored(user)
            if session is not None:
                await user.save_auth_state(replace(session, refused=reason).to_auth_state())
        session_id, last_yes = ("", 0.0) if session is None else (session.id, session.last_yes)
        known = member.standing
        if known is not None and known.session_id == session_id:
            last_yes = max(last_yes, known.last_yes)
        self._learn(member, Standing(Verdict.NO, self.members.now(), reason, last_yes, session_id, decision))

    def _learn(self, member: Member, standing: Standing) -> None:
        member.standing = standing
        metrics.VERDICTS.labels(standing.verdict).inc()
        self.on_verdict(member)

    def doubt(self, username: str) -> None:
        """Ask again at the next occasion, however fresh the verdict is."""
        member = self.members.get(username)
        if member is not None and member.standing is not None:
            member.standing = replace(member.standing, at=-math.inf)

    async def of(
        self, user: HubUser, *, max_age: float, patience: float | None = None, for_server: bool = False
    ) -> Standing:
        """The standing of one of the hub's users.

        Args:
            user: JupyterHub's user.
            max_age: seconds that a "yes" counts without asking again; another verdict counts for `FRESH` at most.
            patience: seconds to wait for an answer, counted from when the asking began; then "can't say" is returned,
                and the asking goes on. Only while the last "yes" is within `outage_grace`; otherwise, or with None,
                wait for the answer.
            for_server: whether a server is given the access token, so that a "yes" doesn't count without asking again
                when the token should be replaced.
        """
        known = await self.log_ins.known(user)
        due = for_server and known.verdict is Verdict.YES and self.members.now() >= known.due_at
        if self._counts(known, max_age) and not due:
            return known
        inquiry = self._inquire(user, known)
        if patience is None or self.members.now() - known.last_yes >= self._settings.outage_grace:
            await asyncio.wait({inquiry.task})
            return inquiry.task.result()
        # Not all of its patience for each of a page's requests: what hangs, hangs for all of them.
        left = inquiry.since + patience - asyncio.get_running_loop().time()
        done, _ = await asyncio.wait({inquiry.task}, timeout=max(left, 0))
        if done:
            return inquiry.task.result()
        if known.verdict is Verdict.NO or known.revoked_at:
            return known
        return replace(
            known, verdict=Verdict.CANT_SAY, reason="the identity provider hasn't answered yet", decision=None
        )

    def _counts(self, known: Standing, max_age: float) -> bool:
        # A dead refresh token doesn't come to life again: only the next log-in changes that verdict, unless somebody
        # has a reason to doubt it.
        if known.verdict is Verdict.LOG_IN_AGAIN and not known.unheard:
            return known.at > -math.inf
        # A verdict from the future was dated before the clock was put back; it may be old.
        return 0 <= self.members.now() - known.at < (max_age if known.verdict is Verdict.YES else min(FRESH, max_age))

    def _inquire(self, user: HubUser, known: Standing) -> Inquiry:
        """The asking that is under way, or a new one."""
        member = self.members[user.name]
        if member.inquiry is None:
            inquiry = member.inquiry = Inquiry(user, known, asyncio.get_running_loop().time())
            inquiry.task = asyncio.create_task(self._find_out(inquiry), name=f"membership of {user.name}")
            inquiry.task.add_done_callback(lambda _: setattr(member, "inquiry", None))
        return member.inquiry

    async def _find_out(self, inquiry: Inquiry) -> Standing:
        user = inquiry.user
        try:
            standing = await self._ask_or_excuse(inquiry)
            member = self.members[user.name]  # an administrator may have renamed the user meanwhile
            newer = member.standing
            if newer is None:
                return self._no_log_in()  # its end was gone through while we asked
            if newer.session_id not in (inquiry.before.session_id, standing.session_id):
                return newer  # somebody logged in while we asked about the log-in before
            if newer is not inquiry.before and newer.verdict is Verdict.NO:
                return newer  # or tried to, and was refused
            silence = standing.aged or standing.verdict in (Verdict.CANT_SAY, Verdict.LOG_IN_AGAIN)
            if newer.verdict is Verdict.NO and silence:
                # Silence takes back no explicit "no": the refresh token of a disabled account is dead as well, so
                # nobody could ask.
                standing = replace(newer, at=self.members.now())
            self._learn(member, standing)
            if isinstance(standing.decision, Allowed):
                self._on_yes(user, standing.decision, standing.added_groups)
            if inquiry.refreshed and member.effective is not Verdict.NO:
                await self.on_tokens(user)
        except Exception:
            # Whatever this is, it isn't a "yes", and it isn't the user's fault either.
            log.exception("Membership of %s could not be found out", user.name)
            mended(user.db)  # nobody else hears of it who could roll back
            member = self.members[user.name]
            known = member.standing
            if known is None or not (known.session_id or known.verdict is Verdict.NO):
                return self._no_log_in()  # without a "yes" to count from, an outage would be over at once
            standing = _after_an_error(known, self.members.now())
            self._learn(member, standing)
        return standing

    async def _ask_or_excuse(self, inquiry: Inquiry) -> Standing:
        """What the provider says, or which verdict follows from its not saying it."""
        session = await self.log_ins.session(inquiry.user)
        if session is None:
            return self._no_log_in()
        if self.members[inquiry.user.name].unsaved is not None:
            await self.log_ins.save(inquiry.user, session)
        last_yes = session.last_yes
        if inquiry.before.session_id == session.id:
            last_yes = max(last_yes, inquiry.before.last_yes)  # not every "yes" is stored
        last_yes = min(last_yes, self.members.now())  # see _counts
        inquiry.last_yes, inquiry.due_at = last_yes, due_at(session)
        if not self.log_ins.is_of_this_provider(session):
            reason = "the log-in was at another identity provider than this hub's"
            return Standing(Verdict.LOG_IN_AGAIN, self.members.now(), reason, last_yes, session.id)
        problem: Exception
        our_fault = unheard = False
        revoked_at = 0.0
        try:
            return await self._ask(inquiry, session)
        except OIDCError as error:
            problem, verdict, reason = error, error.answer.verdict, error.answer.reason
            our_fault = error.answer.our_fault
            outlived = session.outlived(self.members.now(), self._issuer.client.leeway)
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
            self.members.now(),
            reason,
            last_yes,
            session.id,
            our_fault=our_fault,
            due_at=inquiry.due_at,
            revoked_at=revoked_at,
            unheard=unheard,
        )

    async def _ask(self, inquiry: Inquiry, session: Session) -> Standing:
        user, now = inquiry.user, self.members.now()
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
        now = self.members.now()
        if isinstance(decision, Refused) and decision.claim_withheld:
            # The provider keeps the groups from this client: nobody was said to be out.
            log.error("Membership of %s: %s", user.name, decision.reason)
            told = Standing(Verdict.CANT_SAY, now, decision.reason, inquiry.last_yes, session.id, decision)
            return replace(told, our_fault=True, due_at=inquiry.due_at)
        if isinstance(decision, Refused):
            log.warning("Membership of %s: refused, %s", user.name, decision.reason)
            return Standing(Verdict.NO, now, decision.reason, inquiry.last_yes, session.id, decision)
        saved_for = min(LAST_YES_SAVED, self._settings.outage_grace / 10)
        if session.refused or session.revoked_at or not 0 <= now - session.last_yes <= saved_for:
            await self.log_ins.save(user, replace(session, last_yes=now, claims=claims, refused="", revoked_at=0.0))
        return _with_end(Standing(Verdict.YES, now, "", now, session.id, decision, due_at=inquiry.due_at), session)

    async def _claims(self, inquiry: Inquiry, session: Session) -> Mapping[str, Any]:
        try:
            return await self._issuer.userinfo(session.access_token, sub=session.sub)
        except OIDCError as error:
            if not (error.answer.unexplained and inquiry.refreshed):
                raise
            # Of a token that is a moment old this is userinfo's own fault, and says nothing of the person.
            raise cant_say(error.thing, "it refuses a new access token and does not say why") from error

    def _no_log_in(self) -> Standing:
        return Standing(Verdict.LOG_IN_AGAIN, self.members.now(), "no log-in of this user is stored", 0.0)

    def _aged(self, inquiry: Inquiry, session: Session, now: float) -> Standing:
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
        if now - inquiry.last_yes < self._settings.membership_max_age:
            return Standing(Verdict.YES, now, "", inquiry.last_yes, session.id, aged=True)
        reason = "the log-in is too old and the identity provider gave no refresh token"
        return Standing(Verdict.LOG_IN_AGAIN, now, reason, inquiry.last_yes, session.id)

    async def _refresh(self, inquiry: Inquiry, session: Session) -> Session:
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
            await self.log_ins.save(inquiry.user, kept)
            raise
        except OIDCError as error:
            inquiry.refused = error.answer.verdict is Verdict.LOG_IN_AGAIN
            if error.answer.status is not None and error.answer.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
                await self._hear_of_account(session)
            raise
        session = session.refreshed(tokens)
        await self.log_ins.save(inquiry.user, session)
        inquiry.refreshed, inquiry.due_at = True, due_at(session)
        return session

    async def _hear_of_account(self, session: Session) -> None:
        """Ask userinfo where a refresh fails at the provider. Raises OIDCError if it says that the account is gone.

        INDIGO IAM answers 500 to each refresh of an account that was deleted while one was under way. No other word of
        userinfo counts: the access token may hold groups of long ago.
        """
        if session.expires_at is not None and self.members.now() >= session.expires_at:
            return
        try:
            await self._issuer.userinfo(session.access_token, sub=session.sub)
        except OIDCError as error:
            if error.answer.verdict is Verdict.NO:
                raise

    async def _note_revoked(self, inquiry: Inquiry, session: Session) -> float:
        """Since when the refresh token is taken back, epoch seconds; stored, since a restart begins no new grace."""
        now = self.members.now()
        before = inquiry.before.revoked_at if inquiry.before.session_id == session.id else 0.0
        since = min(session.revoked_at or before or now, now)  # a clock that was put back gives no more time
        if since != session.revoked_at:
            try:
                await self.log_ins.save(inquiry.user, replace(session, revoked_at=since))
            except SQLAlchemyError as error:
                name = type(error).__name__
                log.error("When the sign-in of %s was taken back can't be stored (%s)", inquiry.user.name, name)  # noqa: TRY400
        return since


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
