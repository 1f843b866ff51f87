"""When somebody's turn is: evenly spread, at the same place in each round, however many they are."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from casa_hub.keeper.rounds import turn

TIMES = st.floats(1.6e9, 2e9)
LENGTHS = st.floats(0.5, 1e5)


@given(st.text(), TIMES, LENGTHS)
def test_the_next_turn_is_within_one_round(name: str, now: float, length: float) -> None:
    at = turn(name, now, length)
    assert now < at <= now + length + 1e-3


@given(st.text(), TIMES, LENGTHS)
def test_turns_follow_each_other_at_the_length_of_a_round(name: str, now: float, length: float) -> None:
    first = turn(name, now, length)
    assert abs(turn(name, first + length / 1000, length) - first - length) < 1e-3


@given(st.text(), TIMES, LENGTHS, st.floats(0, 1))
def test_a_restart_in_between_changes_nothing(name: str, now: float, length: float, part: float) -> None:
    at = turn(name, now, length)
    between = now + (at - now) * part * 0.999
    assert abs(turn(name, between, length) - at) < 1e-3 or at - between < 1e-3


def test_five_hundred_users_are_asked_evenly() -> None:
    length = 225.0
    seconds = Counter(int(turn(f"user-{number}", 1.7e9, length) - 1.7e9) for number in range(500))
    assert max(seconds.values()) <= 10  # 2.2 on average
    tens = Counter(int(turn(f"user-{number}", 1.7e9, length) - 1.7e9) // 25 for number in range(500))
    assert min(tens.values()) >= 30  # of 55 on average
