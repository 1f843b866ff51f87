"""Which "no"s are held back: properties over any order of events, and the cases of the operator's guide."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from casa_hub.membership.loss_limit import Holdback, Ruling, limit
from casa_hub.membership.member import Members
from casa_hub.membership.settings import Keeper

WINDOW = 300.0
#: As the clock has it: at the beginning of all times, sums and differences are the same.
NOW = 1.7e9


def a_hub() -> Holdback:
    return Holdback(Members(Keeper()), WINDOW)


def users(count: int) -> list[str]:
    return [f"user-{number}" for number in range(count)]


def asked_one_by_one(holdback: Holdback, everybody: list[str], out: set[str], now: float = 0.0) -> Ruling:
    """As the gate does it: the first of those who are out is found, then others are asked until there is a ruling."""
    order = sorted(everybody, key=lambda name: name not in out)[:1] + sorted(everybody, key=hash)
    heard: set[str] = set()
    for name in order:
        heard.add(name)
        if name in out:
            holdback.no(name, now)
        if holdback.new and (ruling := holdback.rule(now, everybody, set(everybody) - heard)) is not Ruling.WAIT:
            return ruling
    raise AssertionError("all were asked, and there is no ruling")


@given(st.integers(1, 600), st.data())
def test_one_round_is_held_back_exactly_when_more_than_the_limit_are_out(count: int, data: st.DataObject) -> None:
    everybody = users(count)
    out = set(data.draw(st.lists(st.sampled_from(everybody), min_size=1, unique=True)))
    held = asked_one_by_one(a_hub(), everybody, out) is Ruling.HOLD
    assert held == (len(out) > limit(count))


@given(st.integers(1, 3))
def test_with_up_to_three_users_nothing_waits(count: int) -> None:
    holdback = a_hub()
    for name in users(count):
        holdback.no(name, 0.0)
        assert holdback.rule(0.0, users(count), users(count)) is Ruling.GO
        holdback.go(0.0)


EVENT = st.one_of(
    st.tuples(st.just("no"), st.integers(0, 59)),
    st.tuples(st.just("yes"), st.integers(0, 59)),
    st.tuples(st.just("later"), st.floats(0.1, 200)),
    st.tuples(st.just("rule"), st.sets(st.integers(0, 59))),
    st.tuples(st.just("deadline"), st.sets(st.integers(0, 59))),
)


@given(st.integers(4, 60), st.lists(EVENT, max_size=200))
def test_in_no_window_more_than_the_limit_lose_their_access(count: int, events: list[tuple[str, object]]) -> None:
    """Whatever is said when, by whomever, and however slow the others are to be asked."""
    holdback, now = a_hub(), NOW
    everybody = set(users(count))
    gone: list[tuple[float, str]] = []
    for what, value in events:
        if what == "no":
            holdback.no(f"user-{value % count}", now)  # type: ignore[operator]
        elif what == "yes":
            holdback.drop(f"user-{value % count}")  # type: ignore[operator]
        elif what == "later":
            now += value  # type: ignore[operator]
        elif holdback.new:
            unheard = {f"user-{number % count}" for number in value}  # type: ignore[attr-defined]
            if what == "deadline":
                ruling = holdback.rule(now, everybody - unheard)
                assert ruling is not Ruling.WAIT
            else:
                ruling = holdback.rule(now, everybody, unheard)
            if ruling is Ruling.GO:
                gone += [(now, name) for name in holdback.go(now)]
            elif ruling is Ruling.HOLD:
                holdback.hold(now)
        lately = {name for at, name in gone if now - at < WINDOW}
        assert len(lately) <= limit(count)
        assert not set(holdback.new) & set(holdback.held)


def test_a_trickle_in_one_round_counts_together() -> None:
    holdback, everybody = a_hub(), users(20)
    for name in everybody[:3]:
        assert holdback.no(name, NOW)
    assert holdback.rule(NOW, everybody) is Ruling.GO
    holdback.go(NOW)
    holdback.no(everybody[3], NOW + 60)
    assert holdback.rule(NOW + 60, everybody) is Ruling.HOLD
    # A round later it would be one of twenty again.
    assert holdback.rule(NOW + WINDOW + 1, everybody) is Ruling.GO


def test_those_who_left_before_the_clock_was_put_back_count_no_more() -> None:
    """Else each single "no" of the next hours would raise the alarm."""
    holdback, everybody = a_hub(), users(20)
    for name in everybody[:3]:
        holdback.no(name, 0.0)
    holdback.go(0.0)
    holdback.no(everybody[3], -3600.0)
    assert holdback.rule(-3600.0, everybody) is Ruling.GO


def test_while_some_are_held_back_others_count_with_them_until_they_are_confirmed_or_released() -> None:
    holdback, everybody = a_hub(), users(10)
    for name in everybody[:5]:
        holdback.no(name, 0.0)
    assert holdback.rule(0.0, everybody) is Ruling.HOLD
    assert holdback.hold(0.0) == tuple(everybody[:5])
    assert not holdback.no(everybody[0], 1.0)  # no news
    holdback.no(everybody[5], 1000.0)
    assert holdback.rule(1000.0, everybody) is Ruling.HOLD
    for name in everybody[:5]:
        holdback.drop(name)
    assert holdback.held == {}
    # The operator has seen to those; the next one is one again.
    assert holdback.rule(1000.0, everybody) is Ruling.GO


def test_who_is_a_member_after_all_counts_no_more() -> None:
    holdback, everybody = a_hub(), users(10)
    for name in everybody[:4]:
        holdback.no(name, 0.0)
    assert holdback.rule(0.0, everybody) is Ruling.HOLD
    holdback.drop(everybody[0])
    assert holdback.rule(0.0, everybody) is Ruling.GO


def test_those_who_could_not_be_asked_count_neither_way() -> None:
    """Half of the provider is down: ten of those who could be asked are too many of fifty, though not of a hundred."""
    holdback, everybody = a_hub(), users(100)
    for name in everybody[:6]:
        holdback.no(name, 0.0)
    silent = set(everybody[50:])
    assert holdback.rule(0.0, everybody, silent) is Ruling.WAIT
    assert holdback.rule(0.0, set(everybody) - silent) is Ruling.HOLD
    assert holdback.rule(0.0, everybody) is Ruling.GO
