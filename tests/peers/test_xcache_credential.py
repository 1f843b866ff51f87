"""Minted macaroons at a real XCache (XRootD), by root:// and https.

Each refusal stands beside a positive twin: the same request, by the same way, with what should work.
"""

from __future__ import annotations

import base64
import hmac
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from casa_hub.credentials import xcache as credential
from casa_hub.credentials.base import Credential, Request
from casa_hub.demo import xrootd
from casa_hub.naming import Server
from tests.support.peers import REQUIRED, Answer, http, root

FILE, OUTSIDE, CACHED = "/store/data.root", "/other/data.root", "/store/cached.root"
OF_AL, OF_ALICE = "/store/user/al/f", "/store/user/alice/f"

Way = Callable[[str, str | None], bytes | None]


def content(path: str) -> bytes:
    return f"what is in {path}\n".encode()


class Site:
    """The XCache, a minter that has its key, and the ways to ask."""

    def __init__(self, xcache: xrootd.XCache, directory: Path) -> None:
        self.xcache = xcache
        self.directory = directory
        for path in (FILE, OUTSIDE, CACHED, OF_AL, OF_ALICE):
            xcache.origin.add(path, content(path))

    def mint(self, username: str = "alice", *, now: datetime | None = None, **settings: Any) -> Credential:
        minter = credential.XCache(
            **({"key_file": str(self.xcache.key_file), "site_name": self.xcache.site} | settings)
        )
        return minter.mint(Request(Server("hub", username), "0" * 32, now or datetime.now(UTC)))

    def token(self, username: str = "alice", **how: Any) -> str:
        return self.mint(username, **how).files["xcache_token"].decode()

    # The ways to read: what is there, or None if that was refused

    def https(self, path: str, token: str | None) -> bytes | None:
        return self._read(http(self.xcache, path, token, scheme="https"))

    def authz(self, path: str, token: str | None) -> bytes | None:
        """The token in the address, as the XRootD client plugin of the analysis images does it."""
        return self._read(root(self.xcache, path, token, by="authz"))

    def ztn(self, path: str, token: str | None) -> bytes | None:
        """The token in a file that ``BEARER_TOKEN_FILE`` names, sent at log-in."""
        return self._read(root(self.xcache, path, token, by="ztn"))

    @staticmethod
    def _read(answer: Answer) -> bytes | None:
        assert answer.status in {200, 401, 403}, answer  # another failure is no refusal
        return answer.content if answer.status == 200 else None

    def expired(self) -> str:
        return self.token(now=datetime.now(UTC) - timedelta(seconds=61), lifetime=60)


@pytest.fixture
def site(xcache: xrootd.XCache, tmp_path: Path) -> Site:
    return Site(xcache, tmp_path)


@pytest.fixture(params=["https", "authz", "ztn"])
def way(site: Site, request: pytest.FixtureRequest) -> Way:
    """One of the ways to read; whoever uses it is run with each."""
    chosen: Way = getattr(site, request.param)
    return chosen


REFUSED, READ = None, content(FILE)


def attenuated(token: str, caveat: str) -> str:
    """What a holder can do without the key: append a caveat, and sign on from the signature."""
    raw = base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))
    body, _, rest = raw.rpartition(b"002fsignature ")
    packets = b"".join(
        b"%04x%b %b\n" % (len(name) + len(value) + 6, name, value)
        for name, value in (
            (b"cid", caveat.encode()),
            (b"signature", hmac.digest(rest[:-1], caveat.encode(), "sha256")),
        )
    )
    return base64.urlsafe_b64encode(body + packets).rstrip(b"=").decode()


def flipped(token: str, at: int) -> str:
    """One byte of the macaroon changed."""
    raw = bytearray(base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)))
    raw[at] ^= 1
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def test_an_allowed_path_is_read(site: Site, way: Way) -> None:
    assert way(FILE, site.token()) == READ
    assert way(FILE, None) == REFUSED


def test_the_file_as_it_is_delivered_is_what_the_client_sends(site: Site) -> None:
    """No newline, nothing to strip: the bytes of the file, whoever reads it."""
    delivered = site.mint().files["xcache_token"]
    assert site.https(FILE, delivered.decode()) == READ
    assert site.ztn(FILE, delivered.decode()) == READ


@pytest.mark.parametrize("path", [OUTSIDE, "/store/../other/data.root", "/store/x/../../other/data.root"])
def test_another_path_is_refused(site: Site, way: Way, path: str) -> None:
    token = site.token()
    assert way(path, token) == REFUSED
    assert way(FILE, token) == READ


def test_the_other_path_is_there_for_whom_it_is_for(site: Site, way: Way) -> None:
    """Else the test above would pass with a server that has nothing there."""
    assert way(OUTSIDE, site.token(path="/other")) == content(OUTSIDE)


