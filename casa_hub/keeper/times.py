"""How long a membership counts: what follows from a verdict, and the times an operator sets."""

from __future__ import annotations

import time
from enum import StrEnum
from typing import Any

from traitlets import Float
from traitlets.config import LoggingConfigurable

from casa_hub.identity.verdicts import Verdict


class Access(StrEnum):
    """What a user may do now."""

    #: Everything.
    ON = "on"
    #: Pages ask for a new log-in; what runs, runs on.
    LOG_IN = "log in"
    #: Nothing.
    OFF = "off"


class Keeper(LoggingConfigurable):
    """Times for memberships, in seconds."""

    recheck_interval = Float(
        300,
        min=1,
        help="""Seconds between two membership checks, at most, of everybody with a running server or a token that is
        good, whether or not a browser is open; a bare cookie is checked at its next request. Thirty seconds after this
        time, at the latest, somebody who is no member any more has nothing that works. Shorter asks the identity
        provider more often: with 500 users, 300 is two to four requests a second, spread evenly.""",
    ).tag(config=True)

    outage_grace = Float(
        14400,
        min=0,
        help="""Seconds that an identity provider which can't answer is forgiven, counted for each user from its last
        "yes". After them the user's access ends: servers are stopped, tokens deleted. The same holds for "no"s that
        are held back because too many came at once (more than three and a tenth of the users).""",
    ).tag(config=True)

    membership_max_age = Float(
        86400,
        min=0,
        help="""Seconds that a "yes" counts where the provider can't be asked again: it gave no refresh token, or wants
        a new log-in. Pages ask for the log-in, servers run on until then and are stopped if none came.""",
    ).tag(config=True)

    def access(self, verdict: Verdict, last_yes: float, now: float) -> Access:
        """What a verdict means for somebody whose last "yes" was at `last_yes` (both epoch seconds)."""
        if verdict is Verdict.YES:
            return Access.ON
        if verdict is Verdict.CANT_SAY:
            return Access.ON if now - last_yes < self.outage_grace else Access.OFF
        if verdict is Verdict.LOG_IN_AGAIN:
            return Access.LOG_IN if now - last_yes < self.membership_max_age else Access.OFF
        return Access.OFF


def now_of(app: Any) -> float:
    """Epoch seconds by the clock of the hub's authenticator; another package's has none of its own."""
    now: float = getattr(app.authenticator, "clock", time.time)()
    return now
