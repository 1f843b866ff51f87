"""Pure: which "no"s take effect, and which are held back because too many come together.

One person who leaves an experiment is a "no". Thirty in five minutes are a mapper that somebody removed, a database
that was restored, or an AUP that everybody must sign again. Each of the thirty is an explicit "no", so only their
number tells the two apart. Contract, for any order of events:

- within `window` seconds at most `limit` of the users lose their access, unless the operator confirms more;
- a "no" is decided as soon as the users who were not asked yet can no longer change the outcome;
- a hub with up to three users decides each "no" at once and holds none back.
"""

from __future__ import annotations

from collections.abc import Collection
from enum import StrEnum

#: This many "no"s are never too many, however few users there are.
FEWEST = 3
#: Above that, one user in this many may be out at once.
ONE_IN = 10


def limit(users: int) -> int:
    """How many "no"s are believed at once among this many users."""
    return max(FEWEST, users // ONE_IN)


class Ruling(StrEnum):
    """What happens to the new "no"s."""

    #: Ask more of the other users first.
    WAIT = "wait"
    #: The new "no"s take effect.
    GO = "go"
    #: The new "no"s are held back.
    HOLD = "hold"


class Holdback:
    """The "no"s of a hub: the new, the held back, and those that took effect within the window."""

    def __init__(self, window: float) -> None:
        """`window`: seconds within which "no"s are counted together."""
        self._window = window
        self._new: dict[str, float] = {}
        self._held: dict[str, float] = {}
        self._gone: dict[str, float] = {}

    @property
    def new(self) -> tuple[str, ...]:
        """Names of the users whose "no" is still to be weighed."""
        return tuple(self._new)

    @property
    def held(self) -> dict[str, float]:
        """Names of the users whose "no" is held back -> since when, in seconds."""
        return dict(self._held)

    def no(self, name: str, now: float) -> bool:
        """Note a "no" for this user. Returns whether it is new, so that it has to be weighed."""
        if name in self._held or name in self._new:
            return False
        self._new[name] = now
        return True

    def drop(self, name: str) -> None:
        """Forget this user's "no": the provider said "yes", or the access ended another way."""
        self._new.pop(name, None)
        self._held.pop(name, None)

    def rule(self, now: float, users: Collection[str], unheard: Collection[str] = ()) -> Ruling:
        """Decide about the new "no"s.

        Args:
            now: the time, in seconds.
            users: everybody whose membership is checked.
            unheard: those of `users` who were not asked since the first "no" and so may be out as well. Leave it empty
                (and take them out of `users`) to decide without them.
        """
        # A time in the future was noted before the clock was put back.
        self._gone = {name: at for name, at in self._gone.items() if 0 <= now - at < self._window}
        out = self._new.keys() | self._held.keys() | self._gone.keys()
        most = limit(len(out | set(users)))
        if len(out) > most:
            return Ruling.HOLD
        if len(out | set(unheard)) <= most:
            return Ruling.GO
        return Ruling.WAIT

    def go(self, now: float) -> tuple[str, ...]:
        """Let the new "no"s take effect. Returns the users' names."""
        names = self.new
        self._gone |= dict.fromkeys(names, now)
        self._new.clear()
        return names

    def hold(self, now: float) -> tuple[str, ...]:
        """Hold the new "no"s back. Returns the users' names."""
        names = self.new
        self._held |= dict.fromkeys(names, now)
        self._new.clear()
        return names

    def confirm(self) -> tuple[str, ...]:
        """Let everything held back take effect; it no longer counts against others. Returns the users' names."""
        names = tuple(self._held)
        self._held.clear()
        return names
