"""Pure: which "no"s take effect, and which are held back because too many come together.

One person who leaves an experiment is a "no". Thirty in five minutes are a mapper that somebody removed, a database
that was restored, or an AUP that all have to sign again: each of them is an explicit "no" all the same, so only their
number tells. Contract, for any order of events:

- within `window` seconds no more than `limit` of the users lose their access, unless the operator confirms it;
- a "no" waits for the others only as long as it matters what they say;
- with up to three users nothing waits and nothing is held back.
"""

from __future__ import annotations

from collections.abc import Collection
from enum import StrEnum

#: So many "no"s are never too many, whatever the number of users.
FEWEST = 3
#: Of all users, the part that may be out at once: one in so many.
ONE_IN = 10


def limit(users: int) -> int:
    """How many "no"s among so many users are still believed at once."""
    return max(FEWEST, users // ONE_IN)


class Ruling(StrEnum):
    """About the "no"s that are new."""

    #: More of the others have to be asked.
    WAIT = "wait"
    #: They take effect.
    GO = "go"
    #: They are held back.
    HOLD = "hold"


class Holdback:
    """The "no"s of a hub: new ones, those that are held back, and those that took effect a short time ago."""

    def __init__(self, window: float) -> None:
        """`window`: seconds in which "no"s count together."""
        self._window = window
        self._new: dict[str, float] = {}
        self._held: dict[str, float] = {}
        self._gone: dict[str, float] = {}

    @property
    def new(self) -> tuple[str, ...]:
        """Whose "no" has to be weighed."""
        return tuple(self._new)

    @property
    def held(self) -> dict[str, float]:
        """Whose "no" is held back, and since when."""
        return dict(self._held)

    def no(self, name: str, now: float) -> bool:
        """Somebody is no member. Returns whether that is news, which has to be weighed."""
        if name in self._held or name in self._new:
            return False
        self._new[name] = now
        return True

    def drop(self, name: str) -> None:
        """He is a member after all, or his access has ended another way."""
        self._new.pop(name, None)
        self._held.pop(name, None)

    def rule(self, now: float, users: Collection[str], unheard: Collection[str] = ()) -> Ruling:
        """What to do with the new ones.

        Args:
            now: the time, in seconds.
            users: all who are watched.
            unheard: those of them who may be out as well: not asked since the first "no". Nobody, to have a ruling
                without them; then `users` shouldn't have them either.
        """
        # One of the future is of a clock that was put back since.
        self._gone = {name: at for name, at in self._gone.items() if 0 <= now - at < self._window}
        out = self._new.keys() | self._held.keys() | self._gone.keys()
        most = limit(len(out | set(users)))
        if len(out) > most:
            return Ruling.HOLD
        if len(out | set(unheard)) <= most:
            return Ruling.GO
        return Ruling.WAIT

    def go(self, now: float) -> tuple[str, ...]:
        """The new ones take effect. Returns who."""
        names = self.new
        self._gone |= dict.fromkeys(names, now)
        self._new.clear()
        return names

    def hold(self, now: float) -> tuple[str, ...]:
        """The new ones are held back. Returns who."""
        names = self.new
        self._held |= dict.fromkeys(names, now)
        self._new.clear()
        return names

    def confirm(self) -> tuple[str, ...]:
        """What is held back takes effect, and counts no more against others. Returns who."""
        names = tuple(self._held)
        self._held.clear()
        return names
