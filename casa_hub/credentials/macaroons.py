"""Pure: macaroons as XRootD reads them, and the key file that both sides have.

Format: macaroons V1, the only one that XRootD's libXrdMacaroons reads (libmacaroons: packets of a 4-digit hexadecimal
length, a name, a blank, a value, a newline; HMAC-SHA256 chained over identifier and caveats; url-safe base64 without
padding). The key file is XRootD's own ``macaroons.secretkey``, decoded as XRootD decodes it.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from hashlib import sha256
from urllib.parse import quote

from casa_hub.keys import BadKeyError

#: XRootD wants at least so many bytes in the decoded ``macaroons.secretkey``.
MIN_KEY_BYTES = 32
#: XRootD refuses a macaroon that is valid for longer than ``macaroons.maxduration`` (86400 s by default), without
#: tolerance for clocks that differ. An hour less leaves room.
MAX_LIFETIME = 82800
#: The activities that XRootD knows (XrdMacaroonsAuthz.cc). It silently ignores others.
ACTIVITIES = ("READ_METADATA", "LIST", "DOWNLOAD", "UPLOAD", "MANAGE", "DELETE", "UPDATE_METADATA")
MAKE_KEY = "Put XRootD's macaroons.secretkey there, or make one for both: openssl rand -base64 -out FILE 64."

#: XRootD uses OpenSSL's base64 reader, which reads 1024 characters at a time and mangles longer lines.
_LONGEST_LINE = 1000
#: Characters of a ``name:`` that is not shortened. ztn refuses tokens of more than 4096 bytes, and a user name can have
#: 255 characters, which take up to 12 bytes each.
_LONGEST_NAME = 200


def mint_macaroon(key: bytes, location: str, identifier: str, caveats: Iterable[str]) -> str:
    """A serialised macaroon V1 with first-party caveats. Pure.
    Raises ValueError if the key is too short, or if a value doesn't fit into a packet.
    """
    if len(key) < MIN_KEY_BYTES:
        raise ValueError(f"a macaroon key has at least {MIN_KEY_BYTES} bytes")
    signature = hmac.digest(hmac.digest(b"macaroons-key-generator", key, "sha256"), identifier.encode(), "sha256")
    packets = [_packet(b"location", location.encode()), _packet(b"identifier", identifier.encode())]
    for caveat in caveats:
        value = caveat.encode()
        signature = hmac.digest(signature, value, "sha256")
        packets.append(_packet(b"cid", value))
    packets.append(_packet(b"signature", signature))
    return base64.urlsafe_b64encode(b"".join(packets)).rstrip(b"=").decode()


def _packet(name: bytes, value: bytes) -> bytes:
    length = len(name) + len(value) + 6  # four digits, a blank, a newline
    if length > 0xFFFF:  # noqa: PLR2004 - four hexadecimal digits
        raise ValueError(f"the {name.decode()} is too long for a macaroon")
    return b"%04x%b %b\n" % (length, name, value)


@dataclass(frozen=True, slots=True)
class SecretKey:
    """A decoded ``macaroons.secretkey``."""

    value: bytes = field(repr=False)
    #: Whether XRootD itself would start with this file.
    starts_xrootd: bool = True


def parse_secret_key(content: bytes) -> SecretKey:
    """Decode a key file as XRootD does (OpenSSL's ``BIO_f_base64``).
    Raises BadKeyError if XRootD can't decode the file, or would read another key than we do.
    """
    lines = [line.strip() for line in content.split(b"\n")]
    text = b"".join(lines)
    if not text:
        raise BadKeyError("holds no key", MAKE_KEY)
    if re.fullmatch(rb"[A-Za-z0-9_-]+={0,2}", text) and re.search(rb"[_-]", text):
        raise BadKeyError("is in the url-safe base64 alphabet, which XRootD doesn't read", MAKE_KEY)
    if max(map(len, lines)) > _LONGEST_LINE:
        raise BadKeyError(
            f"has a line of more than {_LONGEST_LINE} characters, which XRootD decodes wrongly",
            "Break it into lines of 64 characters: fold -w 64.",
        )
    try:
        key = base64.b64decode(text, validate=True)
    except binascii.Error:
        raise BadKeyError("is not base64", MAKE_KEY) from None
    if len(key) < MIN_KEY_BYTES:
        raise BadKeyError(f"holds {len(key)} bytes; XRootD wants at least {MIN_KEY_BYTES}", MAKE_KEY)
    return SecretKey(key, starts_xrootd=b"\n" in content.lstrip())


def name_caveat(username: str) -> str:
    """``name:`` and the user name as printable ASCII; different names stay different.

    XRootD accepts any UTF-8, but writes the name into its log and may compare it with an authorisation file, whose
    fields end at a blank. So characters other than letters, digits and ``._-~@+`` are percent-encoded. A long name is
    cut, and a digest of the whole follows behind a colon, which encoded names don't have.
    """
    encoded = quote(username, safe="@+")
    if len(encoded) > _LONGEST_NAME:
        digest = sha256(encoded.encode()).hexdigest()
        encoded = f"{encoded[: _LONGEST_NAME - len(digest) - 1]}:{digest}"
    return f"name:{encoded}"
