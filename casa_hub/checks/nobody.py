"""Tokens of the facility's issuer with which checks try a verifier: of nobody, and forged."""

from __future__ import annotations

import secrets
from datetime import UTC, datetime

import jwt

from casa_hub.checks.findings import NOBODY
from casa_hub.credentials.base import AccessToken, Request
from casa_hub.credentials.tokens import unverified_claims
from casa_hub.issuer.tokens import MIN_RSA_BITS, new_private_key
from casa_hub.naming import Server


def nobodys_request(longest: int) -> Request:
    """For a credential that lives for so many seconds at most."""
    # In place of a log-in, for tokens that name the provider's `sub`.
    token = AccessToken("", None, subject=NOBODY)
    return Request(Server("", NOBODY), secrets.token_hex(16), datetime.now(UTC), token, longest=longest)


def forged(token: str) -> str:
    """The same claims in the name of the same key, signed by another one of its kind."""
    header = jwt.get_unverified_header(token)
    key, _ = new_private_key(rsa_bits=MIN_RSA_BITS if header["alg"] == "RS256" else None)
    return jwt.encode(dict(unverified_claims(token)), key.private, header["alg"], headers={"kid": header["kid"]})
