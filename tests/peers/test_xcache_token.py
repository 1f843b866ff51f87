"""Tokens of the facility's own issuer at a real XCache (XRootD with libXrdAccSciTokens), by root:// and https.

It is the XCache of the other tests, which takes macaroons as well. So each refusal here is also one of the plug-in
behind, to which a refused token is handed on.
"""

from __future__ import annotations

import asyncio
import base64
import hmac
import json
import os
import sqlite3
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from tornado.httpserver import HTTPServer
from tornado.httputil import HTTPServerRequest
from tornado.web import Application

from casa_hub.credentials import xcache as macaroon
from casa_hub.credentials.base import Credential, Minter, Request
from casa_hub.credentials.issued import issue
from casa_hub.demo import xrootd
from casa_hub.demo.certificates import HostCertificate, make_host_certificate
from casa_hub.issuer import published
from casa_hub.issuer.settings import PATH, FacilityIssuer
from casa_hub.issuer.tokens import SigningKey, new_private_key
from casa_hub.loopback import free_port
from casa_hub.naming import Server
from tests.support.peers import ISSUER, Asked, http, root, roots
from tests.support.renewed_files import read_on, renewed_files
from tests.support.tokens import by_hand

FILE, NEIGHBOUR, OUTSIDE = "/store/token/file", "/store2/file", "/other/token"
OF_AL, OF_ALICE = "/store/token/al/file", "/store/token/alice/file"
#: Before this version, XRootD compares the beginnings of paths as text (see `XCache.path`).
WHOLE_NAMES = (5, 6, 9)
#: From this version on, XRootD asks issuers whose certificate is of an authority of its own (``xrd.tlsca``).
ASKS_BY_ITS_OWN_CA = (5, 7)
CRON = Path(__file__).parents[2] / "examples/xcache-keys/xcache_keys.py"


def content(path: str) -> bytes:
    return f"what is in {path}\n".encode()


class Token(Minter):
    name, title = "token", "Token"

    def mint(self, request: Request) -> Credential:
        raise NotImplementedError


class Site:
    """The XCache, and the facility's issuer, whose keys it knows."""

    def __init__(self, xcache: xrootd.XCache, keys: Path, iss: str = ISSUER) -> None:
        self.xcache = xcache
        self.keys = keys
        self.key = self.add_key("1.pem")
        url, _, vo = iss.rpartition("/")
        self.issuer = FacilityIssuer(url=url, vo=vo, keys=str(keys), key_lead=0)
        self._minter = Token()
        self._minter.issuer = self.issuer
        for path in (FILE, NEIGHBOUR, OUTSIDE, OF_AL, OF_ALICE):
            xcache.origin.add(path, content(path))

    def add_key(self, name: str) -> SigningKey:
        key, pem = new_private_key()
        (self.keys / name).write_bytes(pem)
        return key

    def publish(self) -> None:
        """Tell the XCache which keys are published now."""
        self.xcache.trust(self.issuer.jwks(time.time()))

    def token(self, scope: str = "storage.read:/store", *, now: datetime | None = None, lifetime: int = 600) -> str:
        """As the facility mints it; no two are the same."""
        request = Request(Server("hub", "alice"), os.urandom(16).hex(), now or datetime.now(UTC))
        return issue(self._minter, request, audience=self.xcache.audience, scope=scope, lifetime=lifetime).value

    def signed(self, key: SigningKey | None = None, **changes: Any) -> str:
        """One that is sound but for these claims; None leaves one out."""
        changed = parts(self.token())[1] | {name.replace("_", "."): value for name, value in changes.items()}
        return (key or self.key).sign({name: value for name, value in changed.items() if value is not None})

    def macaroon(self, **settings: Any) -> str:
        own: dict[str, Any] = {"key_file": str(self.xcache.key_file), "site_name": self.xcache.site}
        request = Request(Server("hub", "alice"), "0" * 32, datetime.now(UTC))
        return macaroon.XCache(**own | settings).mint(request).files["xcache_token"].decode()


@pytest.fixture(scope="module")
def site(xcache: xrootd.XCache, tmp_path_factory: pytest.TempPathFactory) -> Site:
    if not xcache.issuer:
        pytest.skip("this XRootD has no plug-in for tokens")
    made = Site(xcache, tmp_path_factory.mktemp("issuer"))
    made.publish()
    return made


def parts(token: str) -> tuple[dict[str, Any], dict[str, Any], bytes]:
    """Header, claims and signature."""
    header, claims, signature = (base64.urlsafe_b64decode(part + "==") for part in token.split("."))
    return json.loads(header), json.loads(claims), signature


