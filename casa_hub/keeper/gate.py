"""Between a "no" of the identity provider and what can't be undone: the shell around `holdback`.

A sign-in that was taken back is weighed as a "no" is: a provider that has lost its sessions takes back everybody's at
once. What is said here of a "no" holds for it, but that access goes on for `Keeper.revoked_grace`.

A "no" refuses pages, API and spawns at once. Before servers are stopped and tokens deleted, all the others whose word
is older are asked, as fast as a provider and the hub's database can take it; if too many are out as well, all of them
are held back: that is treated as "can't say" until they say "yes" again, the grace ends, or the operator confirms it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Any

from casa_hub import metrics
from casa_hub.audit import Action, Event, tell
from casa_hub.identity.membership import Refused
from casa_hub.identity.standing import Standing
from casa_hub.identity.verdicts import Verdict
from casa_hub.keeper.departures import Departures
from casa_hub.keeper.holdback import Holdback, Ruling
from casa_hub.keeper.outcome import Access, Outcome, outcome
from casa_hub.keeper.times import Keeper, now_of
from casa_hub.keeper.watched import watched
from casa_hub.tasks import Background

#: Seconds for which a "no" waits for the others, at most; with what follows it is over in 30.
WAIT = 20.0
#: Others who are asked in a second, at most; and users whose access begins to end: each is a commit.
RATE = 25.0

log = logging.getLogger(__name__)


class Gate:
    """Lives on the hub's event loop."""

    def __init__(self, app: Any, keeper: Keeper, departures: Departures) -> None:
        self._app = app
        self._keeper = keeper
        self._departures = departures
        self._holdback = Holdback(keeper.recheck_interval)
        self._weighing: asyncio.Task[None] | None = None
        self._background = Background()
        #: Users about whom the provider refuses to speak with this hub.
        self._unheard_of: set[str] = set()
        #: Whether the operator was told that this is so for everybody.
        self._unheard_alarm = False
        #: Users whose "no" has taken effect, and whose turn to leave hasn't come yet.
        self._leaving: set[str] = set()

    # -- for the authenticator and the rounds

    def heard(self, username: str, standing: Standing) -> None:
        """Of every verdict."""
        if standing.verdict is Verdict.NO or standing.revoked_at:
            self._no(username, standing)
        elif standing.verdict is Verdict.YES:
            held = username in self._holdback.held
            self._holdback.drop(username)
            if held and not self._holdback.held:
                log.warning('No "no" is held back any more')
        self._our_fault(username, standing)
        self._count()

    def holds(self, username: str) -> bool:
        """Whether this user's "no" is held back."""
        return username in self._holdback.held

    def waits(self, username: str) -> bool:
        """Whether this user's "no" is still weighed."""
        return username in self._holdback.new

    def effective(self, username: str, standing: Standing) -> Verdict:
        """The verdict as it counts: a "no" that is held back is "can't say"."""
        return Verdict.CANT_SAY if standing.verdict is Verdict.NO and self.holds(username) else standing.verdict

    def outcome(self, username: str, standing: Standing, *, noticed_at: float = 0.0) -> Outcome:
        """What follows for this user now; `noticed_at` as in `casa_hub.keeper.outcome.outcome`."""
        held = self.holds(username)
        return outcome(standing, self._keeper, now_of(self._app), held_back=held, noticed_at=noticed_at)

    def release(self, username: str) -> None:
        """What becomes of this user is decided elsewhere."""
        self._holdback.drop(username)
        self._unheard_of.discard(username)
        self._count()

    @property
    def open_cases(self) -> set[str]:
        """Who must be asked about though nothing of theirs runs any more."""
        return self._holdback.held.keys() | self._unheard_of

    # -- for operators

    def held(self) -> list[tuple[str, str, float]]:
        """User name, reason and since when (epoch seconds) of each "no" that is held back."""
        return [(name, self._reason(name), since) for name, since in sorted(self._holdback.held.items())]

    def client_refused(self) -> list[tuple[str, str]]:
        """User name and reason of each about whom the provider refuses to speak with this hub."""
        return [(name, self._reason(name)) for name in sorted(self._unheard_of)]

    def confirm(self, by: str = "") -> list[str]:
        """What is held back is true: the access of these users ends, from now on. Returns their names."""
        names = sorted(self._holdback.confirm())
        for name in names:
            confirmed = Event(Action.CONFIRMED, name, reason=self._reason(name), by=by)
            tell(self._app.tornado_settings, confirmed)
        self._depart(names, by=by, confirmed=True)
        self._count()
        return names

    # -- weighing

    def _no(self, username: str, standing: Standing) -> None:
        user = self._app.users.get(username)
        if user is None or username in self._leaving or self._departures.ending(username, standing.session_id):
            return
        if not self._departures.has_any(user):
            return
        now = now_of(self._app)
        idle = not user.active and not user.api_tokens
        if idle and standing.revoked_at:
            return  # nothing of theirs runs, and a page asks for the log-in
        if idle and now - standing.last_yes >= self._keeper.outage_grace:
            # Somebody who left long ago opens an old page. To hold that back spares nothing, and if a whole class does
            # so on one morning, it says nothing of who is out now.
            self._depart([username])
            return
        if not self._holdback.no(username, now):
            return
        if self._weighing is None:
            self._weighing = self._background.start(self._weigh(), f'weighing the "no" of {username}')

    async def _weigh(self) -> None:
        try:
            while self._holdback.new:
                await self._weigh_once()
        except Exception:
            # Nobody's access goes on for that: pages refuse, and the next round comes here again.
            log.exception('A "no" could not be weighed')
            for name in self._holdback.new:
                self._holdback.drop(name)
        finally:
            self._weighing = None

    async def _weigh_once(self) -> None:
        began, deadline = now_of(self._app), asyncio.get_running_loop().time() + WAIT
        users = set(watched(self._app.db))
        asked: set[str] = set()
        heard: set[str] = set()
        while self._holdback.new:
            unheard = {name for name in users if not self._is_heard(name, heard, began)}
            late = asyncio.get_running_loop().time() >= deadline
            ruling = self._holdback.rule(now_of(self._app), users, unheard)
            if ruling is Ruling.WAIT and late:
                # Those who couldn't be asked count neither way.
                ruling = self._holdback.rule(now_of(self._app), users - unheard)
            if ruling is Ruling.GO:
                self._depart(self._holdback.go(now_of(self._app)))
                return
            if ruling is Ruling.HOLD:
                self._hold(len(users))
                return
            for name in unheard - asked:
                asked.add(name)
                self._background.start(self._ask(name, began, heard), f"asking about {name} because of others")
                break
            await asyncio.sleep(1 / RATE)

    def _is_heard(self, name: str, heard: set[str], began: float) -> bool:
        if name in heard:
            return True
        standing = self._app.authenticator.standings.last(name)
        return standing is not None and (standing.at >= began or standing.verdict is Verdict.LOG_IN_AGAIN)

    async def _ask(self, name: str, began: float, heard: set[str]) -> None:
        user = self._app.users.get(name)
        try:
            if user is not None:
                await self._app.authenticator.standings.of(user, max_age=max(now_of(self._app) - began, 0.0))
        finally:
            heard.add(name)

    # -- what follows

    def _depart(self, names: Sequence[str], by: str = "", *, confirmed: bool = False) -> None:
        """Pages refuse all of them from now on; the rest ends for one after the other.

        Who has a sign-in that was taken back goes on until its grace is over (the rounds see to it), unless the
        operator has confirmed it.
        """
        self._leaving.update(names)

        async def end(name: str) -> None:
            try:
                user = self._app.users.get(name)
                standing = self._app.authenticator.standings.last(name)
                if user is None or standing is None:
                    return
                follows = self.outcome(name, standing)
                if follows.access is Access.OFF or (confirmed and standing.revoked_at):  # not logged in since
                    await self._departures.end(user, standing.reason, why=follows.why, by=by)
            finally:
                self._leaving.discard(name)

        async def end_all() -> None:
            for name in names:
                self._background.start(end(name), f"end of the access of {name}")
                await asyncio.sleep(1 / RATE)

        self._background.start(end_all(), f"end of the access of {len(names)} users")

    def _hold(self, users: int) -> None:
        first = not self._holdback.held
        names = self._holdback.hold(now_of(self._app))
        self._count()
        for name in names:
            tell(self._app.tornado_settings, Event(Action.HELD_BACK, name, reason=self._reason(name)))
            user = self._app.users.get(name)
            if user is not None:  # what came with the "no" was not handed out
                self._background.start(
                    self._app.authenticator.hand_out_token(user), f"token of {name}, who is held back"
                )
        level = logging.CRITICAL if first else logging.WARNING
        log.log(
            level,
            "The identity provider says of %d of %d users that they are no members any more, or has taken back their "
            "sign-ins, all at once. That is held back, as if it couldn't say: their access goes on for %g s since each "
            "one's last confirmation. Look for a change at the provider; if it is true, end their access with casa-hub "
            "confirm. The first of them: %s",
            len(self._holdback.held),
            users,
            self._keeper.outage_grace,
            self._reason(names[0]) if names else "",
        )

    def _our_fault(self, username: str, standing: Standing) -> None:
        before = set(self._unheard_of)
        (self._unheard_of.add if standing.our_fault else self._unheard_of.discard)(username)
        if before and not self._unheard_of:
            log.warning("The identity provider speaks with this hub again")
        # A scope policy of the provider can keep the groups of a single person from the hub.
        single = isinstance(standing.decision, Refused) and standing.decision.claim_withheld == "scope"
        if not standing.our_fault or (single and len(self._unheard_of) == 1) or self._unheard_alarm:
            self._unheard_alarm = self._unheard_alarm and bool(self._unheard_of)
            return
        self._unheard_alarm = True
        log.critical(
            "%s Until that is mended nobody's membership can be confirmed, and access ends %g s after each one's "
            "last confirmation.",
            standing.reason,
            self._keeper.outage_grace,
        )

    # -- parts

    def _reason(self, username: str) -> str:
        standing = self._app.authenticator.standings.last(username)
        return standing.reason if standing is not None else ""

    def _count(self) -> None:
        metrics.HELD_BACK.set(len(self._holdback.held))
        metrics.CLIENT_REFUSED.set(len(self._unheard_of))
