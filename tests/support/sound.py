"""Whether the secret files of a server are what its record says, read with other eyes than those that minted them."""

from __future__ import annotations

import base64
import hmac
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jwt
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from casa_hub.credentials.idtokens import master_key

#: Files of each credential.
FILES = {
    "xcache": {"xcache_token"},
    "htcondor": {"condor_token", "condor_tokens.d/condor_token"},
    "dask": {"ca.pem", "hostcert.pem", "usercert.pem", "dask_fresh_token.py"},
    "bearer": {"access_token"},
}


@dataclass(frozen=True)
class Held:
    """One credential, by its files."""

    identifiers: dict[str, str]
    #: Epoch seconds, None if the files don't tell.
    expires: float | None = None


@dataclass(frozen=True)
class Keys:
    """What those have who check credentials."""

    macaroons: bytes = field(repr=False)
    pool: bytes = field(repr=False)

    @classmethod
    def of(cls, xcache: Path, htcondor: Path) -> Keys:
        return cls(base64.b64decode(xcache.read_bytes()), master_key(htcondor.read_bytes(), "POOL"))

    def read(self, files: Mapping[str, bytes]) -> dict[str, Held]:
        """The credentials in a set of files, each of which is there as a whole and verifies."""
        held: dict[str, Held] = {}
        for name, paths in FILES.items():
            there = paths & files.keys()
            assert there in (paths, set()), f"{name} has only {sorted(there)}"
            if there:
                held[name] = getattr(self, f"_{name}")(files)
        known = set().union(*FILES.values())
        assert files.keys() <= known, f"files of no credential: {sorted(files.keys() - known)}"
        return held

    def _xcache(self, files: Mapping[str, bytes]) -> Held:
        raw = base64.urlsafe_b64decode(files["xcache_token"] + b"=" * (-len(files["xcache_token"]) % 4))
        packets: list[tuple[bytes, bytes]] = []
        while raw:
            length = int(raw[:4], 16)
            name, _, value = raw[4 : length - 1].partition(b" ")
            packets.append((name, value))
            raw = raw[length:]
        identifier = dict(packets)[b"identifier"]
        caveats = [value for name, value in packets if name == b"cid"]
        signature = hmac.digest(b"macaroons-key-generator", self.macaroons, "sha256")
        for value in [identifier, *caveats]:
            signature = hmac.digest(signature, value, "sha256")
        assert packets[-1] == (b"signature", signature), "the macaroon's signature is wrong"
        [before] = [value.decode().removeprefix("before:") for value in caveats if value.startswith(b"before:")]
        return Held({"identifier": identifier.decode()}, datetime.fromisoformat(before).timestamp())

    def _htcondor(self, files: Mapping[str, bytes]) -> Held:
        token = files["condor_token"]
        assert token == files["condor_tokens.d/condor_token"], "two tokens"
        options: Any = {"verify_exp": False, "verify_iat": False}
        claims = jwt.decode(token.strip(), self.pool, algorithms=["HS256"], options=options)
        return Held({"jti": claims["jti"], "sub": claims["sub"]}, float(claims["exp"]))

    def _dask(self, files: Mapping[str, bytes]) -> Held:
        authority = x509.load_pem_x509_certificate(files["ca.pem"])
        serials = {}
        for role in ("host", "user"):
            name = f"{role}cert.pem"
            leaf = x509.load_pem_x509_certificate(files[name])
            leaf.verify_directly_issued_by(authority)
            key: Any = serialization.load_pem_private_key(files[name], None)
            assert key.public_key() == leaf.public_key(), f"{name} has another one's key"
            assert leaf.not_valid_before_utc <= datetime.now(UTC) < leaf.not_valid_after_utc
            serials[role] = f"{leaf.serial_number:x}"
        found = authority.extensions.get_extension_for_class(x509.SubjectKeyIdentifier)
        return Held({"ca": found.value.digest.hex(), **serials}, authority.not_valid_after_utc.timestamp())

    @staticmethod
    def _bearer(files: Mapping[str, bytes]) -> Held:
        assert files["access_token"]
        return Held({})

    def assert_sound(self, files: Mapping[str, bytes], record: Mapping[str, Any]) -> None:
        """The files are those that the record tells of, all of them, and valid now."""
        held = self.read(files)
        entries = record["credentials"]
        assert held.keys() == entries.keys()
        now = time.time()
        for name, one in held.items():
            entry = entries[name]
            assert one.identifiers == entry["identifiers"], f"{name} is another one than its record tells of"
            if one.expires is not None:
                assert one.expires == datetime.fromisoformat(entry["expires_at"]).timestamp()
                assert one.expires > now, f"{name} expired {now - one.expires:.1f} s ago"
            assert set(entry["files"]) == FILES[name]
        assert record["order"] == max(entry["order"] for entry in entries.values())
