"""What is kept of a log-in: when its refresh token ends, and that nothing of it is lost on the way to the database."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import jwt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from casa_hub.credentials.fetching import Fetched
from casa_hub.identity.session import Kept, Session
from casa_hub.identity.tokens import Tokens, read_answer

NOW, DAY = 1.7e9, 86400.0


def answer(**more: Any) -> Tokens:
    tokens, problem = read_answer({"access_token": "a", "refresh_token": "r", **more}, "the token end point", NOW)
    assert problem is None
    assert tokens is not None
    return tokens


def iams(end: object) -> str:
    """INDIGO IAM's refresh tokens are JWTs without a signature."""
    return jwt.encode({"exp": end, "jti": "1"}, key=None, algorithm="none")


ENDS: dict[str, tuple[dict[str, Any], float | None]] = {
    "Keycloak": ({"refresh_expires_in": 1800}, NOW + 1800),
    "Keycloak, offline": ({"refresh_expires_in": 0}, None),
    "IAM": ({"refresh_token": iams(int(NOW + 30 * DAY))}, NOW + 30 * DAY),
    "a number as text": ({"refresh_expires_in": "1800"}, NOW + 1800),
    "an opaque token": ({}, None),
    "a JWT without an end": ({"refresh_token": jwt.encode({"jti": "1"}, key=None, algorithm="none")}, None),
    "a JWT whose end is over": ({"refresh_token": iams(int(NOW - 1))}, None),
    "an end that is no number": ({"refresh_expires_in": "never"}, None),
    "three parts that are no JWT": ({"refresh_token": "a.b.c"}, None),
}


@pytest.mark.parametrize(("more", "end"), ENDS.values(), ids=ENDS)
def test_when_a_refresh_token_ends_is_told_by_the_provider(more: dict[str, Any], end: float | None) -> None:
    assert answer(**more).refresh_expires_at == end


def session(end: float | None, told_at: float = NOW) -> Session:
    return Session(
        id="one",
        issuer="https://idp.example.org",
        sub="s",
        access_token="a",
        refresh_token="r",
        expires_at=NOW + 3600,
        obtained_at=NOW,
        scope=None,
        last_yes=NOW,
        claims={},
        refresh_expires_at=end,
        refresh_told_at=told_at,
    )


def refreshed(before: Session, now: float, end: float | None, *, token: str = "newer") -> Session:
    return before.refreshed(Tokens("a2", token, "", now + 3600, now, None, end))


def test_an_end_that_stays_is_told_a_tenth_of_the_whole_life_before() -> None:
    """The same refresh token again, as INDIGO IAM gives it: thirty days from the log-in, however often it is used."""
    later = refreshed(session(NOW + 5 * DAY), NOW + 3 * DAY, NOW + 5 * DAY + 1)
    assert later.warn_at == pytest.approx(NOW + 4.5 * DAY, abs=2)


def test_an_end_that_each_refresh_moves_on_is_never_near() -> None:
    """Keycloak's idle time: half an hour from each refresh; a notice of it would be on every page for ever."""
    one, now = session(NOW + 1800), NOW
    for _ in range(100):
        now += 200
        one = refreshed(one, now, now + 1800)
        assert now < one.warn_at - 1000


def test_a_refresh_token_that_stays_the_same_keeps_its_end() -> None:
    later = refreshed(session(NOW + DAY), NOW + 100, None, token="")
    assert (later.refresh_expires_at, later.refresh_told_at) == (NOW + DAY, NOW)


@pytest.mark.parametrize(("before", "end"), [(None, NOW + 1900), (NOW + 1800, None)], ids=["from now on", "no more"])
def test_an_end_may_begin_to_be_told_or_cease_to_be(before: float | None, end: float | None) -> None:
    """It begins to be at the first refresh of a log-in that an earlier version stored."""
    later = refreshed(session(before, 0.0), NOW + 100, end)
    assert (later.refresh_expires_at, later.refresh_told_at) == (end, NOW + 100)


def test_an_access_token_whose_life_is_not_known_is_always_due() -> None:
    assert replace(session(None), expires_at=None).due(NOW)
    assert not session(None).due(NOW)


def test_without_an_end_there_is_no_notice_of_it() -> None:
    assert session(None).warn_at == math.inf
    assert not session(None).outlived(NOW + 1000 * DAY, 60)


@given(st.floats(1, 1e8), st.floats(0, 600), st.floats(-1e8, 1e8))
def test_a_session_is_outlived_at_its_end_or_within_the_leeway_before(life: float, leeway: float, at: float) -> None:
    one = session(NOW + life)
    if at >= life:
        assert one.outlived(NOW + at, leeway)
    if at < life - leeway or at < life * 0.89:
        assert not one.outlived(NOW + at, leeway)


@given(st.none() | st.floats(NOW, 2e9), st.floats(0, 2e9), st.floats(0, 2e9))
def test_what_is_stored_of_a_session_is_read_again(end: float | None, told_at: float, revoked_at: float) -> None:
    one = replace(session(end, told_at), revoked_at=revoked_at, earlier_sids=("2", "1"))
    assert Session.from_auth_state(json.loads(json.dumps(one.to_auth_state()))) == one


def test_what_was_fetched_is_stored_with_a_session_and_stays_through_a_refresh() -> None:
    at = datetime(2026, 8, 1, 12, 0, 0, 250000, tzinfo=UTC)
    kept = {"exchange:rucio": Kept("of the request", Fetched("very-secret", at, at + timedelta(hours=1)))}
    one = replace(session(None), fetched=kept)
    assert Session.from_auth_state(json.loads(json.dumps(one.to_auth_state()))) == one
    assert one.refreshed(answer()).fetched == kept
    assert "very-secret" not in repr(one)


def test_a_new_log_in_begins_with_nothing_fetched() -> None:
    at = datetime(2026, 8, 1, tzinfo=UTC)
    kept = {"a": Kept("f", Fetched("very-secret", at, at))}
    assert session(None).after(replace(session(None), fetched=kept)).fetched == {}


def test_a_session_that_an_earlier_version_stored_is_read() -> None:
    state = session(NOW + 1).to_auth_state()
    for name in ("refresh_expires_at", "refresh_told_at", "revoked_at", "earlier_sids"):
        del state["casa"][name]
    assert Session.from_auth_state(state) == session(None, 0.0)


def at(sid: str, sub: str = "s", issuer: str = "https://idp.example.org") -> Session:
    return replace(session(None), sid=sid, sub=sub, issuer=issuer)


def test_the_browser_sessions_of_earlier_log_ins_are_remembered_the_newest_first() -> None:
    first = at("1").after(None)
    third = at("3").after(at("2").after(first))
    assert (first.earlier_sids, third.earlier_sids) == ((), ("2", "1"))
    # A second log-in of one browser session is no other one; nor is one that the provider gave no id.
    assert at("3").after(third).earlier_sids == ("2", "1")
    assert at("2").after(third).earlier_sids == ("3", "1")
    assert at("").after(third).earlier_sids == ("3", "2", "1")
    assert third.refreshed(answer()).earlier_sids == ("2", "1")


def test_only_so_many_browser_sessions_are_remembered() -> None:
    last = at("0")
    for number in range(1, 50):
        last = at(str(number)).after(last)
    assert last.earlier_sids == tuple(str(number) for number in range(48, 40, -1))


@pytest.mark.parametrize("other", [at("1", sub="another"), at("1", issuer="https://another.example.org")])
def test_the_browser_sessions_of_somebody_else_are_not_remembered(other: Session) -> None:
    assert at("2").after(other).earlier_sids == ()
