"""How much of the long tests is run: the only place that says so.

`make test` runs each of them once, in a shortened form. `make soak` (``CASA_HUB_SOAK=1``) runs them in full.
``CASA_HUB_KILLS`` sets the number of kills by itself.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable
from typing import Any, TypeVar

import pytest

S = TypeVar("S")
T = TypeVar("T")

#: Whether the long tests run in full.
SOAK = os.environ.get("CASA_HUB_SOAK", "") not in {"", "0"}


def scaled(short: T, full: T) -> T:
    """The value of this run."""
    return full if SOAK else short


def pairs(first: Iterable[S], second: Iterable[T]) -> list[tuple[S, T]]:
    """All pairs of two lists in full; else so few that each value of either list is in one.

    For tests that are about two things which know little of each other, such as a request and a fault. A test that is
    parametrized by it is marked ``shortened``.
    """
    one, other = list(first), list(second)
    if SOAK:
        return list(itertools.product(one, other))
    return [(one[at % len(one)], other[at % len(other)]) for at in range(max(len(one), len(other)))]


def one_for_both_hubs(values: Iterable[Any]) -> list[Any]:
    """Values of a parameter, of which `make test` tries the first with JupyterHub 5.5, too, and `make soak` the others.

    For a family of cases that JupyterHub handles alike.
    """
    first, *others = values
    return [pytest.param(*(first if isinstance(first, tuple) else (first,)), marks=pytest.mark.both_hubs), *others]


#: Kills of a hub in each of the two kill loops. Five are needed to have each kind of kill once.
KILLS = int(os.environ.get("CASA_HUB_KILLS") or scaled(6, 25))
#: Users of the storm, starts of their servers while the API server fails, and how many at the same time.
STORM_USERS, STORM_STARTS, STORM_AT_ONCE = scaled((10, 50, 10), (40, 200, 10))
#: Each of five servers is stopped, and started again at once, so often.
STOP_AND_START = scaled(6, 40)
#: Users of a hub that are asked about evenly, and `Keeper.recheck_interval` there (seconds).
MEMBERS, MEMBERS_RECHECK = scaled((120, 20.0), (500, 60.0))
#: People whose servers start at the same moment, with tokens that a real identity provider exchanges.
STARTS_AT_ONCE = scaled(40, 500)
#: Inputs that a test by hypothesis tries, if it doesn't say itself how many. Each run tries others.
EXAMPLES = scaled(40, 400)
#: Seconds between two looks of a hub at what its servers have, where a test waits for such a look. A hub's own: 30.
LOOK = scaled(3.0, 30.0)
#: Lives of a credential during which a server's programs work on; how often one of them reads at least, in each of
#: its ways, and how long it pauses between two reads (seconds).
LIVES = scaled(2, 3)
READS, READS_PAUSE = scaled((500, 0.05), (2_500, 0.0))
