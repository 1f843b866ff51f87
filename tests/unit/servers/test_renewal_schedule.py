"""When what is due: spread, in time, and neither too often nor too seldom."""

from __future__ import annotations

from collections import Counter

from hypothesis import example, given
from hypothesis import strategies as st

from casa_hub.servers import renewal_schedule

TIMES = st.floats(1e9, 4e9)
LIVES = st.floats(1, 1e8)
JITTER = st.floats(-1, 1)
TEXT = st.text(max_size=40)

HALF_A_DAY = 43200.0


@given(TIMES, LIVES, JITTER)
def test_it_is_renewed_when_about_two_thirds_of_its_life_are_gone(issued: float, life: float, jitter: float) -> None:
    expires = issued + life
    when = renewal_schedule.due(issued, expires, jitter)
    assert 0.61 < (when - issued) / (expires - issued) < 0.72
    assert issued < renewal_schedule.along(issued, expires, when) < when
    assert not renewal_schedule.is_late(issued, expires, when)


@given(TEXT, TEXT)
def test_jitter_is_the_same_each_time(server: str, start_id: str) -> None:
    one = renewal_schedule.jitter(server, start_id)
    assert -1 <= one <= 1
    assert one == renewal_schedule.jitter(server, start_id)


def test_a_thousand_servers_that_started_together_do_not_renew_together() -> None:
    dues = [renewal_schedule.due(0, HALF_A_DAY, renewal_schedule.jitter(f"user-{n}", f"{n:032x}")) for n in range(1000)]
    assert max(Counter(map(int, dues)).values()) <= 5, "in one second"
    assert max(dues) - min(dues) > 0.09 * HALF_A_DAY


@given(TIMES, LIVES, st.floats(0, 1))
def test_it_is_late_in_the_last_sixth_of_its_life(issued: float, life: float, part: float) -> None:
    expires = issued + life
    now = issued + part * life
    if abs(expires - now - life / 6) > 1e-3:
        assert renewal_schedule.is_late(issued, expires, now) == (expires - now < life / 6)


@given(st.none() | TIMES, TIMES, st.integers(1, 10**6))
@example(2e9, 2e9, 1)
def test_a_pause_after_a_failure_is_between_a_second_and_ten_minutes(
    expires: float | None, now: float, failures: int
) -> None:
    assert 1 - 1e-3 < renewal_schedule.again(expires, now, failures) - now < 600 + 1e-3


@given(st.floats(60, 1e8), JITTER)
def test_there_are_several_tries_before_the_end_and_not_too_many(life: float, jitter: float) -> None:
    now, tries = renewal_schedule.due(0, life, jitter), 0
    while now < life:
        tries += 1
        now = renewal_schedule.again(life, now, tries)
    assert tries >= 10
    # So that an API server which is away isn't asked all the time, however many servers there are.
    assert tries <= 100 + life * 0.4 / 600


def test_after_the_end_it_is_tried_less_and_less_often() -> None:
    soon, late = (renewal_schedule.again(0, now, 50) - now for now in (1.0, 1e5))
    assert soon == 1
    assert late == 600
