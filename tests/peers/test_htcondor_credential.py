"""Minted IDTOKENs at a real HTCondor pool. Each refusal stands beside a positive twin."""

from __future__ import annotations

import getpass
import os
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path, PurePosixPath
from typing import Any

import pytest

from casa_hub.credentials.base import Credential, Request
from casa_hub.credentials.htcondor import HTCondor
from casa_hub.demo.htcondor import HTCondorPool
from casa_hub.naming import Server
from tests.support.peers import HELD, condor, only_its_owner_removes_a_job

ID = {"executable": "/usr/bin/id", "arguments": "-un"}


class Site:
    """A pool, and a hub that has its keys."""

    def __init__(self, pool: HTCondorPool, directory: Path) -> None:
        self.pool = pool
        self.directory = directory

    def minter(self, **settings: Any) -> HTCondor:
        key_id = settings.get("key_id", "hub")
        return HTCondor(
            **{
                "key_file": str(self.pool.key_file(key_id)),
                "key_id": key_id,
                "trust_domain": self.pool.domain,
                "uid_domain": self.pool.domain,
                "subject": "{username}",
                "collector": self.pool.address,
            }
            | settings
        )

    def mint(self, username: str = "alice", *, now: datetime | None = None, **settings: Any) -> Credential:
        request = Request(Server("hub-1", username, "lab"), "0" * 32, now or datetime.now(UTC))
        return self.minter(**settings).mint(request)

    def token(self, username: str = "alice", **how: Any) -> str:
        return token_of(self.mint(username, **how))

    def ask(self, token: str, operation: str, **arguments: Any) -> dict[str, Any]:
        return condor(self.pool, token, operation, **arguments)

    def accepted(self, token: str | None = None, username: str = "alice") -> None:
        """The positive twin: a good token is let in as its user."""
        answer = self.ask(token or self.token(username), "ping", authorization="WRITE")
        assert answer == {
            "Authentication": "YES",
            "AuthMethods": "IDTOKENS",
            "AuthorizationSucceeded": True,
            "MyRemoteUserName": f"{username}@{self.pool.domain}",
        }


def token_of(credential: Credential) -> str:
    return credential.files["condor_token"].decode().strip()


@pytest.fixture
def site(pool: HTCondorPool, tmp_path: Path) -> Site:
    return Site(pool, tmp_path)


@pytest.mark.parametrize("key_id", ["POOL", "hub"])
def test_the_pool_knows_the_user_by_the_token(site: Site, key_id: str) -> None:
    site.accepted(site.token(key_id=key_id))


def test_the_token_is_found_where_the_environment_says(site: Site) -> None:
    """As a server has it: nothing is passed but the environment."""
    for name, content in site.mint().files.items():
        file = site.directory / name
        file.parent.mkdir(exist_ok=True)
        file.touch(mode=0o600)
        file.write_bytes(content)
    environment = site.minter().environment(Server("", "alice"), PurePosixPath(site.directory))
    assert environment["CONDOR_HOST"] == site.pool.address
    answer = condor(site.pool, None, "ping", authorization="WRITE", environment=environment)
    assert answer["MyRemoteUserName"] == f"alice@{site.pool.domain}"
    assert "error" in condor(site.pool, None, "ping", authorization="WRITE")


@pytest.mark.parametrize("username", ["alice", "bob"])
def test_a_job_runs_and_its_output_returns(site: Site, username: str) -> None:
    credential = site.mint(username)
    job = site.ask(token_of(credential), "run", job=ID)
    assert (job["JobStatus"], job["ExitCode"]) == (4, 0), job
    assert (job["Owner"], job["User"]) == (username, f"{username}@{site.pool.domain}")
    assert job["AuthTokenSubject"] == f"{username}@{site.pool.domain}"
    assert job["AuthTokenIssuer"] == site.pool.domain
    assert job["AuthTokenScopes"] == "condor:/READ,condor:/WRITE"
    assert job["AuthTokenId"] == credential.identifiers["jti"]
    # Without root there are no accounts to run under: everything is the pool's.
    assert job["out"].strip() == (username if site.pool.accounts else getpass.getuser())


def test_an_account_from_the_map(site: Site) -> None:
    token = site.token("Älice", subject="", subject_map={"Älice": "carol"})
    job = site.ask(token, "run", job=ID)
    assert (job["Owner"], job["AuthTokenSubject"]) == ("carol", f"carol@{site.pool.domain}")
    assert job["out"].strip() == ("carol" if site.pool.accounts else getpass.getuser())


