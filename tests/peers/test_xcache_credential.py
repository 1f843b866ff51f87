"""Minted macaroons at a real XCache (XRootD), by root:// and https.

Each refusal stands beside a positive twin: the same request, by the same way, with what should work.
"""

from __future__ import annotations

import base64
import hmac
import http.client
import os
import ssl
import subprocess
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from casa_hub.credentials.base import Credential, Request
from casa_hub.credentials.xcache import XCache
from casa_hub.demo import xrootd
from casa_hub.demo.processes import minimal_environment
from casa_hub.naming import Server
from tests.support.peers import needed, open_directory

SITE = "T2_XX_Example"
FILE, OUTSIDE = "/store/data.root", "/other/data.root"
FILES = (FILE, OUTSIDE, "/store/user/al/f", "/store/user/alice/f", "/store/never-read", "/store/cached")

#: Exit code of xrdcp when a server answers with an error; its text holds XRootD's number of the error.
SERVER_SAID_NO = 54
NOT_AUTHORIZED = "[3010]"


class Site:
    """An origin and its XCache, and the ways to ask it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.tree = xrootd.programs()
        self.key_file = xrootd.make_key_file(directory / "macaroon-secret")
        self.origin = xrootd.XRootDOrigin(self.tree, directory / "origin")
        for path in FILES:
            self.origin.add(path, content(path))
        self.xcache = xrootd.XCache(
            self.tree, directory / "xcache", origin=self.origin, key_file=self.key_file, site=SITE
        )

    def mint(self, username: str = "alice", *, now: datetime | None = None, **settings: Any) -> Credential:
        minter = XCache(**({"key_file": str(self.key_file), "site_name": SITE} | settings))
        return minter.mint(Request(Server("hub", username), "0" * 32, now or datetime.now(UTC)))

    def token(self, username: str = "alice", **how: Any) -> str:
        return self.mint(username, **how).files["xcache_token"].decode()

    # The ways: each says (refused, content)

    def https(self, path: str, token: str | None, *, method: str = "GET", body: bytes | None = None) -> Any:
        context = ssl.create_default_context(cafile=self.xcache.tls.ca_file)
        return self._http(http.client.HTTPSConnection("localhost", self.xcache.port, timeout=20, context=context))(
            path, token, method, body
        )

    def _http(self, connection: http.client.HTTPConnection) -> Callable[..., tuple[bool, bytes]]:
        def ask(path: str, token: str | None, method: str, body: bytes | None) -> tuple[bool, bytes]:
            headers = {"Authorization": f"Bearer {token}"} if token is not None else {}
            connection.request(method, path, body=body, headers=headers)
            answer = connection.getresponse()
            answered = answer.read()
            connection.close()
            assert answer.status in {200, 403}, (answer.status, answered)
            return answer.status == 403, b"" if answer.status == 403 else answered

        return ask

    def root_url(self, path: str, token: str | None) -> str:
        return self.xcache.url(path) + (f"?authz=Bearer%20{token}" if token is not None else "")

    def root(self, path: str, token: str | None) -> tuple[bool, bytes]:
        """The token in the address, as the XRootD client plugin of the analysis images does it."""
        return self.xrdcp(self.root_url(path, token), "-")

    def ztn(self, path: str, token: str | None) -> tuple[bool, bytes]:
        """The token in a file that ``BEARER_TOKEN_FILE`` names, sent at log-in (TLS)."""
        file = self.directory / "token"
        file.unlink(missing_ok=True)
        file.touch(mode=0o600)
        file.write_text(token or "")
        return self.xrdcp(self.root_url(path, None), "-", BEARER_TOKEN_FILE=str(file))

    def xrdcp(self, source: str, target: str, **environment: str) -> tuple[bool, bytes]:
        ran = subprocess.run(
            [self.tree.program("xrdcp"), "--force", "--silent", source, target],
            capture_output=True,
            check=False,
            timeout=60,
            env=minimal_environment(
                XRD_CONNECTIONRETRY="1", XRD_REQUESTTIMEOUT="20", **self.xcache.client_environment, **environment
            ),
        )
        assert ran.returncode in {0, SERVER_SAID_NO}, ran.stderr
        if ran.returncode:
            assert NOT_AUTHORIZED in ran.stderr.decode(errors="replace"), ran.stderr
        return ran.returncode != 0, ran.stdout


def content(path: str) -> bytes:
    return f"what is in {path}\n".encode()


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with open_directory("xcache-test") as directory:
        with needed():
            made = Site(directory)
        with made.origin, made.xcache:
            yield made


@pytest.fixture(params=["https", "root", "ztn"])
def way(site: Site, request: pytest.FixtureRequest) -> Callable[[str, str | None], tuple[bool, bytes]]:
    """One of the ways to ask; whoever uses it is run with each."""
    return getattr(site, request.param)  # type: ignore[no-any-return]


REFUSED, READ = (True, b""), (False, content(FILE))


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


def test_an_allowed_path_is_read(site: Site, way: Any) -> None:
    assert way(FILE, site.token()) == READ
    assert way(FILE, None) == REFUSED


def test_the_file_as_it_is_delivered_is_what_the_client_sends(site: Site) -> None:
    """No newline, nothing to strip: the bytes of the file, whoever reads it."""
    delivered = site.mint().files["xcache_token"]
    assert site.https(FILE, delivered.decode()) == READ
    assert site.ztn(FILE, delivered.decode()) == READ


@pytest.mark.parametrize("path", [OUTSIDE, "/store/../other/data.root", "/store/x/../../other/data.root"])
def test_another_path_is_refused(site: Site, way: Any, path: str) -> None:
    token = site.token()
    assert way(path, token) == REFUSED
    assert way(FILE, token) == READ


def test_the_other_path_is_there_for_whom_it_is_for(site: Site, way: Any) -> None:
    """Else the test above would pass with a server that has nothing there."""
    assert way(OUTSIDE, site.token(path="/other")) == (False, content(OUTSIDE))


def test_writing_is_refused(site: Site) -> None:
    token = site.token()
    assert site.https("/store/new", token, method="PUT", body=b"x")[0]
    assert site.https(FILE, token, method="DELETE")[0]
    upload = site.directory / "upload"
    upload.write_bytes(b"x")
    assert site.xrdcp(str(upload), site.root_url("/store/new", token))[0]
    assert site.root(FILE, token) == READ


def wrong_key(site: Site) -> str:
    other = site.directory / "other-secret"
    other.unlink(missing_ok=True)
    return site.token(key_file=str(xrootd.make_key_file(other)))


BAD: dict[str, Callable[[Site], str]] = {
    "expired": lambda site: site.token(now=datetime.now(UTC) - timedelta(seconds=61), lifetime=60),
    "of another key": wrong_key,
    "of another site": lambda site: site.token(site_name="T2_YY_Other"),
    "of a longer site": lambda site: site.token(site_name=f"{SITE}2"),
    "a byte of the signature flipped": lambda site: flipped(site.token(), -20),
    "a byte of the name flipped": lambda site: flipped(
        site.token(), base64.urlsafe_b64decode(site.token() + "==").index(b"name:alice") + 5
    ),
    "for listing only": lambda site: site.token(activities=["LIST"]),
    "empty": lambda _: "",
    "garbage": lambda _: "garbage",
}


@pytest.mark.parametrize("case", BAD)
def test_a_token_that_is_none_is_refused(site: Site, way: Any, case: str) -> None:
    assert way(FILE, BAD[case](site)) == REFUSED
    assert way(FILE, site.token()) == READ


def test_a_longer_life_added_by_the_user_is_refused(site: Site, way: Any) -> None:
    expired = site.token(now=datetime.now(UTC) - timedelta(seconds=61), lifetime=60)
    later = f"before:{datetime.now(UTC) + timedelta(hours=1):%Y-%m-%dT%H:%M:%SZ}"
    assert way(FILE, attenuated(expired, later)) == REFUSED
    # The same appended to one that lives: what was done to the first is a thing that XRootD understands.
    assert way(FILE, attenuated(site.token(), later)) == READ


def test_a_wider_path_added_by_the_user_is_refused(site: Site, way: Any) -> None:
    wider = attenuated(site.token(), "path:/")
    assert way(OUTSIDE, wider) == REFUSED
    assert way(FILE, wider) == READ


def test_the_path_of_al_does_not_open_that_of_alice(site: Site, way: Any) -> None:
    """XRootD 5 compares the beginning of the text."""
    token = site.token("al", path="/store/user/{username}")
    assert way("/store/user/al/f", token) == (False, content("/store/user/al/f"))
    assert way("/store/user/alice/f", token) == REFUSED
    assert way("/store/user/alice/f", site.token("alice", path="/store/user/{username}"))[0] is False


@pytest.mark.parametrize("username", ["josé", "a b", "a\nname:root", "../x", "😀" * 60, 'a"b'])
def test_macaroons_of_hostile_names_are_sound(site: Site, username: str) -> None:
    assert site.ztn(FILE, site.token(username)) == READ


def test_a_macaroon_found_in_the_log_tells_whose_it_is(site: Site) -> None:
    credential = site.mint("carol")
    identifier = credential.identifiers["identifier"]
    assert identifier.startswith("hub/carol/")
    assert identifier not in site.xcache.log.read_text()
    assert site.https(FILE, credential.files["xcache_token"].decode()) == READ
    assert f"verification successful; ID {identifier}" in site.xcache.log.read_text()


def test_the_second_read_is_served_by_the_cache(site: Site) -> None:
    if not site.xcache.caching:
        if os.environ.get("CASA_HUB_REQUIRE_PEERS") == "1":
            pytest.fail("this XRootD has no proxy plugins, so no cache")
        pytest.skip("this XRootD has no proxy plugins, so no cache")
    path = "/store/cached"
    token = site.token()
    assert not site.xcache.cached(path).exists()
    assert site.root(path, token) == (False, content(path))
    site.origin.stop()
    try:
        for ask in (site.root, site.https, site.ztn):
            assert ask(path, token) == (False, content(path))
            # What is in the cache is not open to everybody for that.
            assert ask(path, BAD["expired"](site)) == REFUSED
            assert ask(path, None) == REFUSED
    finally:
        site.origin.start()
