"""Pure: signing keys, their public halves, and signed tokens.

Sources: RFC 7515 (JWS), RFC 7517 (JWK), RFC 7518 (ES256: 3.4, RS256: 3.3), RFC 7638 (thumbprint), WLCG Common JWT
Profile 1.3.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256
from typing import Any, Literal

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from casa_hub.keys import BadKeyError

#: The profile demands RSA keys of so many bits at least.
MIN_RSA_BITS = 2048
#: Bytes of each half of an ES256 signature, and of a coordinate of P-256.
_HALF = 32
#: Seconds that a token may live at most. The profile wants 15 minutes to 6 hours.
LONGEST = 6 * 3600
#: Seconds before a token is issued from which on it is valid, so that a verifier whose clock is late takes it at once;
#: the profile allows so many.
CLOCK_SKEW = 60
MAKE_KEY = "Make one: casa-hub issuer new-key FILE."

# Made once, because a token is made in microseconds. json.dumps() would make an encoder for each call.
_compact = json.JSONEncoder(separators=(",", ":")).encode
_ES256 = ec.ECDSA(hashes.SHA256())


@dataclass(frozen=True)
class SigningKey:
    """A private key that signs tokens."""

    private: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey = field(repr=False)

    @cached_property
    def algorithm(self) -> Literal["ES256", "RS256"]:
        return "ES256" if isinstance(self.private, ec.EllipticCurvePrivateKey) else "RS256"

    @cached_property
    def kid(self) -> str:
        """The key's name: its thumbprint (RFC 7638), the same for whoever computes it."""
        return thumbprint(self._public)

    @cached_property
    def jwk(self) -> Mapping[str, str]:
        """The public half, as it is published."""
        return {**self._public, "kid": self.kid, "alg": self.algorithm, "use": "sig"}

    @cached_property
    def _public(self) -> Mapping[str, str]:
        if isinstance(self.private, ec.EllipticCurvePrivateKey):
            point = self.private.public_key().public_numbers()
            return {"kty": "EC", "crv": "P-256", "x": _number(point.x, _HALF), "y": _number(point.y, _HALF)}
        numbers = self.private.public_key().public_numbers()
        return {"kty": "RSA", "n": _number(numbers.n), "e": _number(numbers.e)}

    @cached_property
    def _header(self) -> bytes:
        return _base64url(_compact({"alg": self.algorithm, "kid": self.kid, "typ": "JWT"}).encode())

    def sign(self, claims: Mapping[str, Any]) -> str:
        """A signed token with these claims."""
        signed = self._header + b"." + _base64url(_compact(claims).encode())
        if isinstance(self.private, ec.EllipticCurvePrivateKey):
            r, s = decode_dss_signature(self.private.sign(signed, _ES256))
            signature = r.to_bytes(_HALF, "big") + s.to_bytes(_HALF, "big")
        else:
            signature = self.private.sign(signed, padding.PKCS1v15(), hashes.SHA256())
        return (signed + b"." + _base64url(signature)).decode()


def wlcg_claims(
    *,
    issuer: str,
    subject: str,
    audience: str | Sequence[str],
    identifier: str,
    scope: str,
    issued_at: int,
    lifetime: int,
) -> dict[str, Any]:
    """What a token says by the WLCG Common JWT Profile 1.3.

    Args:
        issuer: ``iss``.
        subject: ``sub``.
        audience: ``aud``. Verifiers compare it as text.
        identifier: ``jti``.
        scope: ``scope``, words with a blank between them.
        issued_at: ``iat``, epoch seconds.
        lifetime: seconds; the caller keeps it to `LONGEST`.
    """
    return {
        "wlcg.ver": "1.0",
        "iss": issuer,
        "sub": subject,
        "aud": audience,
        "jti": identifier,
        "iat": issued_at,
        "nbf": issued_at - CLOCK_SKEW,
        "exp": issued_at + lifetime,
        "scope": scope,
    }


def thumbprint(jwk: Mapping[str, Any]) -> str:
    """RFC 7638: SHA-256 of the members that the type of key requires, in the order of their names.
    Raises KeyError if one is missing, or if the type is neither EC nor RSA.
    """
    return _base64url(sha256(_compact(_required(jwk)).encode()).digest()).decode()