def soon(seconds: int) -> int:
    return int(time.time()) + seconds


@dataclass(frozen=True)
class Case:
    """A token, and the file that is asked for with it."""

    token: Callable[[Site], str | None]
    path: str = FILE
    read: bool = False
    #: The oldest version of XRootD for which that is so.
    since: tuple[int, ...] = ()


def tampered(site: Site) -> str:
    """The scope widened, and the signature left as it was."""
    header, claims, signature = parts(site.token())
    return by_hand(header, claims | {"scope": "storage.read:/"}, signature)


def unsigned(site: Site, name: str) -> str:
    header, claims, _ = parts(site.token())
    return by_hand(header | {"alg": name}, claims)


def signed_with_the_public_key(site: Site) -> str:
    """What fools a verifier that lets the token say how it is to be verified: the public key is no secret."""
    header, claims, _ = parts(site.token())
    pem = site.key.private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    signed = by_hand(header | {"alg": "HS256"}, claims).rpartition(".")[0]
    return by_hand(header | {"alg": "HS256"}, claims, hmac.digest(pem, signed.encode(), "sha256"))


def broken(site: Site) -> str:
    header, claims, signature = parts(site.token())
    return by_hand(header, claims, bytes([signature[0] ^ 1]) + signature[1:])


CASES: dict[str, Case] = {
    # What is read, so that the refusals below are those of the token and not of something else.
    "as minted": Case(Site.token, read=True),
    "for one of two audiences": Case(lambda site: site.signed(aud=["https://x.test", site.xcache.audience]), read=True),
    "for the neighbour": Case(lambda site: site.token("storage.read:/store2"), NEIGHBOUR, read=True),
    "for outside": Case(lambda site: site.token("storage.read:/other"), OUTSIDE, read=True),
    "for two paths": Case(lambda site: site.token("storage.read:/store storage.read:/other"), OUTSIDE, read=True),
    "of al, at al's": Case(lambda site: site.token("storage.read:/store/token/al"), OF_AL, read=True),
    "a macaroon": Case(Site.macaroon, read=True),
    # What is refused.
    "none at all": Case(lambda _: None),
    "another path": Case(Site.token, OUTSIDE),
    "another path, by dots": Case(Site.token, "/store/../other/token"),
    "a path that begins alike": Case(Site.token, NEIGHBOUR, since=WHOLE_NAMES),
    "of al, at alice's": Case(lambda site: site.token("storage.read:/store/token/al"), OF_ALICE, since=WHOLE_NAMES),
    "a scope that doesn't read": Case(lambda site: site.token("storage.create:/store storage.stage:/store")),
    "no scope but a group": Case(lambda site: site.signed(scope=None, wlcg_groups=["/cms"])),
    "another audience": Case(lambda site: site.signed(aud="https://other.test:1094")),
    "no audience": Case(lambda site: site.signed(aud=None)),
    "another issuer": Case(lambda site: site.signed(iss=f"{ISSUER}2")),
    "expired": Case(lambda site: site.signed(exp=soon(-2))),
    "without expiry": Case(lambda site: site.signed(exp=None)),
    "not yet valid": Case(lambda site: site.signed(nbf=soon(600))),
    "tampered": Case(tampered),
    "tampered, at what it was widened to": Case(tampered, OUTSIDE),
    "a bit of the signature flipped": Case(broken),
    "alg none": Case(lambda site: unsigned(site, "none")),
    "alg NONE": Case(lambda site: unsigned(site, "NONE")),
    "HS256 with the public key": Case(signed_with_the_public_key),
    "of a key that isn't published": Case(lambda site: site.signed(new_private_key()[0])),
    "garbage": Case(lambda _: "a.b.c"),
    "a macaroon of another site": Case(lambda site: site.macaroon(site_name="T2_YY_Test")),
    "a macaroon for another path": Case(Site.macaroon, OUTSIDE),
}


@pytest.fixture(scope="module")
def answers(site: Site) -> dict[str, dict[str, bytes | None]]:
    """What each case was given in each way; None if that was refused. One client asks for all of them."""
    found: dict[str, dict[str, bytes | None]] = {}
    tokens = {name: case.token(site) for name, case in CASES.items()}
    asked = [Asked(CASES[name].path, authz=token) for name, token in tokens.items()]
    asked += [Asked(CASES[name].path, ztn=token) for name, token in tokens.items()]
    by_root = roots(site.xcache, asked)
    for number, (name, token) in enumerate(tokens.items()):
        by_way = {
            "https": http(site.xcache, CASES[name].path, token, scheme="https"),
            "authz": by_root[number],
            "ztn": by_root[number + len(tokens)],
        }
        for answer in by_way.values():
            assert answer.status in {200, 401, 403}, (name, answer)  # another failure is no refusal
        found[name] = {way: answer.content if answer.status == 200 else None for way, answer in by_way.items()}
    return found


