"""What the hub knows of each person, in one record, and what follows from it.

`outcome` is pure, and the one answer for pages, API, starts, rounds, notices and operators.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from casa_hub.identity.session import Session
from casa_hub.identity.verdicts import Verdict
from casa_hub.jupyterhub import HubUser
from casa_hub.membership.policy import Allowed, Refused
from casa_hub.membership.settings import Keeper
from casa_hub.membership.tables import Entry
from casa_hub.moments import when
from casa_hub.outside import HandedOut
from casa_hub.text import sentence

#: A log-in that can't be asked about counts for a time; in the last part of it, its end is told.
_LAST_PART = 1 / 4


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
    #: A "yes" that only has the log-in behind it: the provider can't be asked, and the log-in isn't too old.
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


#: Before the provider was asked.
UNASKED = Standing(Verdict.CANT_SAY, -math.inf, "nobody asked yet", 0.0)


@dataclass(slots=True)
class Inquiry:
    """Finding out about one user, while it is under way."""

    user: HubUser
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
    task: asyncio.Task[Standing] = field(init=False)


@dataclass(frozen=True, slots=True)
class RevocationReport:
    """What the end of somebody's access has ended."""

    servers: tuple[str, ...]
    tokens: int
    #: What could not be done yet, and is tried again; sentences.
    still: tuple[str, ...]


@dataclass(slots=True, eq=False)
class Revocation:
    """The end of somebody's access, while it is under way."""

    entry: Entry
    #: JupyterHub's user, who may get another name or be deleted meanwhile.
    user: HubUser = field(repr=False)
    #: Kept, since a user that was deleted may not tell it any more.
    user_id: int
    #: Names of servers that are still to be ended, and of those that were.
    servers: set[str]
    stopped: set[str] = field(default_factory=set)
    #: Servers whose credentials the audit knows; and those of which it knows them as far as the hub does.
    told: set[str] = field(default_factory=set)
    told_in_part: set[str] = field(default_factory=set)
    #: Credentials outside of servers that the audit doesn't know as revoked yet.
    outside: list[HandedOut] = field(default_factory=list)
    tokens: int = 0
    still: tuple[str, ...] = ()
    #: What is left of the log-in once the hub's user is deleted; "" if there is none, or it is ended.
    refresh_token: str | None = field(default=None, repr=False)
    #: Set after the first try.
    tried: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def report(self) -> RevocationReport:
        return RevocationReport(tuple(sorted(self.stopped)), self.tokens, self.still)


@dataclass(slots=True, eq=False)
class Member:
    """All that the hub knows of one person. Each part is written by the module that is named above it."""

    name: str

    # -- log_ins
    #: Whoever reads or writes the user's auth state holds this: a log-in and a refresh at the same moment take turns.
    #: Reading is writing in JupyterHub while crypt keys are rotated.
    saving: asyncio.Lock = field(default_factory=asyncio.Lock)
    #: What the hub's database didn't take: a rotated refresh token is nowhere else.
    unsaved: Session | None = None

    # -- recheck
    #: The last verdict, however old; None if nobody asked since the hub's start.
    standing: Standing | None = None
    #: The one request about this person that is under way.
    inquiry: Inquiry | None = None

    # -- mass_loss; all times in epoch seconds
    #: Since when a "no" is weighed, and since when one is held back; when the last one took effect.
    weighed_since: float | None = None
    held_since: float | None = None
    gone_at: float | None = None
    #: When an operator said that what is held back is a mistake; 0 if nobody did. A copy of `casa_hub_ignored`.
    ignored_at: float = 0.0
    #: Whether a "no" has taken effect whose turn to end the access hasn't come yet.
    leaves: bool = False
    #: Whether the provider refuses to speak with this hub about this person.
    client_refused: bool = False

    # -- rounds
    #: The next check, from the time on at which it is planned.
    turn: asyncio.Task[None] | None = None
    #: When servers or tokens, but no stored log-in, were first noticed; 0 if never. A copy of the table
    #: `casa_hub_unknown_log_ins`.
    noticed_at: float = 0.0
    #: Since when this process has had no usable answer about this person.
    silent_since: float | None = None

    # -- revocation
    #: The end of the access that is under way, and the last one that is over.
    revocation: Revocation | None = None
    last_revocation: Entry | None = None
    #: When the person, who is back, was first told of it; `admission` forgets both after a day.
    told_at: float | None = None

    @property
    def reason(self) -> str:
        """The sentence of the last verdict."""
        return "" if self.standing is None else self.standing.reason

    @property
    def effective(self) -> Verdict | None:
        """The last verdict as it counts: a "no" that is held back is "can't say"."""
        if self.standing is None:
            return None
        held = self.standing.verdict is Verdict.NO and self.held_since is not None
        return Verdict.CANT_SAY if held else self.standing.verdict

    def ending(self, session_id: str) -> str:
        """Why the access that came of this log-in is being ended; "" if it isn't."""
        revocation = self.revocation
        return revocation.entry.reason if revocation is not None and revocation.entry.session_id == session_id else ""

    async def settled(self) -> None:
        """Wait until nobody asks about this person."""
        if self.inquiry is not None:
            await asyncio.wait({self.inquiry.task})


