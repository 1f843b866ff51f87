"""One time, in the form for people and in the form for programs."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

from hypothesis import given
from hypothesis import strategies as st

from casa_hub.moments import iso, when


def test_both_are_utc_whatever_the_zone_of_the_time() -> None:
    moment = datetime(2026, 3, 1, 14, 5, 59, tzinfo=timezone(timedelta(hours=2)))
    assert when(moment) == when(moment.timestamp()) == "2026-03-01 12:05 UTC"
    assert iso(moment) == iso(moment.timestamp()) == "2026-03-01T12:05:59+00:00"


@given(st.integers(0, 2**32))
def test_a_program_can_read_what_it_is_told_and_show_it_as_the_pages_do(seconds: int) -> None:
    read = datetime.fromisoformat(iso(seconds))
    assert read == datetime.fromtimestamp(seconds, UTC)
    assert when(read) == when(seconds)
