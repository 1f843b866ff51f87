"""Renewals in the time of a test's own clock."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest

from casa_hub.client.answers import Issued
from casa_hub.client.errors import ClientError, RefusedError
from casa_hub.client.keep import keep

#: The hub's clock is years away from this machine's.
HUB_S = datetime(2001, 1, 1, tzinfo=UTC)


def issued(life: float | None) -> Issued:
    expires = None if life is None else HUB_S + timedelta(seconds=life)
    return Issued("xcache", "XCache macaroon", HUB_S, expires, {"xcache_token": b"x"}, {})


class World:
    """A clock that goes on when somebody sleeps, and a hub that answers by a script; the last answer ends all."""

    def __init__(self, *answers: Issued | ClientError) -> None:
        self.now = 1_000_000.0
        self.begun = self.now
        self.answers = list(answers)
        self.asked: list[float] = []
        self.said: list[str] = []
        #: Called with each sleep, such as to let the machine be suspended.
        self.on_sleep: Callable[[], None] = lambda: None

    def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.now += seconds
        self.on_sleep()

    def renew(self) -> Issued:
        self.asked.append(round(self.now - self.begun))
        answer = self.answers.pop(0)
        if isinstance(answer, ClientError):
            raise answer
        return answer

    def run(self, first: Issued) -> None:
        keep(first, self.renew, self.said.append, clock=lambda: self.now, sleep=self.sleep)


def test_it_is_renewed_at_two_thirds_of_each_life_until_the_hub_says_no() -> None:
    world = World(issued(3600), issued(900), RefusedError("hub", "no member any more"))
    with pytest.raises(RefusedError, match="no member any more"):
        world.run(issued(3600))
    assert world.asked == [2400, 4800, 5400]
    assert world.said == []


def test_an_outage_is_told_once_and_tried_again_until_it_is_over() -> None:
    away = ClientError("https://hub", "can't be reached (Connection refused)")
    world = World(away, away, away, issued(3600), RefusedError("hub", "no"))
    with pytest.raises(RefusedError):
        world.run(issued(3600))
    assert world.asked == [2400, 2460, 2520, 2580, 2580 + 2400]
    (said,) = world.said
    assert said.startswith("Not renewed yet; tried again until it can be. https://hub: can't be reached")


def test_an_outage_longer_than_the_life_is_outlasted() -> None:
    away = ClientError("https://hub", "can't be reached")
    world = World(*[away] * 200, issued(60), RefusedError("hub", "no"))
    with pytest.raises(RefusedError):
        world.run(issued(60))
    assert len(world.said) == 1
    pauses = [later - earlier for earlier, later in zip(world.asked, world.asked[1:], strict=False)]
    assert min(pauses[:200]) >= 5


def test_a_laptop_that_was_asleep_renews_soon_after_it_wakes() -> None:
    world = World(issued(3600), RefusedError("hub", "no"))

    def suspended() -> None:
        if not world.asked and world.now - world.begun > 100:
            world.now += 30_000

    world.on_sleep = suspended
    with pytest.raises(RefusedError):
        world.run(issued(3600))
    assert world.asked[0] < 30_200


def test_what_doesn_t_expire_is_not_renewed() -> None:
    world = World()
    world.run(issued(None))
    assert world.asked == []
    assert world.said == ["XCache macaroon: doesn't expire; there is nothing to renew."]
