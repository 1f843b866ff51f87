"""Tokens of the facility's own issuer (SCITOKENS) at a real HTCondor pool. Each refusal stands beside a positive twin.

Who somebody is at the schedd is asked by one client for all tests, which reads its token anew for each question.
"""

from __future__ import annotations

import asyncio
import base64
import getpass
import hmac
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path, PurePosixPath
from types import SimpleNamespace
from typing import Any, cast

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from casa_hub.checks import htcondor as checks
from casa_hub.checks.findings import Status
from casa_hub.credentials.base import Credential, Request
from casa_hub.credentials.htcondor import HTCondor
from casa_hub.credentials.issued import issue
from casa_hub.demo.htcondor import HTCondorPool
from casa_hub.demo.htcondor_tokens import IssuerTokens
from casa_hub.issuer.settings import FacilityIssuer
from casa_hub.issuer.tokens import SigningKey, new_private_key
from casa_hub.naming import Server
from tests.support.peers import HELD, ISSUER, condor, only_its_owner_removes_a_job

ID = {"executable": "/usr/bin/id", "arguments": "-un"}
ALL = "compute.read compute.create compute.modify compute.cancel"


class Site:
    """A pool, and a hub with an issuer of its own whose public key the pool knows."""

    def __init__(self, pool: HTCondorPool, directory: Path) -> None:
        assert pool.issuer_tokens is not None
        self.pool = pool
        self.pings: Pings
        self.directory = directory
        self.tokens: IssuerTokens = pool.issuer_tokens
        (directory / "keys").mkdir()
        self.key, self.pem = new_private_key()
        self.sign_with(self.pem)
        self.trust(self.key)

    def sign_with(self, pem: bytes) -> None:
        (self.directory / "keys/a.pem").write_bytes(pem)

    def trust(self, *keys: SigningKey) -> None:
        self.tokens.trust({"keys": [dict(key.jwk) for key in keys]})

    def issuer(self, url: str = ISSUER) -> FacilityIssuer:
        url, _, vo = url.rpartition("/")
        return FacilityIssuer(url=url, vo=vo, keys=str(self.directory / "keys"))

    def minter(self, *, url: str = ISSUER, **settings: Any) -> HTCondor:
        minter = HTCondor(
            **{
                "credential": "token",
                "audience": self.tokens.audience,
                "ca_file": str(self.tokens.certificate.ca_file),
                "collector": f"localhost:{self.pool.port}",
            }
            | settings
        )
        minter.issuer = self.issuer(url)
        assert [problem for problem in minter.check() if "HTCondor.schedd" not in problem.thing] == []
        return minter

    def mint(self, username: str = "alice", *, now: datetime | None = None, **settings: Any) -> Credential:
        return self.minter(**settings).mint(request(username, now))

    def token(self, username: str = "alice", **how: Any) -> str:
        return self.mint(username, **how).files["condor_token"].decode().strip()

    def with_scope(self, scope: str) -> str:
        return issue(self.minter(), request(), audience=self.tokens.audience, scope=scope, lifetime=600).value

    def environment(self, token: str, home: Path) -> dict[str, str]:
        """As a server has it: files, and the variables that name them."""
        minter = self.minter()
        for name, content in {**minter.mint(request()).files, "condor_token": f"{token}\n".encode()}.items():
            (home / name).touch(mode=0o600)
            (home / name).write_bytes(content)
        # FS would let this user in without a token.
        methods = {"_CONDOR_SEC_CLIENT_AUTHENTICATION_METHODS": "IDTOKENS,SCITOKENS"}
        return methods | dict(minter.environment(Server("", "alice"), PurePosixPath(home)))

    def ask(self, token: str, operation: str, **arguments: Any) -> dict[str, Any]:
        environment = self.environment(token, self.directory)
        return condor(
            self.pool, None, operation, environment=environment, collector=environment["CONDOR_HOST"], **arguments
        )

    def refused(self, token: str) -> str:
        """That a token is refused, and what the schedd's log says of it."""
        before = len(self.pool.log())
        assert self.pings("READ", token) == "refused"
        return self.pool.log()[before:]

    def accepted(self, token: str | None = None, username: str = "alice") -> None:
        """The positive twin: a good token is let in as its user."""
        assert self.pings("WRITE", token or self.token(username)) == f"{username}@{self.pool.domain}"


