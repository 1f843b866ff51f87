"""What a token of another issuer says about itself, without verification."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import jwt

#: Characters of an identifier: seventeen of each credential have to fit into an annotation of a pod, with all others.
_LONGEST = 256


def is_bearer(token: str) -> bool:
    """Whether a text has a bearer token's characters (RFC 6750, 2.1). Others would break a header."""
    return re.fullmatch(r"[A-Za-z0-9._~+/-]+=*", token) is not None


def unverified_claims(token: str) -> Mapping[str, Any]:
    """Claims of a JSON Web Token; empty for any other text. The signature is not verified: never decide by them."""
    try:
        claims: Mapping[str, Any] = jwt.decode(token, options={"verify_signature": False})
    except (jwt.PyJWTError, ValueError, RecursionError):  # the last: JSON of a thousand brackets
        return {}
    return claims


def expiry(claims: Mapping[str, Any]) -> datetime | None:
    """``exp`` (RFC 7519, 4.1.4) as aware UTC; None if it is missing or unreadable."""
    value = claims.get("exp")
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return datetime.fromtimestamp(value, UTC)
    except (OverflowError, OSError, ValueError):
        return None


def identifying(named: Mapping[str, Any]) -> dict[str, str]:
    """Of claims that another issuer chose, those that can be identifiers of a credential: a line of text, not too long.

    A cut one would find nothing, and one of any length could keep a server from starting.
    """
    return {
        name: value
        for name, value in named.items()
        if isinstance(value, str) and 0 < len(value) <= _LONGEST and value.isprintable()
    }
