"""The numbers of who is given what a credential is made of, and who isn't."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import REGISTRY

from casa_hub.credentials.fetching import Fetched, FetchError, Why
from casa_hub.membership.fetch_outcomes import FetchOutcomes, Trouble
from casa_hub.metrics import FETCH_OUTCOMES
from tests.support.clock import Clock

NOW, HOUR = 1.7e9, 3600.0
RUCIO, PROXY = "exchange:rucio", "x509"


@pytest.fixture
def clock() -> Clock:
    return Clock(NOW)


@pytest.fixture
def outcomes(clock: Clock) -> FetchOutcomes:
    return FetchOutcomes(clock)


def refusal(problem: str, why: Why = Why.REFUSED) -> FetchError:
    return FetchError("Rucio token", problem, "Do it.", why)


def success(until: float) -> Fetched:
    return Fetched("secret", *(datetime.fromtimestamp(moment, UTC) for moment in (NOW, until)))


def test_the_same_reason_of_several_people_is_one_trouble_with_the_newest_words(
    outcomes: FetchOutcomes, clock: Clock
) -> None:
    for user, problem in enumerate(["is old", "is older", "may not"]):
        clock.now += 1
        outcomes.note(RUCIO, user, refusal(problem))
    assert outcomes.troubles() == [Trouble(RUCIO, Why.REFUSED, 3, "Rucio token: may not", "Do it.")]


def test_refusals_and_outages_are_told_apart_and_by_service(outcomes: FetchOutcomes) -> None:
    outcomes.note(PROXY, 1, refusal("none"))
    outcomes.note(RUCIO, 1, refusal("away", Why.OUTAGE))
    outcomes.note(RUCIO, 2, refusal("over", Why.SIGN_IN))
    outcomes.note(RUCIO, 3, refusal("may not"))
    found = [(one.credential, one.why, one.users) for one in outcomes.troubles()]
    assert found == [(RUCIO, Why.REFUSED, 1), (RUCIO, Why.OUTAGE, 1), (RUCIO, Why.SIGN_IN, 1), (PROXY, Why.REFUSED, 1)]


def test_whoever_is_given_it_again_is_no_trouble_any_more(outcomes: FetchOutcomes) -> None:
    outcomes.note(RUCIO, 1, refusal("away", Why.OUTAGE))
    outcomes.note(RUCIO, 1, success(NOW + HOUR))
    assert outcomes.troubles() == []
    assert outcomes.count(RUCIO, "fetched") == 1


def test_a_failure_that_nobody_repeats_is_forgotten_after_an_hour(outcomes: FetchOutcomes, clock: Clock) -> None:
    """Of somebody whose server has stopped: a running one asks again sooner."""
    outcomes.note(RUCIO, 1, refusal("none"))
    clock.now += HOUR - 1
    assert outcomes.count(RUCIO, "refused") == 1
    clock.now += 1
    assert outcomes.count(RUCIO, "refused") == 0
    assert outcomes.troubles() == []


def test_a_success_counts_as_long_as_what_was_fetched_lives(outcomes: FetchOutcomes, clock: Clock) -> None:
    outcomes.note(RUCIO, 1, success(NOW + 5 * HOUR))
    clock.now += 5 * HOUR - 1
    assert outcomes.count(RUCIO, "fetched") == 1
    clock.now += 1
    assert outcomes.count(RUCIO, "fetched") == 0


def test_there_is_a_number_for_each_reason() -> None:
    assert set(FETCH_OUTCOMES) == {"fetched", *Why}


def test_the_metrics_forget_with_time_without_another_request(outcomes: FetchOutcomes, clock: Clock) -> None:
    def users() -> float | None:
        return REGISTRY.get_sample_value("casa_hub_fetch_users", {"credential": "exchange:one", "outcome": "outage"})

    outcomes.note("exchange:one", 1, refusal("away", Why.OUTAGE))
    assert users() == 1
    clock.now += HOUR
    assert users() == 0


@given(st.lists(st.tuples(st.integers(0, 5), st.sampled_from([None, *Why]), st.floats(0, HOUR)), max_size=30))
def test_nobody_is_counted_twice(events: list[tuple[int, Why | None, float]]) -> None:
    clock = Clock(NOW)
    outcomes = FetchOutcomes(clock)
    for user, why, later in events:
        clock.now += later
        outcomes.note(RUCIO, user, success(clock.now + HOUR) if why is None else refusal("none", why))
    counted = {outcome: outcomes.count(RUCIO, outcome) for outcome in FETCH_OUTCOMES}
    assert sum(counted.values()) <= len({user for user, _, _ in events})
    assert {one.why: one.users for one in outcomes.troubles()} == {
        Why(outcome): count for outcome, count in counted.items() if count and outcome != "fetched"
    }
