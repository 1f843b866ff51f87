"""Lifetimes as people write them, and when a credential is renewed."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casa_hub.client.errors import ClientError
from casa_hub.client.schedule import moment, renewal, retry, seconds, told

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "value"),
    [("1h", 3600), ("90m", 5400), ("1.5h", 5400), ("2d", 172800), ("45", 45), ("45s", 45), (" 1h ", 3600)],
)
def test_a_lifetime_is_read(text: str, value: int) -> None:
    assert seconds(text) == value


@pytest.mark.parametrize("text", ["", "0", "-1h", "h", "1w", "1h30m", "0.1s", "1e3", "٣h", "1" * 12])
def test_what_is_no_lifetime_is_refused_with_examples(text: str) -> None:
    with pytest.raises(ClientError, match=r"--lifetime: is no time. Examples: 90m"):
        seconds(text)


@given(life=st.floats(min_value=0, max_value=10**7))
def test_it_is_renewed_with_a_third_of_its_life_left(life: float) -> None:
    """And never without a pause, however short it lives."""
    due = renewal(NOW, NOW + timedelta(seconds=life))
    assert due == pytest.approx(max(life * 2 / 3, 5), abs=1e-3)


@given(left=st.floats(min_value=-(10**6), max_value=10**7))
def test_a_hub_that_can_t_be_asked_is_asked_again_within_a_minute_and_never_hammered(left: float) -> None:
    assert 5 <= retry(left) <= 60


def test_times_of_the_hub_are_read_with_their_zone() -> None:
    assert moment("2026-03-01T13:00:00+01:00") == NOW
    assert moment("2026-03-01T12:00:00") == NOW
    assert moment("2026-03-01T12:00:00Z") == NOW
    for wrong in (None, 5, "", "soon"):
        with pytest.raises(ValueError, match=r"."):
            moment(wrong)


def test_times_are_told_shortly_if_they_are_near() -> None:
    here = NOW.astimezone()
    assert told(NOW, NOW - timedelta(hours=1)) == f"{here:%H:%M}"
    assert told(NOW, NOW - timedelta(days=1)) == f"{here:%Y-%m-%d %H:%M}"
