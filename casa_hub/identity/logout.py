"""Logout tokens, by which the provider says that somebody logged out there (OpenID Connect Back-Channel Logout 1.0, 2.4
to 2.6).

Anybody who knows this hub's address can send one. So its signature is verified first. Each token is accepted once:
otherwise a copy of it could end a later log-in.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jwt

from casa_hub.identity.errors import TokenError
from casa_hub.identity.oidc import Issuer

#: The member of "events" that a logout token must have.
EVENT = "http://schemas.openid.net/event/backchannel-logout"

#: Accepted values of the header's "typ". Many providers still call it a plain JWT, or leave it out (2.4, section 4).
TYPES = frozenset({"logout+jwt", "jwt"})

#: Seconds for which a token is accepted, whatever expiry it has, and for which its id is remembered. Providers send the
#: token at the log-out, and try again within seconds.
MAX_AGE = 300.0

#: Characters of an id; providers send a UUID or a hash.
_ID_LENGTH = 256

_THING = "logout token"


@dataclass(frozen=True, slots=True)
class LoggedOut:
    """Whose sessions have ended. `sub` or `sid` is set, or both."""

    issuer: str
    #: "" if the token names only the session.
    sub: str
    #: Id of the session (a claim of its ID token); "" if all sessions of the subject have ended.
    sid: str


class LogoutTokens:
    """Accepts logout tokens of one issuer, each once."""

    def __init__(self, issuer: Issuer, *, clock: Callable[[], float] = time.time) -> None:
        self._issuer = issuer
        self._clock = clock
        #: Id of an accepted token -> until when a copy would be young enough.
        self._used: dict[str, float] = {}

    async def believe(self, token: str) -> LoggedOut:
        """Verify a logout token and return its content.

        Raises:
            TokenError: the token is forged, foreign, too old, used before, or not a logout token.
            OIDCError: the issuer's keys can't be read now.
        """
        claims = await self._issuer.verified(token, _THING, require=["iss", "aud", "iat", "jti", "events"])
        typ = jwt.get_unverified_header(token).get("typ", "JWT")
        if not isinstance(typ, str) or typ.lower().removeprefix("application/") not in TYPES:
            raise TokenError(_THING, "its header's typ is that of another kind of token")
        events = claims["events"]
        if not isinstance(events, dict) or not isinstance(events.get(EVENT), dict):
            raise TokenError(_THING, "its events don't say that it is about a log-out")
        if "nonce" in claims:
            raise TokenError(_THING, "has a nonce, so it is an ID token")
        sub, sid = (_id(claims, name) for name in ("sub", "sid"))
        if not sub and not sid:
            raise TokenError(_THING, "has neither sub nor sid")
        self._use(_id(claims, "jti"), float(claims["iat"]))
        return LoggedOut(claims["iss"], sub, sid)

    def _use(self, jti: str, issued_at: float) -> None:
        now, leeway = self._clock(), self._issuer.client.leeway
        if not jti:
            raise TokenError(_THING, "its jti is empty")
        until = issued_at + MAX_AGE + leeway
        if now >= until:
            raise TokenError(_THING, f"is older than {MAX_AGE:g} s")
        # The table has only tokens that the issuer signed within that time, so nobody else can make it grow.
        self._used = {used: end for used, end in self._used.items() if end > now}
        if jti in self._used:
            raise TokenError(_THING, "was used before")
        self._used[jti] = until


def _id(claims: dict[str, Any], name: str) -> str:
    """A claim that is an id; "" if the token lacks it."""
    value = claims.get(name, "")
    if not isinstance(value, str) or len(value) > _ID_LENGTH or not value.isprintable():
        raise TokenError(_THING, f"its {name} is not a string that can be an id")
    return value
