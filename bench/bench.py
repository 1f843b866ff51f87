"""What minting costs, and what it cost the way the Coffea-Casa hub did it; both in the same run.

    python bench/bench.py

Prints microseconds of CPU per mint (median), side by side. Always exits with 0: "met" and "missed" are for people, a
busy machine must not fail a build. One mint of each is checked before anything is measured.
"""

from __future__ import annotations

import base64
import os
import statistics
import tempfile
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import jwt
from pymacaroons import Macaroon, Verifier
from rsa_certificates import rsa_certificates

from casa_hub.credentials.base import Minter, Request
from casa_hub.credentials.dask import Dask
from casa_hub.credentials.htcondor import HTCondor
from casa_hub.credentials.idtokens import master_key, scramble
from casa_hub.credentials.issued import Issued, issue
from casa_hub.credentials.xcache import XCache
from casa_hub.issuer.settings import FacilityIssuer
from casa_hub.issuer.tokens import LONGEST, MIN_RSA_BITS, new_private_key
from casa_hub.naming import Server

#: Microseconds; and how many times.
ALL_BELOW, DASK_FASTER, TOKEN_BELOW = 1500, 100, 100
AUDIENCE = "https://xcache.example.org:1094"
SITE, DOMAIN = "T2_XX_Example", "pool.example.org"


@dataclass(frozen=True)
class Row:
    what: str
    ours: float
    theirs: float
    their_way: str


def median(mint: Callable[[], object], *, seconds: float, at_least: int) -> float:
    """Microseconds of CPU time of one call: the median, since a garbage collection now and then is not the cost."""
    mint()
    times = []
    end = time.perf_counter() + seconds
    while len(times) < at_least or time.perf_counter() < end:
        before = time.thread_time_ns()
        mint()
        times.append(time.thread_time_ns() - before)
    return statistics.median(times) / 1000


# The other way, as the hub hooks of Coffea-Casa have it (reduced to the minting, without their API calls)


def pymacaroon(key_text: bytes) -> str:
    macaroon = Macaroon(location=SITE, identifier=str(uuid.uuid4()), key=base64.b64decode(key_text))
    before = datetime.now(UTC) + timedelta(hours=12)
    for caveat in ("name:alice", "activity:DOWNLOAD,LIST", "path:/store", f"before:{before:%Y-%m-%dT%H:%M:%SZ}"):
        macaroon.add_first_party_caveat(caveat)
    return str(macaroon.serialize())


def pyjwt(key_content: bytes) -> str:
    now = int(time.time())
    claims = {
        "sub": f"alice@{DOMAIN}",
        "iss": DOMAIN,
        "iat": now,
        "exp": now + 43200,
        "jti": uuid.uuid4().hex,
        "scope": "condor:/READ condor:/WRITE",
    }
    return jwt.encode(claims, master_key(key_content, "POOL"), algorithm="HS256", headers={"kid": "POOL"})


def write(directory: Path, name: str, content: bytes) -> str:
    path = directory / name
    path.write_bytes(content)
    path.chmod(0o400)
    past = time.time() - 60  # as a key file usually is: older than the moment it is read
    os.utime(path, (past, past))
    return str(path)


def pyjwt_signed(pem: bytes, algorithm: str) -> str:
    """A token of the facility's issuer as PyJWT makes it, with the key read each time."""
    now = int(time.time())
    claims = {
        "wlcg.ver": "1.0",
        "iss": "https://hub.example.org/hub/casa/issuer/cms",
        "sub": "alice",
        "aud": AUDIENCE,
        "iat": now,
        "nbf": now - 60,
        "exp": now + LONGEST,
        "jti": uuid.uuid4().hex,
        "scope": "storage.read:/store",
    }
    return jwt.encode(claims, pem.decode(), algorithm=algorithm, headers={"kid": "2026-11"})


