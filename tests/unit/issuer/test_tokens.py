"""Keys and signatures, read by PyJWT, which shares no line with them."""

from __future__ import annotations

from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from hypothesis import given
from hypothesis import strategies as st

from casa_hub.issuer.tokens import SigningKey, new_private_key, read_private_key, thumbprint
from casa_hub.keys import BadKeyError

EC, EC_FILE = new_private_key()
RSA, RSA_FILE = new_private_key(rsa_bits=2048)


def pem(private: Any, password: bytes = b"") -> bytes:
    encryption = BestAvailableEncryption(password) if password else NoEncryption()
    content: bytes = private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption)
    return content


@pytest.mark.parametrize(("key", "algorithm"), [(EC, "ES256"), (RSA, "RS256")])
def test_the_published_key_verifies_what_the_private_one_signed(key: SigningKey, algorithm: str) -> None:
    token = key.sign({"sub": "alice"})
    assert jwt.decode(token, jwt.PyJWK(dict(key.jwk)), algorithms=[algorithm]) == {"sub": "alice"}
    assert jwt.get_unverified_header(token) == {"alg": algorithm, "kid": key.kid, "typ": "JWT"}


@given(claims=st.dictionaries(st.text(), st.text() | st.integers(), max_size=5))
def test_any_claims_are_read_as_they_were_signed(claims: dict[str, Any]) -> None:
    for name in ("exp", "nbf", "iat", "aud", "iss", "sub", "jti"):  # PyJWT judges those
        claims.pop(name, None)
    assert jwt.decode(EC.sign(claims), jwt.PyJWK(dict(EC.jwk)), algorithms=["ES256"]) == claims


def test_another_key_does_not_verify_it() -> None:
    other, _ = new_private_key()
    with pytest.raises(jwt.InvalidSignatureError):
        jwt.decode(other.sign({}), jwt.PyJWK(dict(EC.jwk)), algorithms=["ES256"])


def test_only_the_public_half_is_published() -> None:
    assert set(EC.jwk) == {"kty", "crv", "x", "y", "kid", "alg", "use"}
    assert set(RSA.jwk) == {"kty", "n", "e", "kid", "alg", "use"}


def test_the_kid_is_the_thumbprint_of_rfc_7638() -> None:
    """The example of RFC 7638, 3.1."""
    modulus = (
        "0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aPFFxuhDR1L6tSoc_BJECPebWKRXjBZCiFV4n3oknj"
        "hMstn64tZ_2W-5JsGY4Hc5n9yBXArwl93lqt7_RN5w6Cf0h4QyQ5v-65YGjQR0_FDW2QvzqY368QQMicAtaSqzs8KJZgnYb9c7d0zgdAZHzu6qMQ"
        "vRL5hajrn1n91CbOpbISD08qNLyrdkt-bFTWhAI4vMQFh6WeZu0fM4lFd2NcRwr3XPksINHaQ-G_xBniIqbw0Ls1jF44-csFCur-kEgU8awapJzK"
        "nqDKgw"
    )
    jwk = {"kty": "RSA", "n": modulus, "e": "AQAB", "alg": "RS256", "kid": "2011-04-29"}
    assert thumbprint(jwk) == "NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs"


@pytest.mark.parametrize(("content", "key"), [(EC_FILE, EC), (RSA_FILE, RSA)])
def test_a_key_file_is_read_as_it_was_made(content: bytes, key: SigningKey) -> None:
    assert read_private_key(content).jwk == key.jwk


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"correct horse", "is not a private key in PEM"),
        (pem(ec.generate_private_key(ec.SECP384R1())), "neither an EC key of the curve P-256 nor an RSA key"),
        (pem(ed25519.Ed25519PrivateKey.generate()), "neither an EC key of the curve P-256 nor an RSA key"),
        (pem(rsa.generate_private_key(65537, 1024)), "has 1024 bits; RSA keys need 2048"),
        (pem(ec.generate_private_key(ec.SECP256R1()), b"secret"), "is encrypted"),
    ],
)
def test_a_file_that_is_no_such_key_is_refused_with_the_reason(content: bytes, problem: str) -> None:
    with pytest.raises(BadKeyError, match=problem):
        read_private_key(content)


def test_nothing_shows_a_private_key() -> None:
    assert repr(EC) == "SigningKey()"
