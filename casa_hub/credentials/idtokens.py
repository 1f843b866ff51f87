"""Pure: HTCondor's signing keys, and the IDTOKENs that they sign.

An IDTOKEN is a JSON Web Token signed with HS256. The file of a signing key is scrambled (XOR with de ad be ef). HS256
takes the master key, which is HKDF-SHA256 (RFC 5869) of the signing key; only the key named POOL is doubled before.
Checked against condor_token_create of HTCondor 23.9 and 25.14.
"""

from __future__ import annotations

import base64
import hmac
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from casa_hub.keys import BadKeyError

#: Bytes. HTCondor accepts any length, but the holder of a token can find a short key offline, by trying.
MIN_KEY_BYTES = 32
MAKE_KEY = (
    "Copy the pool's signing key, byte by byte, or give the hub one of its own:"
    " openssl rand -base64 48 > CLEAR; condor_store_cred add -c -i CLEAR -f FILE."
)


def scramble(data: bytes) -> bytes:
    """Scramble a key as HTCondor does for its files. Applied twice it gives the key back."""
    mask = b"\xde\xad\xbe\xef" * (len(data) // 4 + 1)
    return bytes(a ^ b for a, b in zip(data, mask, strict=False))


def master_key(content: bytes, key_id: str) -> bytes:
    """The HS256 key, which HTCondor derives from the content of a key file."""
    secret = scramble(content)
    if key_id == "POOL":
        secret += secret
    return HKDF(algorithm=hashes.SHA256(), length=32, salt=b"htcondor", info=b"master jwt").derive(secret)


@dataclass(frozen=True, slots=True)
class SigningKey:
    """The key that a key file yields."""

    #: The `master_key`.
    value: bytes = field(repr=False)
    #: The file is plain text, so HTCondor didn't write it: its scrambling gives bytes above 127.
    text: bool = False


def read_key(content: bytes, key_id: str) -> SigningKey:
    """The key in a file. Raises BadKeyError if it is too short."""
    if len(content) < MIN_KEY_BYTES:
        problem = f"holds {len(content)} bytes; a key below {MIN_KEY_BYTES} can be found from a token, by trying"
        raise BadKeyError(problem, MAKE_KEY)
    return SigningKey(master_key(content, key_id), text=content.isascii())


# json.dumps() would make an encoder for each call.
_compact = json.JSONEncoder(separators=(",", ":")).encode


def mint_idtoken(key: bytes, key_id: str, claims: Mapping[str, str | int]) -> str:
    """A signed IDTOKEN; `key` is the `master_key`. Pure."""
    signed = _header(key_id) + b"." + _base64url(_compact(claims).encode())
    return (signed + b"." + _base64url(hmac.digest(key, signed, "sha256"))).decode()


@lru_cache(maxsize=16)
def _header(key_id: str) -> bytes:
    return _base64url(_compact({"alg": "HS256", "kid": key_id}).encode())


def _base64url(data: bytes) -> bytes:
    return base64.urlsafe_b64encode(data).rstrip(b"=")
