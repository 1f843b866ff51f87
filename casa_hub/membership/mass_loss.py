"""Between a "no" of the identity provider and what can't be undone: the shell around `loss_limit`.

A sign-in that was taken back is weighed as a "no" is: a provider that has lost its sessions takes back everybody's at
once. What is said here of a "no" holds for it, except that access goes on for `Keeper.revoked_grace`.

A "no" refuses pages, API and spawns at once. Before servers are stopped and tokens deleted, everybody with an older
verdict is asked, as fast as a provider and the hub's database can take it. If too many are out as well, all of them are
held back: that is treated as "can't say" until they say "yes" again, the grace ends, or the operator confirms it. An
operator who knows that it is a mistake ignores it, which prolongs the grace (`member.held_until`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from sqlalchemy.exc import SQLAlchemyError

from casa_hub import metrics
from casa_hub.audit import Action, Event, tell
from casa_hub.identity.verdicts import Verdict
from casa_hub.jupyterhub import HubApp
from casa_hub.membership.active_users import watched
from casa_hub.membership.loss_limit import Holdback, Ruling
from casa_hub.membership.member import UNASKED, Access, Member, Members, Standing, held_until
from casa_hub.membership.policy import Refused
from casa_hub.membership.recheck import Recheck
from casa_hub.membership.revocation import Revocations
from casa_hub.membership.tables import Ignored
from casa_hub.servers.renewals import Renewals
from casa_hub.tasks import Background

#: Seconds for which a "no" waits for the others, at most; with what follows it is over in 30.
WAIT = 20.0
#: Others who are asked in a second, at most; and users whose access begins to end: each is a commit.
RATE = 25.0

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Held:
    """A "no" that is held back, for operators. Times are epoch seconds."""

    username: str
    reason: str
    since: float
    #: When access ends if nothing changes.
    until: float
    #: Whether an operator has ignored it.
    ignored: bool


class MassLoss:
    """Lives on the hub's event loop."""

    def __init__(
        self, app: HubApp, members: Members, recheck: Recheck | None, revocations: Revocations, renewals: Renewals
    ) -> None:
        """`recheck`: None with an authenticator that isn't ours, of which there are no verdicts."""
        self._app = app
        self._members = members
        self._recheck = recheck
        self._revocations = revocations
        self._renewals = renewals
        self._holdback = Holdback(members, members.settings.recheck_interval)
        self._weighing: asyncio.Task[None] | None = None
        self._background = Background()
        self._ignored = Ignored(app.db)
        #: Whether the log has said that the provider refuses this hub itself.
        self._client_refused_alarm = False

    def heard(self, member: Member) -> None:
        """Weigh a verdict; `Recheck.on_verdict`."""
        standing = member.standing
        if standing is None:
            return
        if standing.verdict is Verdict.NO or standing.revoked_at:
            self._no(member, standing)
        elif standing.verdict is Verdict.YES:
            held = member.held_since is not None
            self._drop([member])
            if held and not self._holdback.held:
                log.warning('No "no" is held back any more')
        self._our_fault(member, standing)
        self._count()

    def release(self, username: str) -> None:
        """What becomes of this user is decided elsewhere."""
        member = self._members.get(username)
        if member is not None:
            self._drop([member])
            member.client_refused = False
            self._count()

    def resume(self) -> None:
        """Take over what was ignored in an earlier hub. Raises SQLAlchemyError."""
        longest = max(self._members.settings.outage_grace, self._members.settings.membership_max_age)
        ignored = self._ignored.all()
        old = {name for name, since in ignored.items() if not 0 <= self._members.now() - since < longest}
        if old:
            self._ignored.remove(old)
        for name, since in ignored.items():
            if name not in old:
                self._members[name].ignored_at = since

    @property
    def open_cases(self) -> set[str]:
        """Who must be asked about though nothing of theirs runs any more."""
        return self._holdback.held.keys() | {member.name for member in self._refused()}

    # -- for operators

    def held(self) -> list[Held]:
        """Each "no" that is held back."""
        now, settings = self._members.now(), self._members.settings
        found = []
        for name, since in sorted(self._holdback.held.items()):
            member = self._members[name]
            until = held_until(member, member.standing or UNASKED, settings, now)
            found.append(Held(name, member.reason, since, until, ignored=bool(member.ignored_at)))
        return found

    def client_refused(self) -> list[tuple[str, str]]:
        """User name and reason of each about whom the provider refuses to speak with this hub."""
        return sorted((member.name, member.reason) for member in self._refused())

    def confirm(self, by: str = "", chosen: Collection[str] | None = None) -> list[str]:
        """What is held back is true: the access of these users ends, from now on. Returns their names.

        `chosen`: only of these users; None for all.
        """
        members = [self._members[name] for name in self._holdback.held if chosen is None or name in chosen]
        self._drop(members)
        names = sorted(member.name for member in members)
        for name in names:
            confirmed = Event(Action.CONFIRMED, name, reason=self._members[name].reason, by=by)
            tell(self._app.tornado_settings, confirmed)
        self._depart(names, by=by, confirmed=True)
        self._count()
        return names

    def ignore(self, by: str, chosen: Collection[str]) -> list[str]:
        """What is held back of these users is a mistake: it changes nothing for another grace (`member.held_until`).

        Returns their names. A restart of the hub changes nothing of it.
        Raises SQLAlchemyError if the hub's database can't be written; nothing was ignored then.
        """
        names, now = sorted(name for name in self._holdback.held if name in chosen), self._members.now()
        if names:
            self._ignored.open()
            self._ignored.note(names, now)
        for name in names:
            member = self._members[name]
            member.ignored_at = now
            tell(self._app.tornado_settings, Event(Action.IGNORED, name, reason=member.reason, by=by))
        return names

    def _drop(self, members: Collection[Member]) -> None:
        """Forget what is weighed, held back or ignored of them."""
        ignored = [member.name for member in members if member.ignored_at]
        for member in members:
            self._holdback.drop(member.name)
        if ignored:
            try:
                self._ignored.remove(ignored)
            except SQLAlchemyError as error:  # this process knows it; a later one would hold back until the grace's end
                log.error("That a lost membership is ignored no more can't be stored (%s)", type(error).__name__)  # noqa: TRY400

    # -- weighing

    def _no(self, member: Member, standing: Standing) -> None:
        user = self._app.users.get(member.name)
        if user is None or member.leaves or member.ending(standing.session_id):
            return
        if not self._revocations.has_any(user):
            return
        now = self._members.now()
        idle = not user.active and not user.api_tokens
        if idle and standing.revoked_at:
            return  # nothing of theirs runs, and a page asks for the log-in
        until = held_until(member, standing, self._members.settings, now)
        if member.ignored_at and member.held_since is None and now < until:
            self._holdback.hold_again(member.name, now)  # an earlier hub held it back, and it was ignored there
            return
        if idle and now >= until:
            # Somebody who left long ago opens an old page. To hold that back spares nothing, and if a whole class does
            # so on one morning, it says nothing of who is out now.
            self._depart([member.name])
            return
        if self._holdback.no(member.name, now) and self._weighing is None:
            self._weighing = self._background.start(self._weigh(), f'weighing the "no" of {member.name}')

    async def _weigh(self) -> None:
        try:
            while self._holdback.new:
                await self._weigh_once()
        except Exception:
            # Nobody's access goes on for that: pages refuse, and the next round comes here again.
            log.exception('A "no" could not be weighed')
            self._drop([self._members[name] for name in self._holdback.new])
        finally:
            self._weighing = None

    async def _weigh_once(self) -> None:
        began, deadline = self._members.now(), asyncio.get_running_loop().time() + WAIT
        users = set(watched(self._app.db))
        asked: set[str] = set()
        heard: set[str] = set()
        while self._holdback.new:
            unheard = {name for name in users if not self._is_heard(name, heard, began)}
            late = asyncio.get_running_loop().time() >= deadline
            ruling = self._holdback.rule(self._members.now(), users, unheard)
            if ruling is Ruling.WAIT and late:
                # Those who couldn't be asked count neither way.
                ruling = self._holdback.rule(self._members.now(), users - unheard)
            if ruling is Ruling.GO:
                self._depart(self._holdback.go(self._members.now()))
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
        member = self._members.get(name)
        standing = None if member is None else member.standing
        return standing is not None and (standing.at >= began or standing.verdict is Verdict.LOG_IN_AGAIN)

    async def _ask(self, name: str, began: float, heard: set[str]) -> None:
        user = self._app.users.get(name)
        try:
            if user is not None and self._recheck is not None:
                await self._recheck.of(user, max_age=max(self._members.now() - began, 0.0))
        finally:
            heard.add(name)

    # -- what follows

    def _depart(self, names: Sequence[str], by: str = "", *, confirmed: bool = False) -> None:
        """Pages refuse all of them from now on; the rest ends for one after the other.

        Who has a sign-in that was taken back goes on until its grace is over (the rounds see to it), unless the
        operator has confirmed it.
        """
        for name in names:
            self._members[name].leaves = True

        async def end(member: Member) -> None:
            try:
                user, standing = self._app.users.get(member.name), member.standing
                if user is None or standing is None:
                    return
                follows = self._members.outcome(member)
                if follows.access is Access.OFF or (confirmed and standing.revoked_at):  # not logged in since
                    await self._revocations.end(user, standing.reason, why=follows.why, by=by)
            finally:
                member.leaves = False

        async def end_all() -> None:
            for name in names:
                self._background.start(end(self._members[name]), f"end of the access of {name}")
                await asyncio.sleep(1 / RATE)

        self._background.start(end_all(), f"end of the access of {len(names)} users")

    def _hold(self, users: int) -> None:
        first = not self._holdback.held
        names = self._holdback.hold(self._members.now())
        self._count()
        for name in names:
            tell(self._app.tornado_settings, Event(Action.HELD_BACK, name, reason=self._members[name].reason))
            user = self._app.users.get(name)
            if user is not None:  # the new tokens that came with the "no" were not handed out
                self._background.start(self._renewals.hand_out_token(user), f"token of {name}, who is held back")
        level = logging.CRITICAL if first else logging.WARNING
        log.log(
            level,
            "The identity provider says of %d of %d users that they are no members any more, or has taken back their "
            "sign-ins, all at once. That is held back, as if it couldn't say: their access goes on for %g s since each "
            "one's last confirmation. Look for a change at the provider; if it is true, end their access with casa-hub "
            "confirm. The first of them: %s",
            len(self._holdback.held),
            users,
            self._members.settings.outage_grace,
            self._members[names[0]].reason if names else "",
        )

    def _our_fault(self, member: Member, standing: Standing) -> None:
        before, member.client_refused = member.client_refused, standing.our_fault
        refused = self._refused()
        if before and not refused:
            log.warning("The identity provider speaks with this hub again")
        # A scope policy of the provider can keep the groups of a single person from the hub.
        single = isinstance(standing.decision, Refused) and standing.decision.claim_withheld == "scope"
        if not standing.our_fault or (single and len(refused) == 1) or self._client_refused_alarm:
            self._client_refused_alarm = self._client_refused_alarm and bool(refused)
            return
        self._client_refused_alarm = True
        log.critical(
            "%s Until that is mended nobody's membership can be confirmed, and access ends %g s after each one's "
            "last confirmation.",
            standing.reason,
            self._members.settings.outage_grace,
        )

    def _refused(self) -> list[Member]:
        return [member for member in self._members if member.client_refused]

    def _count(self) -> None:
        metrics.HELD_BACK.set(len(self._holdback.held))
        metrics.CLIENT_REFUSED.set(len(self._refused()))
