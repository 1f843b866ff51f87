"""What came of the last request for each person, by credential. Operators and alerts see the numbers.

One person whom a service refuses is that person's affair. Many, and nobody whom it serves, are the facility's.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial

from casa_hub.credentials.fetching import Fetched, FetchError, Why
from casa_hub.metrics import FETCH_OUTCOMES, FETCH_USERS, FETCHED, FETCHES

#: Seconds that a failure counts: as long as somebody has a server, it is tried again sooner.
_COUNTS = 3600.0


@dataclass(frozen=True, slots=True)
class _Last:
    """What came of one person's last request. Times are epoch seconds."""

    #: `FETCHED`, or a value of `Why`.
    outcome: str
    at: float
    #: Until when it says something of the present.
    until: float
    problem: str = ""
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class Trouble:
    """What can't be fetched, for one reason."""

    #: Name of the credential.
    credential: str
    why: Why
    #: How many people's last request failed so.
    users: int
    #: Of the last of them: the thing and what is wrong with it, without a full stop; and what to do, as sentences.
    problem: str
    remedy: str


class FetchOutcomes:
    """Of all people who have asked since the hub's start."""

    def __init__(self, clock: Callable[[], float]) -> None:
        """`clock`: epoch seconds."""
        self._clock = clock
        #: Credential -> JupyterHub's id of a user -> what came of it.
        self._last: dict[str, dict[int, _Last]] = {}

    def note(self, credential: str, user: int, outcome: Fetched | FetchError) -> None:
        """Note what came of a request, and count it."""
        now = self._clock()
        if isinstance(outcome, FetchError):
            problem = f"{outcome.thing}: {outcome.problem}".rstrip(".")
            last = _Last(outcome.why.value, now, now + _COUNTS, problem, outcome.remedy)
        else:
            last = _Last(FETCHED, now, outcome.expires_at.timestamp())
        FETCHES.labels(credential, last.outcome).inc()
        if credential not in self._last:
            self._show(credential)
        self._last.setdefault(credential, {})[user] = last

    def _show(self, credential: str) -> None:
        """Let the metrics ask for the numbers from now on: they change by time alone, too."""
        for outcome in FETCH_OUTCOMES:
            FETCH_USERS.labels(credential, outcome).set_function(partial(self.count, credential, outcome))

    def count(self, credential: str, outcome: str) -> int:
        """Users whose last request ended so."""
        return sum(one.outcome == outcome for one in self._present(credential))

    def troubles(self) -> Sequence[Trouble]:
        """What can't be fetched, by credential; of each first what somebody has to do something for."""
        found = []
        for credential in sorted(self._last):
            present = self._present(credential)
            for why in (Why.REFUSED, Why.OUTAGE, Why.SIGN_IN):
                failed = [one for one in present if one.outcome == why.value]
                if failed:
                    newest = max(failed, key=lambda one: one.at)
                    found.append(Trouble(credential, why, len(failed), newest.problem, newest.remedy))
        return found

    def _present(self, credential: str) -> Collection[_Last]:
        """What says something of the present. The rest is forgotten: when somebody looks, not at each request."""
        now, of_users = self._clock(), self._last.get(credential, {})
        for old in [user for user, known in of_users.items() if known.until <= now]:
            del of_users[old]
        return of_users.values()