@pytest.mark.parametrize("name", CASES)
def test_what_is_read_with_a_token_and_what_is_refused(
    site: Site, answers: dict[str, dict[str, bytes | None]], name: str
) -> None:
    case = CASES[name]
    read = case.read or site.xcache.version < case.since
    expected = dict.fromkeys(("https", "authz", "ztn"), content(case.path) if read else None)
    if not site.xcache.ztn_takes_tokens and name != "a macaroon":
        expected["ztn"] = None
    assert answers[name] == expected


def test_a_refused_token_is_not_rescued_by_a_good_one_of_the_other_kind(site: Site) -> None:
    """The log-in had a good one; the address names another, and that alone counts."""
    expired, forged = site.signed(exp=soon(-2)), site.macaroon(site_name="T2_YY_Test")
    asked = [Asked(FILE, ztn=site.macaroon(), authz=expired), Asked(FILE, ztn=site.macaroon())]
    if site.xcache.ztn_takes_tokens:
        asked += [Asked(FILE, ztn=site.token(), authz=forged), Asked(FILE, ztn=site.token())]
    assert [answer.status for answer in roots(site.xcache, asked)] == [403, 200, 403, 200][: len(asked)]


def test_a_new_key_is_known_and_a_withdrawn_one_refused_as_soon_as_the_cache_knows(site: Site) -> None:
    def statuses(token: str) -> set[int]:
        return {
            http(site.xcache, FILE, token, scheme="https").status,
            root(site.xcache, FILE, token, by="authz").status,
        }

    old, new = site.key, site.add_key("2.pem")
    try:
        assert statuses(site.signed(new)) == {403}
        site.publish()
        assert statuses(site.signed(old)) == statuses(site.signed(new)) == {200}

        shown = site.signed(old)
        assert http(site.xcache, FILE, shown, scheme="https").status == 200
        (site.keys / "1.pem").unlink()
        site.publish()
        # XRootD remembers for a minute what it granted. If this fails it has learnt to forget.
        assert http(site.xcache, FILE, shown, scheme="https").status == 200
        assert statuses(site.signed(old)) == {403}
        assert statuses(site.signed(new)) == {200}
    finally:
        site.key = site.add_key("1.pem")
        site.publish()


#: Seconds that a token lives, after which there is a new one, and that a client reads: more than three lives.
LIFE, EVERY, LONG = 6, 2, 19


def test_renewal_in_place_goes_on_for_three_lives_without_a_refusal(site: Site, tmp_path: Path) -> None:
    """In one process: by the token of now, by a log-in for each token, or by a file that stays open."""
    ways = ("authz", "https", *(("open", "named") if site.xcache.ztn_takes_tokens else ()))

    def mint(now: datetime) -> Mapping[str, bytes]:
        return {"xcache_token": site.token(now=now, lifetime=LIFE).encode()}

    with renewed_files(tmp_path, EVERY, mint):
        answer = read_on(site.xcache, tmp_path / "xcache_token", LONG, *ways, pause=0.2)
    assert answer["failures"] == []
    assert all(answer["read"][way] > LONG for way in ways), answer["read"]


@contextmanager
def pages(issuer: FacilityIssuer, certificate: HostCertificate) -> Iterator[list[str]]:
    """A context in which the hub's own pages of an issuer are served by https; yields the names of those asked for."""
    asked: list[str] = []
    started: Future[Callable[[], object]] = Future()

    class Noting(Application):
        def find_handler(self, request: HTTPServerRequest, **more: Any) -> Any:
            asked.append(request.path.rpartition("/")[2])
            return super().find_handler(request, **more)

    async def serve() -> None:
        end, loop = asyncio.Event(), asyncio.get_running_loop()
        below = [("/hub" + path, *rest) for path, *rest in published.handlers(issuer)]
        tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        tls.load_cert_chain(certificate.certificate, certificate.key)
        server = HTTPServer(Noting(below), ssl_options=tls)
        server.listen(urlsplit(issuer.url).port or 0, "localhost")
        started.set_result(lambda: loop.call_soon_threadsafe(end.set))
        await end.wait()
        server.stop()
        await server.close_all_connections()

    thread = threading.Thread(target=lambda: asyncio.run(serve()), daemon=True)
    thread.start()
    end = started.result(30)
    try:
        yield asked
    finally:
        end()
        thread.join(30)


