"""Pure: what a user reads on the hub's pages about a membership that isn't simply "yes"."""

from __future__ import annotations

from datetime import UTC, datetime

from casa_hub.identity.standing import Standing
from casa_hub.identity.verdicts import Verdict
from casa_hub.keeper.ledger import Entry
from casa_hub.keeper.times import Keeper

#: Of the time that a log-in counts which can't be asked about again, the last part in which its end is told.
_LAST_PART = 1 / 4


def notice(standing: Standing, keeper: Keeper, now: float, *, held_back: bool = False, since: float = 0.0) -> str:
    """A sentence or two for somebody, "" if there is nothing to tell.

    Args:
        standing: where the user stands.
        keeper: the times.
        now: epoch seconds.
        held_back: whether a "no" is held back.
        since: epoch seconds from which on a log-in that nobody knows of counts.
    """
    last_yes = max(standing.last_yes, since)
    if standing.verdict is Verdict.CANT_SAY or (standing.verdict is Verdict.NO and held_back):
        if now - last_yes <= keeper.recheck_interval:
            return ""  # a page that didn't want to wait
        return (
            f"The identity provider has not confirmed your membership since {when(last_yes)}: "
            f"{_sentence(standing.reason)} If it stays so, your access ends and your servers stop at "
            f"{when(last_yes + keeper.outage_grace)}."
        )
    end = last_yes + keeper.membership_max_age
    if standing.verdict is Verdict.LOG_IN_AGAIN:
        return (
            f"Please log in again: {_sentence(standing.reason)} Without it your access ends and your servers stop at "
            f"{when(end)}."
        )
    if standing.verdict is Verdict.YES and standing.aged and end - now < keeper.membership_max_age * _LAST_PART:
        return (
            "Please log out and in again: the identity provider can't be asked about you meanwhile. Without it your "
            f"access ends and your servers stop at {when(end)}."
        )
    return ""


def farewell(ended: Entry) -> str:
    """What somebody reads who is back."""
    stopped = {0: "", 1: " Your server was stopped."}.get(ended.servers, f" Your {ended.servers} servers were stopped.")
    return f"You are let in again. Your access had ended at {when(ended.began)}: {_sentence(ended.reason)}{stopped}"


def when(moment: float) -> str:
    """A time for people everywhere."""
    return f"{datetime.fromtimestamp(moment, UTC):%Y-%m-%d %H:%M} UTC"


def _sentence(reason: str) -> str:
    return f"{reason.rstrip('.')}."
