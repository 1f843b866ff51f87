"""Pure: reads an answer of the token endpoint (RFC 6749, 5.1), and checks that its ID token is that of this log-in."""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import jwt

from casa_hub.identity.errors import OIDCError, TokenError, cant_say
from casa_hub.identity.signatures import at_hash


@dataclass(frozen=True, slots=True)
class Tokens:
    """One answer of the token endpoint."""

    access_token: str = field(repr=False)
    #: "" if the answer has none: then the old one stays valid (RFC 6749, section 6).
    refresh_token: str = field(repr=False)
    id_token: str = field(repr=False)
    #: Epoch seconds; None if the provider did not say.
    expires_at: float | None
    #: Epoch seconds of the answer.
    obtained_at: float
    #: Granted scopes; None if the answer doesn't say, which means the requested ones (RFC 6749, 5.1).
    scope: frozenset[str] | None
    #: When the refresh token expires, epoch seconds; None if it doesn't, or if nobody says.
    refresh_expires_at: float | None = None
    #: Verified claims of the ID token; empty without an ID token (a refresh may leave it out).
    id_claims: Mapping[str, Any] = field(default_factory=dict, repr=False)


class RefreshedTokenError(TokenError):
    """A refresh gave an answer that must not be used. The refresh token in `tokens` must be stored all the same."""

    def __init__(self, tokens: Tokens, cause: OIDCError) -> None:
        super().__init__(cause.thing, cause.problem)
        self.tokens = tokens


def read_answer(answer: Mapping[str, Any], thing: str, now: float) -> tuple[Tokens | None, OIDCError | None]:
    """The tokens of the token endpoint's answer (None if it has none), and the error if they must not be used.

    `thing`: the endpoint, for the error. `now`: epoch seconds.
    """
    access_token, refresh_token, id_token = (
        value if isinstance(value := answer.get(name), str) else ""
        for name in ("access_token", "refresh_token", "id_token")
    )
    if not access_token and not refresh_token:
        return None, None
    scope = answer.get("scope")
    tokens = Tokens(
        access_token=access_token,
        # A refresh token that can be neither stored nor sent is ignored: the old one is kept.
        refresh_token=refresh_token if _sendable(refresh_token) else "",
        id_token=id_token,
        expires_at=_expiry(answer.get("expires_in"), now),
        obtained_at=now,
        scope=frozenset(scope.split()) if isinstance(scope, str) else None,
        refresh_expires_at=_refresh_end(answer, refresh_token, now),
    )
    if not access_token:
        problem = "the answer has no access token"
    elif not (_sendable(access_token) and _sendable(refresh_token)):
        problem = "a token of the answer has characters that no token may have"
    elif str(answer.get("token_type", "Bearer")).lower() != "bearer":
        problem = "the token is not a Bearer token"
    else:
        return tokens, None
    return tokens, cant_say(thing, problem, "Ask the provider's administrators.")


def with_claims(tokens: Tokens, claims: Mapping[str, Any], *, nonce: str | None, sub: str | None) -> Tokens:
    """The tokens with the claims of their ID token. Signature, issuer and audience must be verified before.

    `nonce`: of the log-in; None at a refresh (Core 12.2). `sub`: whose they must be; None at a log-in.
    Raises TokenError if the ID token belongs to another log-in, access token or person.
    """
    if nonce is not None and not hmac.compare_digest(_bytes(str(claims.get("nonce", ""))), _bytes(nonce)):
        raise TokenError("ID token", "its nonce is not the one of this log-in")
    if "at_hash" in claims:
        header = jwt.get_unverified_header(tokens.id_token)
        expected = at_hash(tokens.access_token, str(header["alg"]))
        if expected is not None and claims["at_hash"] != expected:
            raise TokenError("ID token", "its at_hash is not that of the access token")
    if not isinstance(claims["sub"], str) or not claims["sub"] or not claims["sub"].isprintable():
        raise TokenError("ID token", "its sub is not a string that can be stored")
    if sub is not None and claims["sub"] != sub:
        raise TokenError("ID token", "is for another subject than the one who logged in")
    return replace(tokens, id_claims=claims)


def _sendable(token: str) -> bool:
    """Whether a token has only characters that it may have (RFC 6749, A.12 and A.17); HTTP headers accept all these."""
    return token.isascii() and token.isprintable()


def _bytes(text: str) -> bytes:
    """UTF-8 of any text of JSON, including lone surrogates."""
    return text.encode("utf-8", "surrogatepass")


def _refresh_end(answer: Mapping[str, Any], refresh_token: str, now: float) -> float | None:
    """When a refresh token expires, epoch seconds; None if it doesn't, or if nobody says.

    Keycloak says it in ``refresh_expires_in`` (0: it doesn't expire). INDIGO IAM's refresh tokens are JWTs with
    ``exp``. Their signature is not verified: the time only decides which notice a person reads, and how long servers go
    on after a refusal.
    """
    if "refresh_expires_in" in answer:
        return _expiry(answer["refresh_expires_in"], now)
    try:
        end = float(jwt.decode(refresh_token, options={"verify_signature": False, "verify_exp": False})["exp"])
    except (jwt.PyJWTError, KeyError, TypeError, ValueError, OverflowError):
        return None
    return end if now < end < now + _LONGEST_LIFE else None


#: Seconds. A token that lives for longer is treated as one without an end.
_LONGEST_LIFE = 10 * 365 * 86400.0


def _expiry(expires_in: object, now: float) -> float | None:
    """When a token with this ``expires_in`` expires, epoch seconds. Some providers send the number as a string."""
    try:
        seconds = float(expires_in)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return None
    return now + seconds if 0 < seconds < _LONGEST_LIFE else None