class Members:
    """The one place where the hub keeps what it knows of each person. Lives on the hub's event loop."""

    def __init__(self, settings: Keeper, clock: Callable[[], float] = time.time) -> None:
        """`clock`: epoch seconds."""
        self.settings = settings
        self.now = clock
        self._members: dict[str, Member] = {}

    @classmethod
    def configured(cls, clock: Callable[[], float] = time.time, **kwargs: Any) -> Members:
        """By the section `Keeper` of the configuration; `kwargs`: of a configurable (``parent``, ``config``)."""
        return cls(Keeper(**kwargs), clock)

    def __getitem__(self, username: str) -> Member:
        """The record of one of the hub's users; a new one the first time."""
        member = self._members.get(username)
        if member is None:
            member = self._members[username] = Member(username)
        return member

    def get(self, username: str) -> Member | None:
        """The record of this name, or None; unlike `[]`, makes none."""
        return self._members.get(username)

    def __iter__(self) -> Iterator[Member]:
        return iter(list(self._members.values()))

    def outcome(self, member: Member, standing: Standing | None = None) -> Outcome:
        """`outcome` now."""
        return outcome(member, self.settings, self.now(), standing)


class Access(StrEnum):
    """What a user may do now."""

    #: Everything.
    ON = "on"
    #: Pages ask for a new log-in; what runs, runs on.
    LOG_IN = "log in"
    #: Nothing.
    OFF = "off"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What follows for one user."""

    access: Access
    #: Epoch seconds at which access ends if nothing changes, or has ended; infinite if nothing ends it.
    ends_at: float = math.inf
    #: Why it ends, as in `metrics.WHYS`; "" if nothing ends it.
    why: str = ""
    #: What the user reads on the hub's pages; "" if there is nothing to tell.
    notice: str = ""
    #: Whether a server may be started: not by a sign-in that was taken back, nor without any.
    may_start: bool = False


def held_until(member: Member, standing: Standing, settings: Keeper, now: float) -> float:
    """Until when what is held back of a person changes nothing, epoch seconds.

    An operator who ignores it gives another `outage_grace` from then on, as often as that is done; but not beyond
    `membership_max_age` since the last "yes", after which nobody's membership counts unconfirmed.
    """
    ends_at = standing.last_yes + settings.outage_grace
    if not member.ignored_at:
        return ends_at
    ignored_at = min(member.ignored_at, now)  # a clock that was put back gives no more time
    return max(ends_at, min(ignored_at + settings.outage_grace, standing.last_yes + settings.membership_max_age))


def outcome(member: Member, settings: Keeper, now: float, standing: Standing | None = None) -> Outcome:
    """What follows for one person; `standing`: of which verdict, for a page that didn't wait for the last one."""
    standing = standing or member.standing or UNASKED
    held_back = member.held_since is not None
    end_of_hold = held_until(member, standing, settings, now) if held_back else 0.0
    match standing.verdict:
        case Verdict.YES:
            return _yes(standing, settings, now)
        case Verdict.LOG_IN_AGAIN:
            return _log_in_again(standing, settings, now, held_until=end_of_hold, noticed_at=member.noticed_at)
        case Verdict.NO if not held_back:
            return Outcome(Access.OFF, standing.at, "no")
    ends_at = max(standing.last_yes + settings.outage_grace, end_of_hold)
    why = "no" if standing.verdict is Verdict.NO else "outage"
    if now - standing.last_yes <= settings.recheck_interval:
        text = ""  # a page that didn't want to wait
    else:
        text = (
            f"The identity provider has not confirmed your membership since {when(standing.last_yes)}: "
            f"{sentence(standing.reason)} If it stays so, your access ends and your servers stop at {when(ends_at)}."
        )
    on = now < ends_at
    return Outcome(Access.ON if on else Access.OFF, ends_at, why, text, may_start=on)


def _yes(standing: Standing, settings: Keeper, now: float) -> Outcome:
    if standing.aged:
        ends_at = standing.last_yes + settings.membership_max_age
        text = (
            "Please log out and in again: the identity provider can't be asked about you meanwhile. Without it your "
            f"access ends and your servers stop at {when(ends_at)}."
        )
        near = ends_at - now < settings.membership_max_age * _LAST_PART
        return Outcome(Access.ON, ends_at, "age", text if near else "", may_start=True)
    if now >= standing.warn_at:
        text = (
            f"Your sign-in runs out at {when(standing.sign_in_ends_at)}. Please log out and in again before: without "
            "it your membership can't be confirmed from then on, and your servers stop at "
            f"{when(standing.sign_in_ends_at + settings.membership_max_age)}."
        )
        return Outcome(Access.ON, notice=text, may_start=True)
    return Outcome(Access.ON, may_start=True)


def _log_in_again(standing: Standing, settings: Keeper, now: float, *, held_until: float, noticed_at: float) -> Outcome:
    why = "age"
    if not standing.session_id:  # nobody knows of a log-in: there is no "yes" to count from
        ends_at = noticed_at + settings.membership_max_age if noticed_at else math.inf
    elif standing.revoked_at:
        why = "revoked"
        ends_at = min(standing.revoked_at + settings.revoked_grace, standing.last_yes + settings.membership_max_age)
        ends_at = max(ends_at, held_until)  # 0 if it isn't held back
    else:
        ends_at = standing.last_yes + settings.membership_max_age
    text = f"Please log in again: {sentence(standing.reason)}"
    if ends_at < math.inf:
        text += f" Without it your access ends and your servers stop at {when(ends_at)}."
    on = now < ends_at
    may_start = on and bool(standing.session_id) and not standing.revoked_at
    return Outcome(Access.LOG_IN if on else Access.OFF, ends_at, why, text, may_start=may_start)
