"""How much of the long tests is run: the only place that says so.

`make test` runs each of them once, in a shortened form. `make soak` (``CASA_HUB_SOAK=1``) runs them in full.
``CASA_HUB_KILLS`` sets the number of kills by itself.
"""

from __future__ import annotations

import os
from typing import TypeVar

T = TypeVar("T")

#: Whether the long tests run in full.
SOAK = os.environ.get("CASA_HUB_SOAK", "") not in {"", "0"}


def scaled(short: T, full: T) -> T:
    """The value of this run."""
    return full if SOAK else short


#: Kills of a hub in each of the two kill loops. Five are needed to have each kind of kill once.
KILLS = int(os.environ.get("CASA_HUB_KILLS") or scaled(6, 25))
#: Users of the storm, starts of their servers while the API server fails, and how many at the same time.
STORM_USERS, STORM_STARTS, STORM_AT_ONCE = scaled((10, 50, 10), (40, 200, 10))
#: Each of five servers is stopped, and started again at once, so often.
STOP_AND_START = scaled(6, 40)
#: Users of a hub that are asked about evenly, and `Keeper.recheck_interval` there (seconds).
MEMBERS, MEMBERS_RECHECK = scaled((120, 20.0), (500, 60.0))
#: Inputs that a test by hypothesis tries, if it doesn't say itself how many. Each run tries others.
EXAMPLES = scaled(40, 400)
#: Lives of a credential during which a server's programs work on.
LIVES = scaled(2, 3)
