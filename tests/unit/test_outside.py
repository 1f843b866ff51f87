"""What is noted of credentials that people hold outside of their servers."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casa_hub import outside as module
from casa_hub.audit import Action
from casa_hub.errors import CredentialError
from casa_hub.outside import HandedOut, Outside

ALICE, BOB = 1, 2
NOW = datetime(2026, 11, 21, 4, tzinfo=UTC)


def handed(number: int = 1, *, lives: int | None = 60, **more: str | None) -> HandedOut:
    expires_at = None if lives is None else NOW + timedelta(seconds=lives)
    facts = {"server": None, "start_id": "", "started_as": "alice", **more}
    return HandedOut("xcache", identifiers={"jti": str(number)}, expires_at=expires_at, **facts)  # type: ignore[arg-type]


@given(lives=st.lists(st.none() | st.integers(-100, 100), max_size=20), later=st.integers(0, 200))
def test_all_that_has_not_expired_is_told_once(lives: list[int | None], later: int) -> None:
    outside = Outside()
    for number, seconds in enumerate(lives):
        outside.note(ALICE, handed(number, lives=seconds), NOW)
    then = NOW + timedelta(seconds=later)
    expected = [str(number) for number, seconds in enumerate(lives) if seconds is None or seconds > later]
    assert [one.identifiers["jti"] for one in outside.take(ALICE, then)] == expected
    assert outside.take(ALICE, then) == []


def test_everybody_has_notes_of_their_own() -> None:
    outside = Outside()
    outside.note(ALICE, handed(), NOW)
    assert outside.take(BOB, NOW) == []
    assert outside.take(ALICE, NOW) == [handed()]


def test_the_same_token_again_is_one_note() -> None:
    outside = Outside()
    for _ in range(3):
        outside.note(ALICE, handed(lives=None), NOW)
    assert outside.held(ALICE, NOW) == [handed(lives=None)]


def test_two_credentials_without_identifiers_are_two_notes() -> None:
    """A site's own minter may have none, and an access token that can't be read has none."""
    outside = Outside()
    both = [replace(handed(), credential=name, identifiers={}) for name in ("bearer", "badge")]
    for one in both:
        outside.note(ALICE, one, NOW)
    assert outside.held(ALICE, NOW) == both


def test_the_notes_of_one_person_don_t_fill_the_hub_s_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST", 2)
    outside = Outside()
    for number in (1, 2):
        outside.note(ALICE, handed(number), NOW)
    with pytest.raises(CredentialError, match="you hold 2 credentials outside of servers"):
        outside.note(ALICE, handed(3), NOW)
    outside.note(BOB, handed(3), NOW)
    outside.note(ALICE, handed(3), NOW + timedelta(seconds=60))


def test_the_event_is_about_the_user_or_about_the_server_that_it_belongs_to() -> None:
    event = handed().event(Action.REVOKED, "alice", reason="out", by="the operator")
    assert (event.server, event.start_id, event.started_as) == (None, "", "")
    assert (event.reason, event.by, event.expires_at) == ("out", "the operator", "2026-11-21T04:01:00+00:00")
    event = handed(server="lab", start_id="0" * 32, started_as="alicia").event(Action.MINTED, "alice")
    assert (event.server, event.start_id, event.started_as) == ("lab", "0" * 32, "alicia")
