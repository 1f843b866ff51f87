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

from casa_hub.membership.member import Member, Members

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

    def __init__(self, members: Members, window: float) -> None:
        """`window`: seconds within which "no"s are counted together."""
        self._members = members
        self._window = window

    @property
    def new(self) -> tuple[str, ...]:
        """Names of the users whose "no" is still to be weighed."""
        return tuple(member.name for member in self._members if member.weighed_since is not None)

    @property
    def held(self) -> dict[str, float]:
        """Names of the users whose "no" is held back -> since when, in seconds."""
        return {member.name: member.held_since for member in self._members if member.held_since is not None}

    def no(self, name: str, now: float) -> bool:
        """Note a "no" for this user. Returns whether it is new, so that it has to be weighed."""
        member = self._members[name]
        if member.held_since is not None or member.weighed_since is not None:
            return False
        member.weighed_since = now
        return True

    def drop(self, name: str) -> None:
        """Forget this user's "no": the provider said "yes", an operator confirmed it, or the access ended another way.

        It no longer counts against others.
        """
        member = self._members.get(name)
        if member is not None:
            member.weighed_since = member.held_since = None
            member.ignored_at = 0.0

    def rule(self, now: float, users: Collection[str], unheard: Collection[str] = ()) -> Ruling:
        """Decide about the new "no"s among `users`: everybody whose membership is checked.

        `unheard` were not asked since the first "no", and so may be out as well. To decide without them, leave it empty
        and take them out of `users`.
        """
        out = {member.name for member in self._members if self._is_out(member, now)}
        most = limit(len(out | set(users)))
        if len(out) > most:
            return Ruling.HOLD
        if len(out | set(unheard)) <= most:
            return Ruling.GO
        return Ruling.WAIT

    def _is_out(self, member: Member, now: float) -> bool:
        # A time in the future was noted before the clock was put back.
        lately = member.gone_at is not None and 0 <= now - member.gone_at < self._window
        return lately or member.weighed_since is not None or member.held_since is not None

    def go(self, now: float) -> tuple[str, ...]:
        """Let the new "no"s take effect. Returns the users' names."""
        names = self.new
        for name in names:
            self._members[name].gone_at, self._members[name].weighed_since = now, None
        return names

    def hold(self, now: float) -> tuple[str, ...]:
        """Hold the new "no"s back. Returns the users' names."""
        names = self.new
        for name in names:
            self._members[name].held_since, self._members[name].weighed_since = now, None
        return names

    def hold_again(self, name: str, now: float) -> None:
        """Hold this user's "no" back without weighing it: an operator has ignored it, perhaps in an earlier hub."""
        self._members[name].held_since = now
