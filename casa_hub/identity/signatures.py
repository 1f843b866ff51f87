"""Pure: an issuer's published keys, and the verification of tokens with them.

Sources: OpenID Connect Core 1.0 (3.1.3.6, 3.1.3.7), RFC 7515, RFC 7517, RFC 8725 (algorithms).
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Collection
from typing import Any

import jwt

from casa_hub.identity.errors import TokenError

#: Accepted signature algorithms: asymmetric ones only. With "none" anybody could make tokens, and with HMAC anybody who
#: knows the public key (RFC 8725, section 3.1).
ALGORITHMS = frozenset({"RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"})
#: Most keys that are read of a key set. Real sets have a handful, and each key costs time on the hub's event loop.
KEYS_LIMIT = 100

_FAMILIES = {"RS": "RSA", "PS": "RSA", "ES": "EC", "Ed": "OKP"}
_CURVES = {"ES256": "P-256", "ES384": "P-384", "ES512": "P-521"}


class KeySet:
    """The keys of a JWK set (RFC 7517, 5; `entries`) that can verify signatures. Unusable keys are skipped."""

    def __init__(self, entries: list[Any] | None = None) -> None:
        self._keys: dict[str | None, list[jwt.PyJWK]] = {}
        for entry in (entries or [])[:KEYS_LIMIT]:
            # A symmetric key doesn't belong into a published set.
            if not isinstance(entry, dict) or entry.get("kty") == "oct" or entry.get("use", "sig") != "sig":
                continue
            kid = entry.get("kid")
            if kid is not None and not isinstance(kid, str):
                continue
            try:
                key = jwt.PyJWK(entry)
            except Exception:  # noqa: BLE001, S112 - the libraries raise anything for an odd key
                continue
            self._keys.setdefault(kid, []).append(key)

    def usable(self, kid: str | None, algorithm: object) -> list[jwt.PyJWK]:
        """The keys that fit a token's header: of its `kid`, if it has one, and for its algorithm."""
        return [key for key in (self._all() if kid is None else self._keys.get(kid, [])) if _fits(key, algorithm)]

    def count(self, algorithms: Collection[str]) -> int:
        """How many keys fit one of these algorithms."""
        return sum(any(_fits(key, algorithm) for algorithm in algorithms) for key in self._all())

    def _all(self) -> list[jwt.PyJWK]:
        return [key for keys in self._keys.values() for key in keys]


def read_header(token: str, thing: str, algorithms: Collection[str]) -> dict[str, Any]:
    """The header of a token, with one of these algorithms and a `kid` that is text or missing.
    Raises TokenError if it is not such a header.
    """
    # Not only PyJWT's own errors: some oddities of JSON, such as an infinite "exp", raise Python's.
    try:
        header = jwt.get_unverified_header(token)
    except Exception as error:
        raise TokenError(thing, "is not a signed JWT") from error
    algorithm = header.get("alg")
    if not isinstance(algorithm, str) or algorithm not in algorithms:
        raise TokenError(thing, f"its algorithm {str(algorithm)[:40]!r} is not one that is accepted")
    if header.get("kid") is not None and not isinstance(header["kid"], str):
        raise TokenError(thing, "its header's kid is not a string")
    return header


def read_claims(
    token: str,
    thing: str,
    key: jwt.PyJWK,
    *,
    algorithm: str,
    issuer: str,
    client_id: str,
    leeway: float,
    require: list[str],
) -> dict[str, Any]:
    """Verify a token of this issuer for this client and return its claims (Core 3.1.3.7).

    Signed userinfo may lack `iss` and `aud`, so they need not be in `require`; but if the token has them, they must be
    right. Raises TokenError if the token is forged, foreign or expired, or lacks a required claim.
    """
    try:
        claims: dict[str, Any] = jwt.decode(
            token,
            # The bare key: a PyJWK holds PyJWT's guess of one algorithm, but an RSA key serves for six.
            key.key,
            algorithms=[algorithm],
            audience=client_id if "aud" in require else None,
            issuer=issuer if "iss" in require else None,
            leeway=leeway,
            options={"require": require, "verify_aud": "aud" in require, "verify_sub": False},
        )
    except jwt.PyJWTError as error:
        raise TokenError(thing, _problem(error)) from error
    except Exception as error:
        raise TokenError(thing, f"can't be verified ({type(error).__name__})") from error
    audience = claims.get("aud", client_id)
    audiences = audience if isinstance(audience, list) else [audience]
    if client_id not in audiences or claims.get("iss", issuer) != issuer:
        raise TokenError(thing, "is for another client or from another issuer")
    # A token for several audiences must name the authorized party; and if it is named, it must be this client.
    if claims.get("azp", None if len(audiences) > 1 else client_id) != client_id:
        raise TokenError(thing, "its authorized party (azp) is another client")
    return claims


def at_hash(access_token: str, algorithm: str) -> str | None:
    """Left half of the access token's hash (Core 3.1.3.6); None for EdDSA, for which the hash is not defined."""
    if not algorithm[2:].isdigit():
        return None
    digest = hashlib.new(f"sha{algorithm[2:]}", access_token.encode()).digest()
    return base64.urlsafe_b64encode(digest[: len(digest) // 2]).rstrip(b"=").decode()


def _fits(key: jwt.PyJWK, algorithm: object) -> bool:
    """Whether a key can verify this algorithm: by its family and curve, and by its `alg` if it has one."""
    if not isinstance(algorithm, str) or key.key_type != _FAMILIES.get(algorithm[:2]):
        return False
    entry = key._jwk_data  # noqa: SLF001 - PyJWK's public attribute has a guess if the key has no `alg`
    if algorithm in _CURVES and entry.get("crv") != _CURVES[algorithm]:
        return False
    return entry.get("alg") in (None, algorithm)


def _problem(error: jwt.PyJWTError) -> str:
    texts: dict[type[jwt.PyJWTError], str] = {
        jwt.ExpiredSignatureError: "has expired",
        jwt.ImmatureSignatureError: "is from the future; compare the clocks of hub and issuer",
        jwt.InvalidAudienceError: "is for another audience",
        jwt.InvalidIssuerError: "is from another issuer",
        jwt.InvalidSignatureError: "its signature is not the issuer's",
        jwt.InvalidAlgorithmError: "its algorithm doesn't fit the issuer's key",
    }
    for kind, text in texts.items():
        if isinstance(error, kind):
            return text
    if isinstance(error, jwt.MissingRequiredClaimError):
        return f"has no claim {error.claim}"
    return f"can't be verified ({type(error).__name__})"