@pytest.fixture
def ignorant(site: Site, peers_directory: Path, tmp_path: Path) -> Iterator[Site]:
    """An XCache with an https issuer of its own, whose keys it doesn't know yet."""
    directory = Path(tempfile.mkdtemp(dir=peers_directory, prefix="asking-"))
    directory.chmod(0o755)
    own = xrootd.XCache(
        site.xcache.tree,
        directory / "xcache",
        origin=site.xcache.origin,
        key_file=site.xcache.key_file,
        site=site.xcache.site,
        issuer=f"https://localhost:{free_port(site)}/hub/{PATH}/cms",
    )
    with own:
        yield Site(own, tmp_path, own.issuer)


@pytest.fixture
def asking(ignorant: Site) -> Site:
    """One that can ask its issuer for the keys."""
    if ignorant.xcache.version < ASKS_BY_ITS_OWN_CA:
        pytest.skip("this XRootD asks only who has a certificate that the system trusts")
    return ignorant


#: Seconds after which libscitokens asks for keys again.
AGAIN = 600


def let_pass(xcache: xrootd.XCache, seconds: int) -> None:
    """Make the keys that the XCache knows so much older."""
    with closing(sqlite3.connect(xcache.directory / "keys/scitokens/scitokens_cpp.sqllite")) as database, database:
        [(text,)] = database.execute("SELECT keys FROM keycache")
        known = json.loads(text)
        for time_of in ("next_update", "expires"):
            known[time_of] -= seconds
        database.execute("UPDATE keycache SET keys = ?", (json.dumps(known),))


def test_an_https_issuer_is_asked_for_its_keys_every_ten_minutes_and_must_answer(asking: Site) -> None:
    def read(key: SigningKey) -> bool:
        answer = http(asking.xcache, FILE, asking.signed(key), scheme="https")
        assert answer.status in {200, 403}
        return answer.status == 200

    old, once = asking.key, ["openid-configuration", "jwks"]
    with pages(asking.issuer, asking.xcache.tls) as asked:
        assert read(old)
        new = asking.add_key("2.pem")
        assert (read(old), read(new)) == (True, False)
        assert asked == once

        let_pass(asking.xcache, AGAIN + 1)
        assert (read(old), read(new)) == (True, True)
        assert asked == 2 * once

        (asking.keys / "1.pem").unlink()
        assert (read(old), read(new)) == (True, True)
        let_pass(asking.xcache, AGAIN + 1)
        assert (read(old), read(new)) == (False, True)
        assert asked == 3 * once
        let_pass(asking.xcache, AGAIN + 1)
    # It has the key for four days, but libscitokens 1 refuses what it can't ask about. If this fails it has learnt to
    # go on, as version 0.7 does, and the guide can be shorter.
    assert not read(new)
    with pages(asking.issuer, asking.xcache.tls):
        assert read(new)


def test_an_https_issuer_with_a_certificate_of_somebody_else_is_not_believed(asking: Site, tmp_path: Path) -> None:
    with pages(asking.issuer, make_host_certificate(tmp_path / "tls")) as asked:
        assert http(asking.xcache, FILE, asking.token(), scheme="https").status == 403
        assert asked == []


def test_keys_that_cron_brings_are_used_for_four_days_without_the_issuer(ignorant: Site) -> None:
    """examples/xcache-keys: for an XCache that can't ask, and for one that shall go on while the hub is away."""
    xcache = ignorant.xcache

    def cron() -> int:
        command = [sys.executable, CRON, ignorant.issuer.iss, xcache.directory / "keys", "--ca", xcache.tls.ca_file]
        return subprocess.run(command, timeout=60, check=False).returncode

    def read(key: SigningKey) -> bool:
        return http(xcache, FILE, ignorant.signed(key), scheme="https").status == 200

    old = ignorant.key
    with pages(ignorant.issuer, xcache.tls):
        assert cron() == 0
    let_pass(xcache, AGAIN + 1)
    assert read(old)
    assert cron() != 0
    assert read(old)

    new = ignorant.add_key("2.pem")
    (ignorant.keys / "1.pem").unlink()
    with pages(ignorant.issuer, xcache.tls):
        assert cron() == 0
    assert (read(old), read(new)) == (False, True)

    let_pass(xcache, 4 * 86400 + 1)
    assert not read(new)