class Token(Minter):
    """A token of the facility's issuer, whose keys are in a directory. There are two: the last one's, and the next."""

    name, title = "token", "Token"

    def __init__(self, directory: Path, rsa_bits: int | None) -> None:
        super().__init__()
        directory.mkdir()
        keys = [new_private_key(rsa_bits=rsa_bits) for _ in range(2)]
        for number, (_, pem) in enumerate(keys):
            write(directory, f"{number}.pem", pem)
        self.signing, self.pem = keys[0]
        self.issuer = FacilityIssuer(keys=str(directory), vo="cms", url="https://hub.example.org/hub/casa/issuer")

    def mint(self, request: Request) -> Issued:  # type: ignore[override]
        return issue(self, request, audience=AUDIENCE, scope="storage.read:/store", lifetime=LONGEST)

    def row(self, request: Request) -> Row:
        algorithm = self.signing.algorithm
        key = jwt.PyJWK.from_dict(dict(self.signing.jwk)).key
        jwt.decode(self.mint(request).value, key, algorithms=[algorithm], audience=AUDIENCE)
        ours = median(partial(self.mint, request), seconds=1, at_least=1000)
        theirs = median(lambda: pyjwt_signed(self.pem, algorithm), seconds=1, at_least=20)
        return Row(f"issuer's token, {algorithm}", ours, theirs, "PyJWT, key read each time")


def measure(directory: Path) -> list[Row]:
    macaroon_key, signing_key = os.urandom(64), os.urandom(64)
    key_text = base64.encodebytes(macaroon_key)
    xcache = XCache(key_file=write(directory, "xcache", key_text), site_name=SITE)
    htcondor = HTCondor(
        key_file=write(directory, "condor", scramble(signing_key)),
        trust_domain=DOMAIN,
        uid_domain=DOMAIN,
        subject="{username}",
    )
    secret = base64.b64encode(os.urandom(48)) + b"\n"
    dask = Dask(secret_file=write(directory, "dask", secret), domain="example.org")
    server = Server("hub", "alice", "analysis")

    request = Request(server, uuid.uuid4().hex, datetime.now(UTC))

    # What is measured must be real.
    macaroon = Macaroon.deserialize(xcache.mint(request).files["xcache_token"].decode())
    verifier = Verifier()
    verifier.satisfy_general(lambda _: True)
    verifier.verify(macaroon, macaroon_key)
    token = htcondor.mint(request).files["condor_token"].decode()
    jwt.decode(token.strip(), master_key(scramble(signing_key), "POOL"), algorithms=["HS256"])

    # The slow way is measured between the fast ones, so that a machine that slows down slows down all of them.
    minters = (xcache, htcondor, dask)
    rows = []
    for what, minter, their_way, theirs, at_least in (
        ("XCache macaroon", xcache, "pymacaroons", lambda: pymacaroon(key_text), 1000),
        ("HTCondor token", htcondor, "PyJWT, key derived each time", lambda: pyjwt(scramble(signing_key)), 1000),
        ("Dask set", dask, "3 RSA-2048 keys, certificates", rsa_certificates, 20),
    ):
        ours = median(partial(minter.mint, request), seconds=1, at_least=1000)
        rows.append(Row(what, ours, median(theirs, seconds=1, at_least=at_least), their_way))
    total = median(
        lambda: [minter.mint(Request(server, uuid.uuid4().hex, datetime.now(UTC))) for minter in minters],
        seconds=2,
        at_least=1000,
    )
    rows.append(Row("all of one server", total, sum(row.theirs for row in rows), "the three above"))
    tokens = [Token(directory / f"issuer-{bits}", bits) for bits in (None, MIN_RSA_BITS)]
    return [*rows, *(token.row(request) for token in tokens)]


def report(rows: list[Row]) -> str:
    lines = [f"{'µs of CPU per mint, median':28}{'here':>10}{'before':>12}{'ratio':>9}   before: how"]
    lines += [
        f"{row.what:28}{row.ours:10.1f}{row.theirs:12.1f}{row.theirs / row.ours:8.1f}x   {row.their_way}"
        for row in rows
    ]
    macaroon, token, dask, total, es256, _ = rows
    targets = [
        (f"all of one server below {ALL_BELOW} µs", total.ours < ALL_BELOW),
        (f"Dask set at least {DASK_FASTER} times faster", dask.theirs / dask.ours >= DASK_FASTER),
        (f"issuer's token with ES256 at most {TOKEN_BELOW} µs", es256.ours <= TOKEN_BELOW),
        (
            "none slower than its library counterpart",
            all(row.ours <= row.theirs for row in (macaroon, token, dask, es256)),
        ),
    ]
    return "\n".join([*lines, "", *(f"{'met   ' if met else 'missed'}  {target}" for target, met in targets)])


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        print(report(measure(Path(name))))
