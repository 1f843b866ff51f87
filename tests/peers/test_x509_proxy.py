"""Proxies as `X509` delivers them at a real XRootD: by root:// with GSI, and by https:// with TLS.

They are made by a stand-in of IAM's end point, of certificates of an authority that the server trusts. The server maps
people by their certificates' names, and refuses who is not in its map.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from casa_hub.credentials.base import Request
from casa_hub.credentials.fetching import Answer as Sent
from casa_hub.credentials.fetching import FetchError
from casa_hub.credentials.x509 import X509
from casa_hub.demo import xrootd
from casa_hub.naming import Server
from tests.support.gsi import GsiServer, by_https, by_root
from tests.support.peers import Answer, require, suites
from tests.support.proxies import Authority, Holder, key

HOUR = timedelta(hours=1)
AUTHORITY = Authority()
ALICE = AUTHORITY.certify("Alice A. Liddell")
BOB = AUTHORITY.certify("Bob", key_number=3)
#: In the map, but revoked by the authority.
EVE = AUTHORITY.certify("Eve", key_number=4)
AUTHORITY.revoke(EVE)
#: Not in the map.
MALLORY = AUTHORITY.certify("Mallory", key_number=5)

WAYS: dict[str, Callable[[GsiServer, str, Mapping[str, str]], Answer]] = {"root": by_root, "https": by_https}


@pytest.fixture(scope="module", params=suites("bookworm", "trixie", "sid"))
def server(request: pytest.FixtureRequest, peers_directory: Path) -> Iterator[GsiServer]:
    tree = require(lambda: xrootd.programs(request.param))
    people = {"alice": ALICE, "bob": BOB, "eve": EVE}
    with GsiServer(tree, peers_directory / f"gsi-{request.param}", AUTHORITY, people) as running:
        yield running


def delivered(chain: Holder) -> bytes:
    """What a server gets of an answer with this chain. Raises FetchError."""
    minter, now = X509(), datetime.now(UTC)
    assert minter.fetch is not None
    fetched = minter.fetch.read(Sent(200, {"certificate_chain": chain.pem}, now, "https://iam.example.org/", "sub"))
    return minter.mint(Request(Server("", "alice"), "0" * 32, now, fetched={"x509": fetched})).files["x509_proxy"]


def ask(way: str, server: GsiServer, path: str, proxy: bytes, directory: Path) -> Answer:
    file = directory / "x509_proxy"
    file.touch(mode=0o600)
    file.write_bytes(proxy)
    return WAYS[way](server, path, {"X509_USER_PROXY": str(file), "X509_CERT_DIR": str(server.authorities)})


@pytest.mark.parametrize("way", WAYS)
def test_a_person_is_known_by_the_proxy_and_reads_what_is_theirs(server: GsiServer, tmp_path: Path, way: str) -> None:
    """IAM makes a proxy of a proxy that the person has stored."""
    for name, holder in (("alice", ALICE), ("bob", BOB)):
        proxy = delivered(holder.proxy(100 * HOUR).proxy(HOUR))
        answer = ask(way, server, server.file(name), proxy, tmp_path)
        assert (answer.status, answer.content) == (200, server.content(name)), answer.message
        other = "bob" if name == "alice" else "alice"
        answer = ask(way, server, server.file(other), proxy, tmp_path)
        assert answer.status == 403, answer.message


#: What the hub can't see, because it knows no authority and no map.
REFUSED_BY_SERVERS: dict[str, Callable[[], Holder]] = {
    "of another authority": lambda: Authority(key_number=6).certify("Alice A. Liddell").proxy(HOUR),
    "of somebody who is not in the map": lambda: MALLORY.proxy(HOUR),
    "of a person who is none": lambda: replace(ALICE, certificate=BOB.certificate).proxy(HOUR),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("make", REFUSED_BY_SERVERS.values(), ids=REFUSED_BY_SERVERS)
def test_a_forged_or_foreign_proxy_is_refused(
    server: GsiServer, tmp_path: Path, way: str, make: Callable[[], Holder]
) -> None:
    chain = make()
    answer = ask(way, server, server.file("alice"), chain.pem.encode(), tmp_path)
    assert answer.status == 401, answer
    # The proxies of this test are sound but for that.
    answer = ask(way, server, server.file("alice"), ALICE.proxy(HOUR).pem.encode(), tmp_path)
    assert answer.status == 200, answer.message


@pytest.mark.parametrize("way", WAYS)
def test_a_revoked_certificate_is_still_let_in_by_xrootd(server: GsiServer, tmp_path: Path, way: str) -> None:
    """A limit of XRootD's, though it demands and reads the list: if this fails, it has learnt to heed it."""
    answer = ask(way, server, server.file("eve"), EVE.proxy(HOUR).pem.encode(), tmp_path)
    assert answer.status == 200, answer.message


def _late(life: timedelta) -> datetime:
    return datetime.now(UTC) - 2 * life


#: What the hub can see: nobody gets it.
NEVER_DELIVERED: dict[str, Callable[[], Holder]] = {
    "expired": lambda: ALICE.proxy(HOUR, now=_late(HOUR)),
    "made of an expired one": lambda: ALICE.proxy(HOUR, now=_late(HOUR)).proxy(HOUR),
    "made of an expired certificate": lambda: AUTHORITY.certify("Alice A. Liddell", life=-HOUR).proxy(HOUR),
    "of a time to come": lambda: ALICE.proxy(HOUR, now=datetime.now(UTC) + HOUR),
    "with another key": lambda: replace(ALICE.proxy(HOUR), key=key(9)),
    "without its chain": lambda: replace(ALICE.proxy(HOUR), above=()),
    "signed by another key": lambda: replace(ALICE, key=key(9)).proxy(HOUR),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("make", NEVER_DELIVERED.values(), ids=NEVER_DELIVERED)
def test_a_proxy_that_no_server_takes_is_not_delivered(
    server: GsiServer, tmp_path: Path, way: str, make: Callable[[], Holder]
) -> None:
    chain = make()
    answer = ask(way, server, server.file("alice"), chain.pem.encode(), tmp_path)
    assert answer.status == 401, answer
    with pytest.raises(FetchError):
        delivered(chain)
