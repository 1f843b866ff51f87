"""How long what was fetched counts, and that nothing of it is lost, or believed, on the way to the database."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st

from casa_hub.credentials.fetching import Answer, Fetch, Fetched, FetchError, Why
from casa_hub.identity.session import Session, _kept
from casa_hub.metrics import FETCH_OUTCOMES

AT = datetime(2026, 8, 1, 12, tzinfo=UTC)
MOMENTS = st.datetimes(datetime(2000, 1, 1), datetime(2200, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001
LIVES = st.timedeltas(timedelta(seconds=1), timedelta(days=3650))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda more: st.lists(more, max_size=4) | st.dictionaries(st.text(), more, max_size=4),
    max_leaves=12,
)


def token(at: datetime = AT, life: timedelta = timedelta(hours=1), value: str = "very-secret") -> Fetched:
    return Fetched(value, at, at + life)


def fetch(**more: Any) -> Fetch:
    return Fetch("a token", lambda _: token(), **{"form": {"audience": "a", "scope": "b"}, **more})


@given(at=MOMENTS, life=LIVES, key=st.text())
def test_it_counts_for_two_thirds_of_its_life_a_little_more_or_less(at: datetime, life: timedelta, key: str) -> None:
    one = token(at, life)
    part = (one.counts_until(key) - at) / life
    assert 0.61 <= part <= 0.72
    assert one.counts_until(key) == one.counts_until(key)


def test_a_thousand_that_were_fetched_at_once_are_not_asked_for_in_step() -> None:
    ends = sorted(token().counts_until(f"rucio {number}") for number in range(1000))
    assert ends[-1] - ends[0] > timedelta(minutes=5)
    # In no ten seconds more than an even spread over these six minutes would bring, and chance.
    most = max(sum(end <= other < end + timedelta(seconds=10) for other in ends) for end in ends)
    assert most < 60


def test_two_of_one_person_are_not_asked_for_in_step() -> None:
    assert token().counts_until("rucio one") != token().counts_until("panda one")


@given(at=MOMENTS, life=LIVES, value=st.text())
def test_a_document_is_read_as_it_was_written(at: datetime, life: timedelta, value: str) -> None:
    one = token(at, life, value)
    read = Fetched.from_document(json.loads(json.dumps(one.to_document())))
    assert read.value == value
    for before, after in ((one.at, read.at), (one.expires_at, read.expires_at)):
        assert abs(after - before) <= timedelta(microseconds=1)


@given(document=JSON)
@example({"rucio": {"value": "x", "at": 1e300, "expires_at": 0, "for": ""}})
@example({"rucio": {"value": "x", "at": float("nan"), "expires_at": 0, "for": ""}})
@example({"rucio": {"value": 1, "at": 0, "expires_at": 0, "for": ""}})
@example({"rucio": {"value": "x", "at": "0", "expires_at": 0, "for": ""}})
@example({"rucio": {"value": "x", "at": 0, "expires_at": 0}})
@example({"rucio": ["value"], "panda": None})
def test_what_is_no_document_is_dropped(document: Any) -> None:
    assert _kept(document) == {}


@given(document=JSON)
def test_what_is_no_document_costs_no_log_in_and_not_its_neighbours(document: Any) -> None:
    """The log-in would be lost, with a refresh token that is nowhere else."""
    good = {**token().to_document(), "for": "f"}
    state = {
        "access_token": "a",
        "refresh_token": "r",
        "scope": [],
        "oauth_user": {},
        "casa": {
            "version": 1,
            "session": "one",
            "issuer": "i",
            "sub": "s",
            "expires_at": None,
            "obtained_at": 0,
            "scope_known": False,
            "last_yes": 0,
            "fetched": {"bad": document, "good": good},
        },
    }
    session = Session.from_auth_state(state)
    assert session is not None
    assert session.fetched["good"].fetched == token()
    assert session.fetched.keys() == {"good"}


def test_another_request_has_another_fingerprint() -> None:
    fingerprints = {
        one.fingerprint
        for one in (
            fetch(),
            fetch(form={"audience": "b", "scope": "a"}),
            fetch(form={"audience": "a"}),
            fetch(form={}),
            fetch(url="/proxy"),
            fetch(url="https://a.example.org"),
        )
    }
    assert len(fingerprints) == 6


def test_the_order_of_a_form_and_what_people_read_make_no_other_request() -> None:
    other = fetch(form={"scope": "b", "audience": "a"}, ca_file="/etc/ca.pem")
    assert replace(other, title="another title").fingerprint == fetch().fingerprint


def test_no_secret_stands_in_a_repr() -> None:
    answer = Answer(200, {"access_token": "very-secret"}, AT, "issuer", "sub")
    assert "very-secret" not in repr([token(), answer, {"rucio": token()}])
    assert "very-secret" not in str([token(), answer])


def test_each_reason_for_a_failure_is_counted_from_the_hub_s_start() -> None:
    assert {*FETCH_OUTCOMES} == {*Why, "fetched"}


def test_a_failure_is_an_outage_unless_it_says_otherwise() -> None:
    error = FetchError("idp", "is away", "Wait.")
    assert error.why is Why.OUTAGE
    assert str(error) == "idp: is away. Wait."