WRITE = """
import sys
from XRootD import client
from XRootD.client.flags import OpenFlags
with client.File() as file:
    status, _ = file.open(sys.argv[1], OpenFlags.NEW)
print(status.errno)
"""
NOT_AUTHORIZED = "3010"


WRITES = {"create": ("PUT", "/store/new"), "overwrite": ("PUT", FILE), "remove": ("DELETE", FILE)}


@pytest.mark.parametrize("case", WRITES)
def test_writing_by_http_is_refused(site: Site, case: str) -> None:
    method, path = WRITES[case]

    def ask(token: str) -> Answer:
        return http(site.xcache, path, token, scheme="https", method=method, data=b"x")

    refused = ask(site.token())
    assert refused.status == 403
    assert b"permission denied" in refused.content
    # It is the macaroon that refuses: another one comes as far as to the cache, which is exported read only.
    assert b"read-only" in ask(site.token(activities=list(credential.ACTIVITIES))).content
    assert site.https(FILE, site.token()) == READ


@pytest.mark.parametrize("path", ["/store/new", FILE])
def test_writing_by_root_is_refused(site: Site, path: str) -> None:
    token = site.token()
    url = f"{site.xcache.url(path)}?authz=Bearer%20{token}"
    assert subprocess.check_output([sys.executable, "-c", WRITE, url], text=True).strip() == NOT_AUTHORIZED
    assert site.authz(FILE, token) == READ


def wrong_key(site: Site) -> str:
    return site.token(key_file=str(xrootd.make_key_file(site.directory / "other")))


BAD: dict[str, Callable[[Site], str]] = {
    "expired": Site.expired,
    "of another key": wrong_key,
    "of another site": lambda site: site.token(site_name="T2_YY_Test"),
    "of a longer site": lambda site: site.token(site_name=f"{site.xcache.site}2"),
    "a byte of the signature flipped": lambda site: flipped(site.token(), -20),
    "a byte of the name flipped": lambda site: flipped(
        site.token(), base64.urlsafe_b64decode(site.token() + "==").index(b"name:alice") + 5
    ),
    "for listing only": lambda site: site.token(activities=["LIST"]),
    "empty": lambda _: "",
    "garbage": lambda _: "garbage",
}


@pytest.mark.parametrize("case", BAD)
def test_a_token_that_is_none_is_refused(site: Site, way: Way, case: str) -> None:
    assert way(FILE, BAD[case](site)) == REFUSED
    assert way(FILE, site.token()) == READ


def test_a_longer_life_added_by_the_user_is_refused(site: Site, way: Way) -> None:
    later = f"before:{datetime.now(UTC) + timedelta(hours=1):%Y-%m-%dT%H:%M:%SZ}"
    assert way(FILE, attenuated(site.expired(), later)) == REFUSED
    # The same appended to one that lives: what was done to the first is a thing that XRootD understands.
    assert way(FILE, attenuated(site.token(), later)) == READ


def test_a_wider_path_added_by_the_user_is_refused(site: Site, way: Way) -> None:
    wider = attenuated(site.token(), "path:/")
    assert way(OUTSIDE, wider) == REFUSED
    assert way(FILE, wider) == READ


def test_the_path_of_al_does_not_open_that_of_alice(site: Site, way: Way) -> None:
    """XRootD 5 compares beginnings of text."""
    token = site.token("al", path="/store/user/{username}")
    assert way(OF_AL, token) == content(OF_AL)
    assert way(OF_ALICE, token) == REFUSED
    assert way(OF_ALICE, site.token("alice", path="/store/user/{username}")) == content(OF_ALICE)


@pytest.mark.parametrize("username", ["josé", "a b", "a\nname:root", "../x", "😀" * 60, 'a"b'])
def test_macaroons_of_hostile_names_are_sound(site: Site, username: str) -> None:
    assert site.ztn(FILE, site.token(username)) == READ


def test_a_macaroon_found_in_the_log_tells_whose_it_is(site: Site) -> None:
    minted = site.mint("carol")
    identifier = minted.identifiers["identifier"]
    assert identifier.startswith("hub/carol/")
    assert identifier not in site.xcache.log.read_text()
    assert site.https(FILE, minted.files["xcache_token"].decode()) == READ
    assert f"verification successful; ID {identifier}" in site.xcache.log.read_text()


def test_the_second_read_is_served_by_the_cache(site: Site) -> None:
    if not site.xcache.caching:
        assert not REQUIRED, "this XRootD has no proxy plugins, so no cache"
        pytest.skip("this XRootD has no proxy plugins, so no cache")
    token = site.token()
    assert not site.xcache.cached(CACHED).exists()
    assert site.authz(CACHED, token) == content(CACHED)
    site.xcache.origin.stop()
    try:
        for way in (site.authz, site.https, site.ztn):
            assert way(CACHED, token) == content(CACHED)
            # What is in the cache is not open to everybody for that.
            assert way(CACHED, site.expired()) == REFUSED
            assert way(CACHED, None) == REFUSED
    finally:
        site.xcache.origin.start()
