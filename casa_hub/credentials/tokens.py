"""What a token that somebody else signed says about itself."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import jwt


def unverified_claims(token: str) -> Mapping[str, Any]:
    """Claims of a JSON Web Token, or nothing where it is none. Its signature is not looked at: never decide by them."""
    try:
        claims: Mapping[str, Any] = jwt.decode(token, options={"verify_signature": False})
    except (jwt.PyJWTError, ValueError):
        return {}
    return claims


def expiry(claims: Mapping[str, Any]) -> datetime | None:
    """``exp`` (RFC 7519, 4.1.4) as aware UTC; None where there is none that can be read."""
    value = claims.get("exp")
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return datetime.fromtimestamp(value, UTC)
    except (OverflowError, OSError, ValueError):
        return None
