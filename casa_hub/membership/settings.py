"""How long a membership counts: the times an operator sets. What follows from them: `casa_hub.membership.member`."""

from __future__ import annotations

from traitlets import Float
from traitlets.config import LoggingConfigurable


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
        "yes". After them the user's access ends: servers are stopped, tokens deleted. The same holds for "no"s and
        sign-ins taken back that are held back because too many came at once (more than three and a tenth of the
        users).""",
    ).tag(config=True)

    membership_max_age = Float(
        86400,
        min=0,
        help="""Seconds that a "yes" counts where the provider can't be asked again: it gave no refresh token, or the
        refresh token has run out. Pages ask for the log-in, servers run on until then and are stopped if none came.
        A refresh token that is refused before its end was taken back: see `Keeper.revoked_grace`.""",
    ).tag(config=True)

    revoked_grace = Float(
        3600,
        min=0,
        help="""Seconds that what runs goes on after the identity provider has taken a sign-in back: it refuses a
        refresh token before the token's end, or one without a known end. So it answers when an account was deleted, a
        session ended or a consent revoked, and it does not say which. Pages ask for a new log-in at once and say when
        access ends; a new log-in keeps everything. 0: access ends at once. Never longer than
        `Keeper.membership_max_age` since the last "yes".""",
    ).tag(config=True)

    fetch_patience = Float(
        10,
        min=0,
        max=60,
        help="""Seconds that the start of a server waits, at most and for all of it together, for what is fetched with
        its user's token: exchanged tokens, a proxy. What has not come by then comes to the running server, unless it is
        one of `Facility.required`: without that the start fails. A server whose user has them all from an earlier start
        doesn't wait.""",
    ).tag(config=True)