def request(username: str = "alice", now: datetime | None = None) -> Request:
    return Request(Server("hub-1", username, "lab"), "0" * 32, now or datetime.now(UTC))


_PINGS = """
import os, sys
import htcondor2
file, schedd = os.environ["_CONDOR_SCITOKENS_FILE"], None
for line in sys.stdin:
    level, _, token = line.partition(" ")
    with open(file + ".new", "w", opener=lambda path, flags: os.open(path, flags, 0o600)) as new:
        new.write(token)
    os.replace(file + ".new", file)
    schedd = schedd or htcondor2.Collector(os.environ["CONDOR_HOST"]).query(htcondor2.AdType.Schedd)[0]
    try:
        print(htcondor2.ping(schedd, level)["MyRemoteUserName"], flush=True)
    except htcondor2.HTCondorException:
        print("refused", flush=True)
"""


class Pings:
    """A client that lives for all tests, and is asked as whom the schedd knows it. The first token is a good one."""

    def __init__(self, environment: Mapping[str, str], home: Path) -> None:
        surroundings = {"PATH": os.environ["PATH"], "CONDOR_CONFIG": "/dev/null"}
        surroundings["_CONDOR_SEC_TOKEN_DIRECTORY"] = str(home / "none")
        self._process = subprocess.Popen(
            [sys.executable, "-c", _PINGS],
            env=surroundings | dict(environment),
            cwd=home,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __call__(self, level: str, token: str) -> str:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{level} {token}\n")
        self._process.stdin.flush()
        return self._process.stdout.readline().strip()

    def end(self) -> None:
        self._process.communicate(timeout=30)


@pytest.fixture(scope="module")
def site_of_module(pool: HTCondorPool, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    site = Site(pool, tmp_path_factory.mktemp("site"))
    home = tmp_path_factory.mktemp("pings")
    site.pings = Pings(site.environment(site.token(), home), home)
    site.accepted()
    yield site
    site.pings.end()


@pytest.fixture
def site(site_of_module: Site) -> Site:
    """With its own key again, and no other."""
    site_of_module.sign_with(site_of_module.pem)
    site_of_module.trust(site_of_module.key)
    return site_of_module


@pytest.mark.parametrize("username", ["alice", "bob"])
def test_a_job_runs_as_the_account_that_the_pool_makes_of_the_user(site: Site, username: str) -> None:
    credential = site.mint(username)
    job = site.ask(credential.files["condor_token"].decode().strip(), "run", job=ID)
    assert (job["JobStatus"], job["ExitCode"]) == (4, 0), job
    assert (job["Owner"], job["User"]) == (username, f"{username}@{site.pool.domain}")
    assert (job["AuthTokenSubject"], job["AuthTokenIssuer"]) == (username, ISSUER)
    assert job["AuthTokenScopes"] == ALL.replace(" ", ",")
    assert job["AuthTokenId"] == credential.identifiers["jti"]
    assert job["out"].strip() == (username if site.pool.accounts else getpass.getuser())


def test_another_users_job_is_not_removed(site: Site) -> None:
    only_its_owner_removes_a_job(site.ask, site.token(), site.token("bob"))


@pytest.mark.parametrize("username", ["Alice", "alice@other.example", "alice smith"])
def test_a_name_that_is_no_account_is_nobody(site: Site, username: str) -> None:
    """By the map file's line: it takes neither capitals nor a name that only begins as an account's does."""
    assert f"Failed to map SCITOKENS authenticated identity '{ISSUER},{username}'" in site.refused(site.token(username))
    site.accepted()


def signed_anew(site: Site, algorithm: str, key: bytes | None) -> str:
    """A good token under another header, signed with HS256 by `key`, or not at all."""
    _, payload, _ = site.token().split(".")
    head = part(json.dumps({"alg": algorithm, "kid": site.key.kid, "typ": "JWT"}).encode())
    signed = f"{head}.{payload}"
    return f"{signed}." + ("" if key is None else part(hmac.digest(key, signed.encode(), "sha256")))


def part(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def by_the_public_key(site: Site) -> str:
    pem = site.key.private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return signed_anew(site, "HS256", pem)


def with_another_payload(site: Site) -> str:
    """Bob's token under the signature of alice's."""
    ours, theirs = site.token("alice").split("."), site.token("bob").split(".")
    return ".".join([ours[0], theirs[1], ours[2]])


def of_an_unknown_key(site: Site) -> str:
    key, pem = new_private_key()
    site.sign_with(pem)
    assert key.kid != site.key.kid
    return site.token()


def ago(seconds: int) -> datetime:
    return datetime.now(UTC) - timedelta(seconds=seconds)


#: How it is made -> what the collector says.
BAD: dict[str, tuple[Callable[[Site], str], str]] = {
    "expired": (lambda site: site.token(now=ago(65), lifetime=60), "token expired"),
    "of the future": (lambda site: site.token(now=ago(-3600)), "token expired"),
    "of another issuer": (lambda site: site.token(url="https://localhost:1/cms"), "Failed to deserialize scitoken"),
    "of another audience": (
        lambda site: site.token(audience="condor://other.example.org"),
        "'aud' claim verification failed",
    ),
    "of an unknown key": (of_an_unknown_key, "Key ID is not published by the issuer"),
    "with another payload": (with_another_payload, "invalid signature"),
    "unsigned": (lambda site: signed_anew(site, "none", None), "wrong algorithm"),
    "signed with the public key": (by_the_public_key, "wrong algorithm"),
    "for XCache's rights": (
        lambda site: site.with_scope("storage.read:/"),
        "resulted in a limited authorization which did not include this command",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_token_that_is_none_is_refused(site: Site, case: str) -> None:
    make, words = BAD[case]
    good = site.token()
    assert words in site.refused(make(site))
    site.accepted(good)


def test_without_all_rights_of_a_user_nothing_is_submitted(site: Site) -> None:
    """Modify and cancel alone are worth nothing here: HTCondor makes WRITE of the three together."""
    for scope in ("compute.read", "compute.read compute.modify compute.cancel"):
        token = site.with_scope(scope)
        assert site.pings("READ", token) == f"alice@{site.pool.domain}"
        assert site.pings("WRITE", token) == "refused"
    assert 'Received "DENIED"' in site.ask(token, "submit", job=HELD)["error"]
    site.accepted()


def test_a_user_has_no_rights_over_the_pool(site: Site) -> None:
    token = site.token()
    assert {site.pings(level, token) for level in ("ADMINISTRATOR", "DAEMON", "NEGOTIATOR")} == {"refused"}
    site.accepted(token)


def test_a_withdrawn_key_ends_its_tokens(site: Site) -> None:
    token, (other, pem) = site.token(), new_private_key()
    site.accepted(token)
    site.trust(other)
    assert "Key ID is not published by the issuer" in site.refused(token)
    site.sign_with(pem)
    site.accepted()


def test_a_daemon_without_a_good_certificate_gets_no_token(site: Site) -> None:
    """The client trusts the authority that the credential brings, and compares the name."""
    environment = site.environment(site.token(), site.directory)
    good = environment.pop("CONDOR_HOST")
    trusting = {name: value for name, value in environment.items() if name != "_CONDOR_AUTH_SSL_CLIENT_CAFILE"}
    for variables, collector in ((trusting, good), (environment, site.pool.address)):
        before = len(site.pool.log("CollectorLog"))
        answer = condor(site.pool, None, "ping", authorization="READ", environment=variables, collector=collector)
        assert set(answer) == {"error"}
        assert "SciToken is mapped" not in site.pool.log("CollectorLog")[before:]
    site.accepted()


def looked(minter: HTCondor) -> list[tuple[Status, str]]:
    """What `casa-hub check` says of the pool."""

    async def look() -> list[tuple[Status, str]]:
        site = cast("checks.Site", SimpleNamespace(minter=lambda _: minter))
        return [(finding.status, finding.problem) async for finding in checks.look(site)]

    return asyncio.run(look())


def test_the_check_tries_the_pool_with_a_token_and_a_forged_one(site: Site) -> None:
    good = [(Status.OK, "accepts this hub's tokens"), (Status.OK, "refuses a forged token")]
    assert looked(site.minter()) == good
    ((status, problem),) = looked(site.minter(audience="condor://other.example.org"))
    assert (status, problem) == (Status.ERROR, "its collector doesn't accept this hub's tokens")


def test_a_renewed_file_is_read_by_a_program_that_runs(site: Site) -> None:
    site.accepted()
    site.refused(BAD["expired"][0](site))
    site.accepted(username="bob")
