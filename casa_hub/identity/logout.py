"""The provider's word that somebody has logged out there: OpenID Connect Back-Channel Logout 1.0, sections 2.4 to 2.6.

A logout token comes from anybody who knows this hub's address, so nothing counts before its signature was checked;
with it, a copy of a token must not end a later log-in.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jwt

from casa_hub.identity.errors import TokenError
from casa_hub.identity.oidc import Issuer

#: The member of "events" that makes a signed token one of log-out.
EVENT = "http://schemas.openid.net/event/backchannel-logout"

#: Values of the header's "typ"; many providers still call it a plain JWT, or say nothing (2.4, section 4).
TYPES = frozenset({"logout+jwt", "jwt"})

#: Seconds after which a token isn't believed any more, whatever it says of itself: for so long its id is remembered.
#: Providers send it at the log-out; those that try again do it within seconds.
MAX_AGE = 300.0

#: Characters of an id; providers send a UUID or a hash.
_ID_LENGTH = 256

_THING = "logout token"


@dataclass(frozen=True, slots=True)
class LoggedOut:
    """Whose sessions have ended; one of both is there."""

    issuer: str
    #: "" where the token names the session only.
    sub: str
    #: Id of one session (claim of its ID token); "" where all of the subject's have ended.
    sid: str


class LogoutTokens:
    """Believes logout tokens of one issuer, each once."""

    def __init__(self, issuer: Issuer, *, clock: Callable[[], float] = time.time) -> None:
        self._issuer = issuer
        self._clock = clock
        #: Id -> until when a copy would be believed; in the order of arrival, which nearly is that of the ends.
        self._used: dict[str, float] = {}

    async def believe(self, token: str) -> LoggedOut:
        """What a token says.

        Raises:
            TokenError: it must not be believed: forged, foreign, old, used before, or no logout token.
            OIDCError: the issuer's keys can't be had now.
        """
        claims = await self._issuer.verified(token, _THING, require=["iss", "aud", "iat", "jti", "events"])
        typ = jwt.get_unverified_header(token).get("typ", "JWT")
        if not isinstance(typ, str) or typ.lower().removeprefix("application/") not in TYPES:
            raise TokenError(_THING, "its header's typ is that of another kind of token")
        events = claims["events"]
        if not isinstance(events, dict) or not isinstance(events.get(EVENT), dict):
            raise TokenError(_THING, "its events don't say that it is about a log-out")
        if "nonce" in claims:
            raise TokenError(_THING, "it has a nonce, so it is an ID token")
        sub, sid = (_id(claims, name) for name in ("sub", "sid"))
        if not sub and not sid:
            raise TokenError(_THING, "it says neither sub nor sid")
        self._use(_id(claims, "jti"), float(claims["iat"]))
        return LoggedOut(claims["iss"], sub, sid)

    def _use(self, jti: str, issued_at: float) -> None:
        now, leeway = self._clock(), self._issuer.client.leeway
        if not jti:
            raise TokenError(_THING, "its jti is empty")
        until = issued_at + MAX_AGE + leeway
        if now >= until:
            raise TokenError(_THING, f"it is older than {MAX_AGE:g} s")
        # No more than the issuer has signed within that time: nobody else can fill it.
        self._used = {one: end for one, end in self._used.items() if end > now}
        if jti in self._used:
            raise TokenError(_THING, "it was used before")
        self._used[jti] = until


def _id(claims: dict[str, Any], name: str) -> str:
    """A claim that is an id, "" if it is left out."""
    value = claims.get(name, "")
    if not isinstance(value, str) or len(value) > _ID_LENGTH or not value.isprintable():
        raise TokenError(_THING, f"its {name} is not a string that can be an id")
    return value
