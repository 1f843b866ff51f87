"""Background membership checks: everybody with a running server or a valid token, spread evenly over a round.

Each user's slot within a round is a hash of the name. So no schedule is stored, a restart does not bunch the checks,
and users who were once checked together (after an outage, say) do not stay bunched. A user whom a page has just
checked is skipped.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import math
from collections.abc import Callable, Iterable

from sqlalchemy.exc import SQLAlchemyError

from casa_hub.database import roll_back
from casa_hub.identity.verdicts import Verdict
from casa_hub.jupyterhub import HubApp, HubUser
from casa_hub.membership.active_users import watched
from casa_hub.membership.mass_loss import MassLoss
from casa_hub.membership.member import Access, Member, Members, Standing
from casa_hub.membership.recheck import FRESH, Recheck
from casa_hub.membership.revocation import Revocations
from casa_hub.membership.tables import UnknownLogIns
from casa_hub.moments import when
from casa_hub.tasks import Background

#: Parts of `Keeper.recheck_interval`: the length of a round, and the age up to which a "yes" that a page asked for
#: counts. Together they leave a twentieth for the request itself.
_ROUND, _SPARED = 0.75, 0.2
#: Seconds between two looks at whose turn it is.
_LOOK = 10.0
#: Checks under way at the same time; stored log-ins that are read per second.
_AT_ONCE = 20
_READ_RATE = 25.0
#: Before ending access because of an outage, this process must itself have seen no usable answer for `_SILENCE`
#: seconds (never more than `_SILENCE_PART` of the grace). Otherwise the first time-out after a suspend or restart would
#: end everyone's access.
_SILENCE, _SILENCE_PART = 60.0, 1 / 4

log = logging.getLogger(__name__)


def turn(username: str, after: float, length: float) -> float:
    """Epoch seconds of a user's first turn after `after`, in rounds of `length` seconds."""
    digest = hashlib.blake2b(username.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    place = int.from_bytes(digest) / 2**64 * length
    turns = math.floor((after - place) / length) + 1
    return max(place + turns * length, math.nextafter(after, math.inf))


class Rounds:
    """Checks memberships in the background. Runs on the hub's event loop."""

    def __init__(
        self, app: HubApp, members: Members, recheck: Recheck | None, revocations: Revocations, mass_loss: MassLoss
    ) -> None:
        """`recheck`: None with an authenticator that isn't ours; then only revocations are resumed."""
        self._app = app
        self._members = members
        self._recheck = recheck
        self._revocations = revocations
        self._mass_loss = mass_loss
        self._settings = members.settings
        self._length = self._settings.recheck_interval * _ROUND
        self._pause = min(_LOOK, max(self._settings.recheck_interval / 20, 0.1))
        self._background = Background()
        self._reading: asyncio.Task[None] | None = None
        self._slots = asyncio.Semaphore(_AT_ONCE)
        #: Turns up to this time have been scheduled; epoch seconds.
        self._until = -math.inf
        self._unknown = UnknownLogIns(app.db)

    def begin(self) -> None:
        """Start the checks. JupyterHub cancels them when the hub ends."""
        self._background.start(self._go(), "membership rounds")

    async def _go(self) -> None:
        await asyncio.shield(self._app._start_future)  # noqa: SLF001 - users and servers are known then
        resumed = False
        while self._recheck is not None or not resumed:
            resumed = resumed or await self._resume()
            if self._recheck is not None:
                await self._look_safely(self._recheck)
            await asyncio.sleep(self._pause)

    async def _resume(self) -> bool:
        """Resume the revocations of the previous hub process. Returns False to try again; checks go on meanwhile."""
        try:
            await self._revocations.resume()
            if self._recheck is not None:
                for name, since in self._unknown.all().items():
                    self._members[name].noticed_at = since
                self._mass_loss.resume()
        except Exception:
            log.exception("Could not resume access removals left by the previous hub process; retrying")
            roll_back(self._app.db)
            return False
        return True

    async def _look_safely(self, recheck: Recheck) -> None:
        try:
            await self._look(recheck)
        except SQLAlchemyError as error:
            # No traceback: a database that is restarted is no fault of this hub, and the driver quotes parameters.
            log.error("Could not check memberships, the database failed (%s); retrying", type(error).__name__)  # noqa: TRY400
            roll_back(self._app.db)  # otherwise the next look fails, too, on the broken transaction
        except Exception:
            log.exception("Could not check memberships; retrying")
            roll_back(self._app.db)

    async def _look(self, recheck: Recheck) -> None:
        """Schedule a check of everybody whose turn comes before the next look."""
        people = dict.fromkeys(self._mass_loss.open_cases, False) | watched(self._app.db)
        others = [member for member in self._members if member.name not in people]
        self._forget(others)
        for member in others:
            member.silent_since = None
        now = self._members.now()
        # After a long pause (a machine that slept), everybody who missed a turn would come at once. And after the clock
        # was put back, nobody would have a turn.
        late = now - self._until
        since = self._until if -2 * self._pause < late < max(self._length / 10, 2 * self._pause) else now
        self._until = now + self._pause
        unread = []
        for name, has_server in people.items():
            member = self._members[name]
            if member.turn is not None:
                continue
            if member.standing is None and has_server:
                unread.append(name)
            at = turn(name, since, self._length)
            if member.standing is not None:
                at = min(at, *self._sooner(member, member.standing, now, has_server=has_server))
            if at <= self._until:
                self._ask_later(recheck, member, max(at - now, 0.0))
        if unread and (self._reading is None or self._reading.done()):
            self._reading = self._background.start(self._read(recheck, unread), "reading of log-ins")

    def _sooner(self, member: Member, standing: Standing, now: float, *, has_server: bool) -> list[float]:
        """Times at which a user is checked before the regular turn."""
        ends = self._members.outcome(member).ends_at
        times = [ends if ends > now - self._pause else math.inf]
        if has_server:
            # A server's copy of the access token lives no longer than the token: replace it when it is due.
            again = standing.at + FRESH if standing.verdict is not Verdict.YES else -math.inf
            times.append(max(standing.due_at, again))
        return times

    async def _read(self, recheck: Recheck, names: list[str]) -> None:
        """Read the stored log-ins of users who were not checked yet: their access tokens may be due."""
        for name in names:
            user = self._app.users.get(name)
            if user is not None:
                await recheck.log_ins.known(user)
                # Reading an auth state also writes it while crypt keys are rotated.
                await asyncio.sleep(1 / _READ_RATE)

    def _ask_later(self, recheck: Recheck, member: Member, delay: float) -> None:
        async def ask() -> None:
            await asyncio.sleep(delay)
            async with self._slots:
                await self._ask(recheck, member)

        def done(_: asyncio.Task[None]) -> None:
            member.turn = None

        member.turn = self._background.start(ask(), f"turn of {member.name}")
        member.turn.add_done_callback(done)

    async def _ask(self, recheck: Recheck, member: Member) -> None:
        user = self._app.users.get(member.name)
        if user is None:
            self._mass_loss.release(member.name)
            return
        if member.held_since is not None:
            recheck.doubt(member.name)  # it may have been the provider's fault, which is mended by now
        spared = self._settings.recheck_interval * _SPARED
        await self._follow(user, await recheck.of(user, max_age=spared, for_server=user.active))

    async def _follow(self, user: HubUser, standing: Standing) -> None:
        """End the access of a user whose time is over. A new "no" is weighed already."""
        now, member = self._members.now(), self._members[user.name]
        if standing.session_id:
            self._forget([member])
        elif standing.verdict is Verdict.LOG_IN_AGAIN:
            self._notice(member, now)
        silent = self._is_silent(member, standing, now)
        follows = self._members.outcome(member, standing)
        if follows.access is not Access.OFF:
            return
        if not self._revocations.has_any(user) or member.ending(standing.session_id):
            self._mass_loss.release(member.name)
            return
        since = when(standing.last_yes or member.noticed_at)
        held = member.held_since is not None
        if member.weighed_since is not None or (standing.verdict is Verdict.NO and not held):
            self._mass_loss.heard(member)
            return
        if follows.why == "revoked":
            reason = standing.reason
        elif follows.why == "age":
            reason = f"No new log-in in time, the last is of {since}: {standing.reason}"
            if not standing.session_id:
                reason = f"No log-in in time: {standing.reason}"
        elif not silent and standing.verdict is Verdict.CANT_SAY:
            return  # pages refuse; it is asked again soon
        else:
            reason = f"The identity provider has not confirmed the membership since {since}: {standing.reason}"
        self._mass_loss.release(member.name)
        await self._revocations.end(user, reason, why=follows.why)

    def _notice(self, member: Member, now: float) -> None:
        """Note that this user has no stored log-in. A clock that was put back gives no extra time."""
        if not 0 < member.noticed_at <= now:
            member.noticed_at = now
            self._write(lambda: self._unknown.note([member.name], now))

    def _forget(self, members: Iterable[Member]) -> None:
        """Drop users who have logged in, or have nothing that runs any more; in one commit."""
        noticed = [member for member in members if member.noticed_at]
        for member in noticed:
            member.noticed_at = 0.0
        if noticed:
            self._write(lambda: self._unknown.remove([member.name for member in noticed]))

    def _write(self, change: Callable[[], None]) -> None:
        """Write to the table; if that fails, this process still knows, and the next one starts counting anew."""
        try:
            change()
        except SQLAlchemyError as error:
            log.error("Could not store which users have no log-in (%s)", type(error).__name__)  # noqa: TRY400

    def _is_silent(self, member: Member, standing: Standing, now: float) -> bool:
        """Whether this process itself has had no usable answer about the user for long enough (`_SILENCE`)."""
        if standing.verdict is not Verdict.CANT_SAY:
            member.silent_since = None
            return False
        since = member.silent_since
        if since is None or not standing.last_yes < since <= now:
            since = member.silent_since = now
        return now - since >= min(_SILENCE, self._settings.outage_grace * _SILENCE_PART)
