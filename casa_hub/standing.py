"""Where a user stands: the one verdict that pages, API, spawns and log-ins share.

One request per user is under way at a time, whoever asks; the others wait for its answer. So no two refreshes race for
one refresh token (a second use of a rotated one ends the whole session at Keycloak), and a hub with 500 open pages asks
no more often than one with a single page.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from casa_hub.identities import Identities, IdentityError
from casa_hub.membership import Allowed, MalformedClaim, Refused
from casa_hub.oidc import Issuer, OIDCError, RefreshedTokenError
from casa_hub.session import Session
from casa_hub.verdicts import Verdict

#: Seconds that a verdict counts without asking again.
FRESH = 30.0
#: Seconds after which a new "yes" is written to the hub's database though no token changed.
LAST_YES_SAVED = 600.0

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


class Standings:
    """Keeps and finds out the standing of each user. Lives on the hub's event loop."""

    def __init__(
        self,
        issuer: Issuer,
        identities: Identities,
        decide: Callable[[str, Mapping[str, Any], frozenset[str] | None], Allowed | Refused],
        *,
        groups_live: bool,
        membership_max_age: Callable[[], float],
        clock: Callable[[], float],
        on_yes: Callable[[Any, Allowed], None],
        on_tokens: Callable[[Any], Awaitable[None]],
    ) -> None:
        """Needs the provider, the bindings of names, and:

        Args:
            issuer: the identity provider.
            identities: whose name a name is.
            decide: membership of a user name with these claims and granted scopes.
            groups_live: whether userinfo shows a lost group with an old access token.
            membership_max_age: seconds that a "yes" counts where the provider can't be asked again.
            clock: epoch seconds.
            on_yes: is called with the hub's user and the decision of every "yes", to apply groups and admin rights.
            on_tokens: is awaited with the hub's user after new tokens were stored and the membership confirmed.
        """
        self._issuer = issuer
        self._identities = identities
        self._decide = decide
        self._groups_live = groups_live
        self._membership_max_age = membership_max_age
        self._clock = clock
        self._on_yes = on_yes
        self._on_tokens = on_tokens
        self._known: dict[str, Standing] = {}
        self._asking: dict[str, asyncio.Task[Standing]] = {}
        self._saving: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    def saving(self, username: str) -> asyncio.Lock:
        """Whoever writes a user's auth state holds this: a log-in and a refresh at the same moment take turns."""
        return self._saving[username]

    def logged_in(self, username: str, session: Session, decision: Allowed) -> None:
        """A log-in is a "yes" of its own."""
        self._known[username] = Standing(Verdict.YES, session.last_yes, "", session.last_yes, session.id, decision)

    async def of(self, user: Any, *, patience: float | None) -> Standing:
        """The standing of one of the hub's users, asked for if the known one is older than `FRESH`.

        Args:
            user: JupyterHub's user.
            patience: seconds to wait for an answer; then "can't say" is returned, while the asking goes on for the
                benefit of the next. None waits as long as the requests may take.
        """
        known = self._known.get(user.name)
        if known is not None and self._counts(known):
            return known
        task = self._asking.get(user.name)
        if task is None:
            task = asyncio.create_task(self._find_out(user), name=f"membership of {user.name}")
            self._asking[user.name] = task
            task.add_done_callback(lambda _: self._asking.pop(user.name, None))
        done, _ = await asyncio.wait({task}, timeout=patience)
        if done:
            return task.result()
        last_yes = known.last_yes if known is not None else await self._saved_yes(user)
        return Standing(Verdict.CANT_SAY, self._clock(), "the identity provider hasn't answered yet", last_yes)

    def _counts(self, known: Standing) -> bool:
        # A dead refresh token doesn't come to life again: only the next log-in changes that verdict.
        return known.verdict is Verdict.LOG_IN_AGAIN or self._clock() - known.at < FRESH

    async def _saved_yes(self, user: Any) -> float:
        session = Session.from_auth_state(await user.get_auth_state())
        return session.last_yes if session is not None else 0.0

    async def _find_out(self, user: Any) -> Standing:
        before = self._known.get(user.name)
        session = Session.from_auth_state(await user.get_auth_state())
        if session is None:
            standing = Standing(Verdict.LOG_IN_AGAIN, self._clock(), "no log-in of this user is stored", 0.0)
        else:
            standing = await self._ask_or_excuse(user, session)
        if self._known.get(user.name) is not before:
            # Somebody logged in while we asked about the log-in before: the newer one wins.
            return self._known[user.name]
        self._known[user.name] = standing
        return standing

    async def _ask_or_excuse(self, user: Any, session: Session) -> Standing:
        """What the provider says, or which verdict follows from its not saying it."""
        try:
            return await self._ask(user, session)
        except OIDCError as error:
            log.warning("Membership of %s: %s", user.name, error)
            verdict, reason = error.answer.verdict, error.answer.reason
        except MalformedClaim as error:
            log.warning("Membership of %s: %s", user.name, error)
            verdict, reason = Verdict.CANT_SAY, str(error)
        except IdentityError as error:
            log.warning("Membership of %s: %s", user.name, error)
            verdict, reason = Verdict.NO, str(error)
        except Exception:
            # Whatever this is, it isn't a "yes", and it isn't the user's fault either.
            log.exception("Membership of %s could not be found out", user.name)
            verdict, reason = Verdict.CANT_SAY, "an error of the hub"
        return Standing(verdict, self._clock(), reason, session.last_yes, session.id)

    async def _ask(self, user: Any, session: Session) -> Standing:
        before = session
        now = self._clock()
        if not session.refresh_token and not self._groups_live:
            return self._aged(session, now)
        if session.refresh_token and (not self._groups_live or session.due(now)):
            session = await self._refresh(user, session)
        elif session.expires_at is not None and now >= session.expires_at:
            return self._aged(session, now)
        claims = await self._issuer.userinfo(session.access_token, sub=session.sub)
        self._identities.check(user.name, issuer=session.issuer, sub=session.sub, bind=True)
        decision = self._decide(user.name, claims, session.scope)
        now = self._clock()
        if isinstance(decision, Refused):
            log.warning("Membership of %s: refused, %s", user.name, decision.reason)
            return Standing(Verdict.NO, now, decision.reason, session.last_yes, session.id, decision)
        renewed = session is not before
        if renewed or now - session.last_yes > LAST_YES_SAVED:
            session = replace(session, last_yes=now, claims=claims)
            await self._save(user, session)
        self._on_yes(user, decision)
        if renewed:
            await self._on_tokens(user)
        return Standing(Verdict.YES, now, "", now, session.id, decision)

    def _aged(self, session: Session, now: float) -> Standing:
        """Where the provider can't be asked, the log-in's "yes" counts for a time."""
        if now - session.last_yes < self._membership_max_age():
            return Standing(Verdict.YES, now, "", session.last_yes, session.id)
        reason = "the log-in is too old and the identity provider gave no refresh token"
        return Standing(Verdict.LOG_IN_AGAIN, now, reason, session.last_yes, session.id)

    async def _refresh(self, user: Any, session: Session) -> Session:
        """New tokens, stored before anything else is done with them: the old refresh token may be dead by now."""
        try:
            tokens = await self._issuer.refresh(session.refresh_token, sub=session.sub)
        except RefreshedTokenError as error:
            await self._save(user, session.refreshed(error.tokens))
            raise
        session = session.refreshed(tokens)
        await self._save(user, session)
        return session

    async def _save(self, user: Any, session: Session) -> None:
        async with self.saving(user.name):
            stored = Session.from_auth_state(await user.get_auth_state())
            if stored is not None and stored.id == session.id:
                await user.save_auth_state(session.to_auth_state())
            else:
                log.info("Tokens of an earlier log-in of %s are dropped: there is a newer one", user.name)
