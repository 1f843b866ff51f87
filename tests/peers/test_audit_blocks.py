"""What the audit says is enough to block a credential where it is used; the remedies of docs/operations.md."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from traitlets.config import Config

from casa_hub.audit import LOGGER, PREFIX
from casa_hub.credentials.base import Request
from casa_hub.credentials.dask import Dask
from casa_hub.demo.htcondor import HTCondorPool
from casa_hub.demo.xrootd import XCache, XRootDOrigin, make_key_file, programs
from casa_hub.facility import Facility, Minted
from casa_hub.naming import Server
from tests.support.peers import condor, http, require, root

START = "0123456789abcdef" * 2


class Hub:
    """A facility, and the lines of its audit."""

    def __init__(self, caplog: pytest.LogCaptureFixture, **sections: dict[str, Any]) -> None:
        self._caplog = caplog
        config = Config({"Facility": {"credentials": [name.lower() for name in sections]}, **sections})
        self.facility = Facility(config=config)

    def give(self, username: str, minted: Minted | None = None) -> Minted:
        """What a server is given at its start, or when all is renewed."""
        request = Request(Server("hub", username), START, datetime.now(UTC))
        if minted is None:
            return self.facility.mint(request)
        return self.facility.renew(request, list(minted.credentials), minted.record, force=True)

    def told(self) -> list[dict[str, Any]]:
        """The audit, as whoever collects the log reads it."""
        lines = [record.getMessage() for record in self._caplog.records if record.name == LOGGER]
        return [json.loads(line.removeprefix(PREFIX)) for line in lines]


@pytest.fixture(autouse=True)
def _audit_is_heard(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever hub of another test has been the logger's parent."""
    caplog.set_level(logging.INFO, logger=LOGGER)
    monkeypatch.setattr(logging.getLogger(LOGGER), "parent", logging.root)


def test_tokens_of_a_user_are_blocked_at_the_pool_by_what_the_audit_told(
    pool: HTCondorPool, caplog: pytest.LogCaptureFixture
) -> None:
    """Also the one that was replaced and has not expired; and only those."""
    settings = {"key_file": str(pool.key_file()), "trust_domain": pool.domain, "uid_domain": pool.domain}
    hub = Hub(caplog, HTCondor={**settings, "subject": "{username}"})

    def accepted(minted: Minted) -> bool:
        token = minted.files["condor_token"].decode().strip()
        return "error" not in condor(pool, token, "ping", authorization="WRITE")

    first, bobs = hub.give("alice"), hub.give("bob")
    second = hub.give("alice", first)
    assert accepted(first)
    assert accepted(second)
    told = [event["identifiers"]["jti"] for event in hub.told() if event["username"] == "alice"]
    assert len(told) == 2

    pool.reconfigure(f'SEC_TOKEN_REVOCATION_EXPR = stringListMember(jti, "{",".join(told)}")\n')
    try:
        assert not accepted(first)
        assert not accepted(second)
        assert accepted(bobs)
    finally:
        pool.reconfigure("")
    assert accepted(second)


@pytest.fixture
def own_xcache(tmp_path_factory: pytest.TempPathFactory, peers_directory: Path) -> Callable[[Path], XCache]:
    """An XCache of this test's own, whose key may be replaced."""
    tree = require(programs)
    origin = XRootDOrigin(tree, peers_directory / "own-origin")
    origin.add("/store/f", b"content\n")

    def make(key_file: Path) -> XCache:
        directory = peers_directory / f"own-xcache-{len(list(peers_directory.glob('own-xcache-*')))}"
        return XCache(tree, directory, origin=origin, key_file=key_file, site="T2_XX_Own")

    with origin:
        yield make


def test_a_new_key_refuses_all_macaroons_at_once_and_renewed_ones_work(
    own_xcache: Callable[[Path], XCache], caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    """XRootD knows no list of revoked macaroons, and one key: this is how a copy of one is blocked before it expires.

    In the order of docs/operations.md: first the XCache, then the hub's key file, then renew all.
    """
    key_file = make_key_file(tmp_path / "key")
    hub = Hub(caplog, XCache={"key_file": str(key_file), "site_name": "T2_XX_Own"})
    first = hub.give("alice")

    def read(server: XCache, minted: Minted) -> set[int]:
        token = minted.files["xcache_token"].decode()
        answers = [http(server, "/store/f", token, scheme="https")]
        answers += [root(server, "/store/f", token, by=way) for way in ("authz", "ztn")]
        assert {answer.content for answer in answers if answer.status == 200} <= {b"content\n"}
        return {answer.status for answer in answers}

    with own_xcache(key_file) as server:
        assert read(server, first) == {200}
        # Whose macaroon it was that is seen there is told by the audit.
        [event] = hub.told()
        assert f"verification successful; ID {event['identifiers']['identifier']}" in server.log.read_text()

    make_key_file(tmp_path / "new").replace(key_file)
    with own_xcache(key_file) as server:
        assert read(server, first) <= {401, 403}
        assert read(server, hub.give("alice", first)) == {200}


def test_a_dask_authority_is_told_and_ends_with_its_server(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    """Nothing is to be blocked: whoever has a certificate of a server that has stopped finds no server with that CA."""
    secret = tmp_path / "secret"
    secret.write_bytes(b"c" * 64 + b"\n")
    hub = Hub(caplog, Dask={"secret_file": str(secret), "domain": "example.org"})
    hub.give("alice")
    [event] = hub.told()
    minter = hub.facility.minters["dask"]
    assert isinstance(minter, Dask)
    other = minter.mint(Request(Server("hub", "alice"), "f" * 32, datetime.now(UTC)))
    assert event["identifiers"]["ca"] != other.identifiers["ca"]
