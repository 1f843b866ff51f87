"""Pure: what follows from where a user stands: the one answer for pages, API, starts, rounds, notices and operators."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

from casa_hub.identity.standing import Standing
from casa_hub.identity.verdicts import Verdict
from casa_hub.keeper.times import Keeper
from casa_hub.moments import when

#: A log-in that can't be asked about counts for a time; in the last part of it, its end is told.
_LAST_PART = 1 / 4


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


def outcome(
    standing: Standing, keeper: Keeper, now: float, *, held_back: bool = False, noticed_at: float = 0.0
) -> Outcome:
    """What follows from a verdict.

    Args:
        standing: where the user stands.
        keeper: the operator's times.
        now: epoch seconds.
        held_back: whether the verdict is held back, because the same came for too many at once.
        noticed_at: epoch seconds since when servers or tokens of this user are known, but no log-in; 0 if never.
    """
    match standing.verdict:
        case Verdict.YES:
            return _yes(standing, keeper, now)
        case Verdict.LOG_IN_AGAIN:
            return _log_in_again(standing, keeper, now, held_back=held_back, noticed_at=noticed_at)
        case Verdict.NO if not held_back:
            return Outcome(Access.OFF, standing.at, "no")
    ends_at = standing.last_yes + keeper.outage_grace
    why = "no" if standing.verdict is Verdict.NO else "outage"
    if now - standing.last_yes <= keeper.recheck_interval:
        text = ""  # a page that didn't want to wait
    else:
        text = (
            f"The identity provider has not confirmed your membership since {when(standing.last_yes)}: "
            f"{_sentence(standing.reason)} If it stays so, your access ends and your servers stop at {when(ends_at)}."
        )
    on = now < ends_at
    return Outcome(Access.ON if on else Access.OFF, ends_at, why, text, may_start=on)


def _yes(standing: Standing, keeper: Keeper, now: float) -> Outcome:
    if standing.aged:
        ends_at = standing.last_yes + keeper.membership_max_age
        text = (
            "Please log out and in again: the identity provider can't be asked about you meanwhile. Without it your "
            f"access ends and your servers stop at {when(ends_at)}."
        )
        near = ends_at - now < keeper.membership_max_age * _LAST_PART
        return Outcome(Access.ON, ends_at, "age", text if near else "", may_start=True)
    if now >= standing.warn_at:
        text = (
            f"Your sign-in runs out at {when(standing.sign_in_ends_at)}. Please log out and in again before: without "
            "it your membership can't be confirmed from then on, and your servers stop at "
            f"{when(standing.sign_in_ends_at + keeper.membership_max_age)}."
        )
        return Outcome(Access.ON, notice=text, may_start=True)
    return Outcome(Access.ON, may_start=True)


def _log_in_again(standing: Standing, keeper: Keeper, now: float, *, held_back: bool, noticed_at: float) -> Outcome:
    why = "age"
    if not standing.session_id:  # nobody knows of a log-in: there is no "yes" to count from
        ends_at = noticed_at + keeper.membership_max_age if noticed_at else math.inf
    elif standing.revoked_at:
        why = "revoked"
        ends_at = min(standing.revoked_at + keeper.revoked_grace, standing.last_yes + keeper.membership_max_age)
        if held_back:
            ends_at = max(ends_at, standing.last_yes + keeper.outage_grace)
    else:
        ends_at = standing.last_yes + keeper.membership_max_age
    text = f"Please log in again: {_sentence(standing.reason)}"
    if ends_at < math.inf:
        text += f" Without it your access ends and your servers stop at {when(ends_at)}."
    on = now < ends_at
    may_start = on and bool(standing.session_id) and not standing.revoked_at
    return Outcome(Access.LOG_IN if on else Access.OFF, ends_at, why, text, may_start=may_start)


def _sentence(reason: str) -> str:
    return f"{reason.rstrip('.')}."
