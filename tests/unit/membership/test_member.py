"""What follows from where somebody stands: a table of truth, and what holds for any times."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casa_hub.identity.verdicts import Verdict
from casa_hub.membership.member import Access, Member, Outcome, Standing, outcome
from casa_hub.membership.settings import Keeper

NOW = 1.7e9
KEEPER = Keeper(recheck_interval=300, outage_grace=14400, membership_max_age=86400, revoked_grace=3600)
ON, LOG_IN, OFF = Access.ON, Access.LOG_IN, Access.OFF
YES, NO, AGAIN, CANT_SAY = Verdict.YES, Verdict.NO, Verdict.LOG_IN_AGAIN, Verdict.CANT_SAY


def standing(verdict: Verdict, *, last_yes: float = -60.0, session: str = "one", **more: float | bool) -> Standing:
    """Times in seconds from now."""
    times = {name: NOW + value if name.endswith("_at") else value for name, value in more.items()}
    return Standing(verdict, NOW, "it says so", NOW + last_yes, session, **times)  # type: ignore[arg-type]


def follow(
    where: Standing, keeper: Keeper, held: bool, noticed: float, later: float = 0.0, *, ignored: float = 0.0
) -> Outcome:
    member = Member("alice", standing=where, held_since=NOW if held else None, noticed_at=noticed, ignored_at=ignored)
    return outcome(member, keeper, NOW + later)


UNKNOWN = Standing(AGAIN, NOW, "no log-in of this user is stored", 0.0)

#: Case -> standing, further arguments, then: access, whether a server may start, when access ends (from now), why.
TABLE = {
    "a member": (standing(YES), {}, ON, True, math.inf, ""),
    "a member whom nobody can ask about": (standing(YES, last_yes=-400, aged=True), {}, ON, True, 86000, "age"),
    "a no": (standing(NO), {}, OFF, False, 0, "no"),
    "a no that is held back": (standing(NO, last_yes=-400), {"held_back": True}, ON, True, 14000, "no"),
    "held back for too long": (standing(NO, last_yes=-14400), {"held_back": True}, OFF, False, 0, "no"),
    "held back for too long, and ignored": (
        standing(NO, last_yes=-14400),
        {"held_back": True, "ignored_at": NOW - 400},
        ON,
        True,
        14000,
        "no",
    ),
    "ignored again and again for a day": (
        standing(NO, last_yes=-86000),
        {"held_back": True, "ignored_at": NOW},
        ON,
        True,
        400,
        "no",
    ),
    "ignored, and said anew": (standing(NO), {"ignored_at": NOW}, OFF, False, 0, "no"),
    "no answer": (standing(CANT_SAY, last_yes=-400), {}, ON, True, 14000, "outage"),
    "no answer for too long": (standing(CANT_SAY, last_yes=-14401), {}, OFF, False, -1, "outage"),
    "run out": (standing(AGAIN, last_yes=-400), {}, LOG_IN, True, 86000, "age"),
    "run out long ago": (standing(AGAIN, last_yes=-86400), {}, OFF, False, 0, "age"),
    "taken back": (standing(AGAIN, revoked_at=-100), {}, LOG_IN, False, 3500, "revoked"),
    "taken back an hour ago": (standing(AGAIN, revoked_at=-3600), {}, OFF, False, 0, "revoked"),
    "taken back after a long absence of the hub": (
        standing(AGAIN, last_yes=-86000, revoked_at=-1),
        {},
        LOG_IN,
        False,
        400,
        "revoked",
    ),
    "taken back from many at once": (
        standing(AGAIN, last_yes=-4000, revoked_at=-3600),
        {"held_back": True},
        LOG_IN,
        False,
        10400,
        "revoked",
    ),
    "nobody knows of a log-in": (UNKNOWN, {"noticed_at": NOW - 400}, LOG_IN, False, 86000, "age"),
    "nobody knew of a log-in for a day": (UNKNOWN, {"noticed_at": NOW - 86400}, OFF, False, 0, "age"),
    "nobody knows of a log-in, and nothing runs": (UNKNOWN, {}, LOG_IN, False, math.inf, "age"),
}


@pytest.mark.parametrize("row", TABLE.values(), ids=TABLE)
def test_what_follows(row: tuple[Standing, dict[str, float], Access, bool, float, str]) -> None:
    where, more, *expected = row
    follows = follow(
        where,
        KEEPER,
        bool(more.get("held_back")),
        more.get("noticed_at", 0.0),
        ignored=more.get("ignored_at", 0.0),
    )
    assert [follows.access, follows.may_start, follows.ends_at - NOW, follows.why] == expected


def test_a_sign_in_taken_back_is_told_with_when_and_why_and_how_to_keep_it() -> None:
    text = follow(standing(AGAIN, revoked_at=-100), KEEPER, False, 0.0).notice
    assert text.startswith("Please log in again: it says so.")
    assert "your servers stop at 2023-11-14 23:11 UTC" in text


def test_the_end_of_a_sign_in_is_told_before_it_comes() -> None:
    soon = standing(YES, sign_in_ends_at=50000, warn_at=100)
    assert follow(soon, KEEPER, False, 0.0).notice == ""
    text = follow(soon, KEEPER, False, 0.0, later=100).notice
    assert "Your sign-in runs out at 2023-11-15 12:06 UTC." in text
    assert "log out and in again" in text


def test_a_page_that_did_not_want_to_wait_says_nothing_of_an_outage() -> None:
    assert follow(standing(CANT_SAY, last_yes=-300), KEEPER, False, 0.0).notice == ""
    assert "not confirmed your membership" in follow(standing(CANT_SAY, last_yes=-301), KEEPER, False, 0.0).notice


def test_the_end_of_a_log_in_that_counts_by_its_age_is_told_in_the_last_quarter() -> None:
    assert follow(standing(YES, last_yes=-64800, aged=True), KEEPER, False, 0.0).notice == ""
    assert "log out and in again" in follow(standing(YES, last_yes=-64801, aged=True), KEEPER, False, 0.0).notice


def test_a_log_in_that_nobody_knows_of_names_no_time_that_never_was() -> None:
    """The page told of an end in 1970."""
    assert follow(UNKNOWN, KEEPER, False, 0.0).notice == "Please log in again: no log-in of this user is stored."
    assert "1970" not in follow(UNKNOWN, KEEPER, False, NOW - 5).notice


times = st.floats(-2e6, 2e6)
standings = st.builds(
    Standing,
    st.sampled_from(Verdict),
    st.just(NOW),
    st.just("it says so"),
    st.just(0.0) | times.map(lambda t: NOW - abs(t)),
    st.sampled_from(["", "one"]),
    aged=st.booleans(),
    revoked_at=st.just(0.0) | times.map(lambda t: NOW - abs(t)),
)
keepers = st.builds(
    Keeper,
    recheck_interval=st.floats(1, 1e4),
    outage_grace=st.floats(0, 1e6),
    membership_max_age=st.floats(0, 1e6),
    revoked_grace=st.floats(0, 1e6),
)


@given(standings, keepers, st.booleans(), st.just(0.0) | times.map(lambda t: NOW - abs(t)), times.map(abs))
def test_access_ends_when_it_was_said_to_end_and_never_comes_back(
    where: Standing, keeper: Keeper, held: bool, noticed: float, later: float
) -> None:
    """One answer for pages, API and rounds: each computed its own, and they had drifted."""
    first, then = follow(where, keeper, held, noticed), follow(where, keeper, held, noticed, later)
    assert (first.ends_at, first.why) == (then.ends_at, then.why)
    if where.verdict in (AGAIN, CANT_SAY) or (where.verdict is NO and held):
        assert (then.access is OFF) == (NOW + later >= then.ends_at)
    assert not (first.access is OFF and then.access is not OFF)
    assert not (then.may_start and then.access is OFF)


@given(standings, keepers, st.booleans())
def test_holding_back_never_ends_anything_sooner(where: Standing, keeper: Keeper, noticed: bool) -> None:
    plain, held = follow(where, keeper, False, NOW * noticed), follow(where, keeper, True, NOW * noticed)
    if where.verdict is not NO:
        assert held.ends_at >= plain.ends_at
    assert not (held.access is OFF and plain.access is not OFF)


@given(standings, keepers, times.map(lambda t: NOW + t), times.map(abs))
def test_ignoring_ends_nothing_sooner_and_is_never_without_an_end(
    where: Standing, keeper: Keeper, ignored: float, later: float
) -> None:
    """However often it is done, and whatever the clock does."""
    held, spared = follow(where, keeper, True, 0.0, later), follow(where, keeper, True, 0.0, later, ignored=ignored)
    assert not (spared.access is OFF and held.access is not OFF)
    if where.verdict in (NO, CANT_SAY):
        assert spared.ends_at <= where.last_yes + max(keeper.outage_grace, keeper.membership_max_age)
        assert spared.ends_at <= max(held.ends_at, NOW + later + keeper.outage_grace)


@given(standings, keepers)
def test_nobody_starts_a_server_without_a_log_in_that_counts(where: Standing, keeper: Keeper) -> None:
    if where.verdict is AGAIN and (where.revoked_at or not where.session_id):
        assert not follow(where, keeper, False, NOW - 1).may_start