def _required(jwk: Mapping[str, Any]) -> dict[str, Any]:
    members = {"EC": ("crv", "kty", "x", "y"), "RSA": ("e", "kty", "n")}[jwk["kty"]]
    return {name: jwk[name] for name in members}


def public_jwk(jwk: Mapping[str, Any]) -> Mapping[str, str]:
    """The JWK of somebody else's public key, as it is published: as `SigningKey.jwk`, with the ``kid`` that it has.

    One that verifiers can't read may make them refuse the whole set, and one that is too short can be forged. Raises
    ValueError, whose text says what is wrong and quotes nothing.
    """
    try:
        kid = jwk.get("kid", thumbprint(jwk))
        if jwk["kty"] == "EC":
            x, y = (_integer(jwk[name], _HALF) for name in ("x", "y"))
            known, algorithm = jwk["crv"] == "P-256", "ES256"
            ec.EllipticCurvePublicNumbers(x, y, ec.SECP256R1()).public_key()
        else:
            n, e = (_integer(jwk[name]) for name in ("n", "e"))
            known, algorithm = n.bit_length() >= MIN_RSA_BITS, "RS256"
            rsa.RSAPublicNumbers(e, n).public_key()
    except (KeyError, TypeError, ValueError):
        raise ValueError("is no JWK of type EC or RSA") from None
    if not known:
        raise ValueError(f"is neither of the curve P-256 nor an RSA key of at least {MIN_RSA_BITS} bits")
    if not isinstance(kid, str) or not re.fullmatch(r"[!-~]{1,255}", kid):
        raise ValueError("has a kid that is not a text of printable characters")
    if jwk.get("alg", algorithm) != algorithm or jwk.get("use", "sig") != "sig":
        raise ValueError(f"is for something else than signing with {algorithm}")
    return {**_required(jwk), "kid": kid, "alg": algorithm, "use": "sig"}


def read_private_key(content: bytes) -> SigningKey:
    """The key in a PEM file. Raises BadKeyError if it is none, is encrypted, or is of another kind."""
    try:
        private = load_pem_private_key(content, password=None)
    except TypeError:  # the library's word for a key that needs a password
        raise BadKeyError("is encrypted", "Remove the password: openssl pkey -in FILE -out NEW.") from None
    except (ValueError, UnsupportedAlgorithm):
        raise BadKeyError("is not a private key in PEM", MAKE_KEY) from None
    if isinstance(private, ec.EllipticCurvePrivateKey) and isinstance(private.curve, ec.SECP256R1):
        return SigningKey(private)
    if not isinstance(private, rsa.RSAPrivateKey):
        raise BadKeyError("is neither an EC key of the curve P-256 nor an RSA key", MAKE_KEY)
    if private.key_size < MIN_RSA_BITS:
        raise BadKeyError(f"has {private.key_size} bits; RSA keys need {MIN_RSA_BITS}", MAKE_KEY)
    return SigningKey(private)


def new_private_key(*, rsa_bits: int | None = None) -> tuple[SigningKey, bytes]:
    """A new key, and the content of its PEM file. An RSA key takes a second; it isn't for the hub's event loop."""
    private = (
        ec.generate_private_key(ec.SECP256R1())
        if rsa_bits is None
        else rsa.generate_private_key(public_exponent=65537, key_size=rsa_bits)
    )
    return SigningKey(private), private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _number(value: int, length: int | None = None) -> str:
    return _base64url(value.to_bytes(length or (value.bit_length() + 7) // 8, "big")).decode()


def _integer(text: str, length: int | None = None) -> int:
    """The reverse of `_number`. Raises ValueError or TypeError."""
    if not re.fullmatch(r"[A-Za-z0-9_-]+", text):
        raise ValueError("not base64url without padding")
    value = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    if length is not None and len(value) != length:
        raise ValueError("another length")
    return int.from_bytes(value, "big")


def _base64url(data: bytes) -> bytes:
    return base64.urlsafe_b64encode(data).rstrip(b"=")
