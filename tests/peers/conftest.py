"""The real servers, started once for all tests that want them; as root and as an ordinary user.

A machine that can't have one (no apt, no network): its tests are skipped with the reason, or fail when the environment
has CASA_HUB_REQUIRE_PEERS=1. Which versions: CASA_HUB_PEER_SUITES=bookworm,trixie,sid (default trixie) repeats
the tests with XRootD 5.5, 5.8, 6 and HTCondor 23.9 (trixie), 25 (sid). Programs are unpacked to CASA_HUB_CACHE, once.

Fixtures, all of session scope:

`xcache`  casa_hub.demo.xrootd.XCache with an origin behind it. `.key_file` (base64) and `.site` are what a macaroon is
          made with; `.origin.add("/store/x", b"...")` makes a file; `.origin.stop()` and `.start()` show what is
          cached, as does `.cached("/store/x").exists()`. Exported: /store and /other. Files there: FILES below.
          It takes tokens of `tests.support.peers.ISSUER` for `.audience`, too, by keys that it is told by `.trust`.
          Ask it with `tests.support.peers.http` and `root`; the answer's status is 200 or 403 for both.
`pool`    casa_hub.demo.htcondor.HTCondorPool. `.key_file("POOL")` and `.key_file("hub")` (scrambled), `.domain` and
          `.address` are what a token is made with and for; `.tool("condor_token_create", ...)` runs a tool as
          administrator; `.reconfigure("SEC_TOKEN_REVOCATION_EXPR = ...")` and `.reconfigure("")`; `.log("SchedLog")`.
          `.accounts` are Unix accounts alice, bob, carol when run as root, else empty (jobs run as this user).
          It takes tokens of `tests.support.peers.ISSUER`, too, by keys that it is told by `.issuer_tokens.trust`;
          clients name it localhost then.
          Ask it with `tests.support.peers.condor`.
`traefik` casa_hub.demo.traefik.Traefik with entry points dask (8786) and daskworker (8788) at `.address`; put route
          files into `.routes`.
`keycloak` tests.support.keycloak.Keycloak: `.realm()` makes one with accounts and clients of its own.
`names`   casa_hub.demo.names.HostNames: a program started with `.environment` resolves what `.replace(...)` said.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from casa_hub.demo import htcondor, xrootd
from casa_hub.demo.certificates import make_host_certificate
from casa_hub.demo.htcondor import HTCondorPool
from casa_hub.demo.htcondor_tokens import IssuerTokens
from casa_hub.demo.names import HostNames, facility_address
from casa_hub.demo.traefik import DASK_PORT, DASK_WORKER_PORT, Traefik
from casa_hub.demo.xrootd import XCache, XRootDOrigin
from tests.support import keycloak as keycloak_peer
from tests.support.chromium import chromium, open_tab  # noqa: F401 - fixtures
from tests.support.keycloak import Keycloak
from tests.support.peers import ISSUER, require, suites

FILES = {
    "/store/user/al/file": b"of al\n",
    "/store/user/alice/file": b"of alice\n",
    "/store/mc/events": b"events\n" * 20_000,
    "/other/file": b"not in the store\n",
}


@pytest.fixture(scope="session")
def peers_directory() -> Iterator[Path]:
    """Not pytest's own: that is 0700, and servers started by root change to another user."""
    directory = Path(tempfile.mkdtemp(prefix="casa-peers-"))
    directory.chmod(0o755)
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(scope="session", params=suites("bookworm", "trixie", "sid"))
def xcache(request: pytest.FixtureRequest, peers_directory: Path) -> Iterator[XCache]:
    tree = require(lambda: xrootd.programs(request.param))
    directory = peers_directory / f"xrootd-{request.param}"
    directory.mkdir()
    key_file = xrootd.make_key_file(directory / "key")
    with XRootDOrigin(tree, directory / "origin") as origin:
        for path, content in FILES.items():
            origin.add(path, content)
        xcache = XCache(tree, directory / "xcache", origin=origin, key_file=key_file, site="T2_XX_Test", issuer=ISSUER)
        with xcache:
            yield xcache


@pytest.fixture(scope="session", params=suites("trixie", "sid") or ["trixie"])
def pool(request: pytest.FixtureRequest, peers_directory: Path) -> Iterator[HTCondorPool]:
    tree = require(lambda: htcondor.programs(request.param))
    directory = peers_directory / f"condor-{request.param}"
    accounts = ("alice", "bob", "carol")
    certificate = make_host_certificate(peers_directory / f"condor-{request.param}-tls")
    tokens = IssuerTokens(ISSUER, "condor://pool.test", certificate, peers_directory / f"condor-{request.param}-issuer")
    running = HTCondorPool(
        tree, directory, domain="pool.test", key_ids=("POOL", "hub"), accounts=accounts, issuer_tokens=tokens
    )
    require(running.start)
    yield running
    running.stop()


@pytest.fixture(scope="session")
def traefik(peers_directory: Path) -> Iterator[Traefik]:
    directory = peers_directory / "traefik"
    address = facility_address(DASK_PORT, DASK_WORKER_PORT)
    with require(lambda: Traefik(directory, routes=directory / "routes", address=address)) as server:
        yield server


@pytest.fixture(scope="session")
def names(peers_directory: Path, traefik: Traefik) -> HostNames:
    host_names = HostNames(peers_directory / "hosts", traefik.address)
    require(host_names.prepare)
    return host_names


@pytest.fixture(scope="session")
def keycloak() -> Iterator[Keycloak]:
    """Ends with this process, however that ends. Tests make a realm each, or users and clients within one."""
    home = require(keycloak_peer.distribution)
    with tempfile.TemporaryDirectory(prefix="casa-keycloak-") as directory, Keycloak(home, Path(directory)) as running:
        yield running