def test_jobs_of_a_shared_account_are_counted_by_user(site: Site) -> None:
    minter = site.minter(subject="carol", accounting_group="group_cms")
    for username in ("alice", "bob"):
        server = Server("", username)
        credential = minter.mint(Request(server, "0" * 32, datetime.now(UTC)))
        environment = {
            name: value
            for name, value in minter.environment(server, PurePosixPath("/")).items()
            if name != "_CONDOR_SEC_TOKEN_DIRECTORY"
        }
        token = token_of(credential)
        job = site.ask(token, "submit", job=HELD, environment=environment)
        assert job["User"] == f"carol@{site.pool.domain}"
        mine = f"ClusterId == {job['ClusterId']}"
        counted = f'{mine} && AccountingGroup == "group_cms.{username}"'
        assert len(site.ask(token, "query", constraint=counted)["jobs"]) == 1
        # Who brings a group of their own keeps it.
        own = HELD | {"+AccountingGroup": '"group_own.me"'}
        job = site.ask(token, "submit", job=own, environment=environment)
        counted = f'ClusterId == {job["ClusterId"]} && AccountingGroup == "group_own.me"'
        assert len(site.ask(token, "query", constraint=counted)["jobs"]) == 1
        site.ask(token, "remove", constraint="true")


def test_another_users_job_is_not_removed(site: Site) -> None:
    only_its_owner_removes_a_job(site.ask, site.token(), site.token("bob"))


def expired(site: Site) -> str:
    return site.token(now=datetime.now(UTC) - timedelta(seconds=61), lifetime=60)


def other_key(site: Site, **settings: Any) -> str:
    file = site.directory / "other-key"
    file.write_bytes(os.urandom(64))
    return site.token(key_file=str(file), **settings)


def with_another_payload(site: Site) -> str:
    """Bob's token under the signature of alice's."""
    ours, theirs = site.token("alice").split("."), site.token("bob").split(".")
    return ".".join([ours[0], theirs[1], ours[2]])


BAD: dict[str, Callable[[Site], str]] = {
    "expired": expired,
    "of another key": other_key,
    "of another of the pool's keys": lambda site: site.token(key_file=str(site.pool.key_file("POOL"))),
    "of a key that the pool doesn't have": lambda site: other_key(site, key_id="none"),
    "of another trust domain": lambda site: site.token(trust_domain="other.example"),
    "of the trust domain in another case": lambda site: site.token(trust_domain=site.pool.domain.upper()),
    "with another payload": with_another_payload,
    "empty": lambda _: "",
}


@pytest.mark.parametrize("case", BAD)
def test_a_token_that_is_none_is_refused(site: Site, case: str) -> None:
    token = BAD[case](site)
    assert set(site.ask(token, "ping", authorization="WRITE")) == {"error"}
    assert set(site.ask(token, "submit", job=HELD)) == {"error"}
    site.accepted()


def test_expiry_is_the_pools_word(site: Site) -> None:
    """That it is refused for its age, and not because it is badly made."""
    before = len(site.pool.log("CollectorLog"))
    site.ask(expired(site), "ping", authorization="WRITE")
    assert "token has been expired for" in site.pool.log("CollectorLog")[before:]


def test_a_level_that_is_not_in_the_token_is_refused(site: Site) -> None:
    reading = site.token(scopes=["READ"])
    assert site.ask(reading, "ping", authorization="READ")["AuthorizationSucceeded"]
    assert "error" in site.ask(reading, "ping", authorization="WRITE")
    assert 'Received "DENIED"' in site.ask(reading, "submit", job=HELD)["error"]
    site.accepted()


@pytest.mark.parametrize("level", ["ADMINISTRATOR", "DAEMON", "NEGOTIATOR", "ADVERTISE_STARTD", "CONFIG"])
def test_a_user_has_no_rights_over_the_pool(site: Site, level: str) -> None:
    token = site.token()
    assert "error" in site.ask(token, "ping", authorization=level)
    site.accepted(token)


def test_a_token_is_revoked_by_its_identifier(site: Site) -> None:
    """The one that the hub tells an administrator; the user's other servers go on."""
    leaked = site.mint()
    site.accepted(token_of(leaked))
    site.pool.reconfigure(f'SEC_TOKEN_REVOCATION_EXPR = jti =?= "{leaked.identifiers["jti"]}"\n')
    try:
        assert "error" in site.ask(token_of(leaked), "ping", authorization="WRITE")
        site.accepted()
    finally:
        site.pool.reconfigure("")
    site.accepted(token_of(leaked))
