"""Minted certificates with a real Dask, through a real Traefik.

Two servers run at once, each with a scheduler and a worker at an address of its own; whoever connects comes from
outside, by the server's name. Each refusal stands beside a positive twin.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from casa_hub.credentials.base import Request
from casa_hub.demo.names import HostNames
from casa_hub.demo.traefik import DASK_WORKER_PORT, Traefik
from casa_hub.naming import Server
from tests.support.dask import START, Running, Site, strict


@pytest.fixture(scope="module")
def site(traefik: Traefik, names: HostNames, tmp_path_factory: pytest.TempPathFactory) -> Site:
    return Site(tmp_path_factory.mktemp("dask"), traefik, names)


@pytest.fixture(scope="module")
def servers(site: Site) -> Iterator[tuple[Running, Running]]:
    users = Server("", "alice"), Server("", "bob", "lab")
    site.names.replace({route.host: site.traefik.address for user in users for route in site.dask.routes(user)})
    with ExitStack() as stack:
        running = [site.start(user, stack) for user in users]
        for one in running:  # through Traefik
            one.wait_for(one.server.slug)
        yield running[0], running[1]
    for user in users:
        site.routes.retract(user, START)


def test_a_client_outside_reaches_its_own_server(site: Site, servers: tuple[Running, Running]) -> None:
    """By the certificate for laptops, and by the one that today's images use for every role; two servers at once."""
    for mine in servers:
        for certificate in ("usercert.pem", "hostcert.pem"):
            ran = site.client(mine.host, mine.file("ca.pem"), mine.file(certificate))
            assert ran.stdout == f"{mine.server.slug}\n", ran.stderr


def test_another_servers_certificate_is_refused(site: Site, servers: tuple[Running, Running]) -> None:
    for mine, theirs in (servers, servers[::-1]):
        for certificate in ("usercert.pem", "hostcert.pem"):
            # Our client knows them for strangers ...
            answer = site.dial(theirs.host, strict(mine.file("ca.pem"), mine.file(certificate)))
            assert answer.startswith("the client refused"), answer
            # ... and if it didn't care, they would know us.
            answer = site.dial(theirs.host, strict(theirs.file("ca.pem"), mine.file(certificate)))
            assert answer == "the server refused: TLSV1_ALERT_UNKNOWN_CA"
            assert site.dial(theirs.host, strict(theirs.file("ca.pem"), theirs.file(certificate))) == "welcome"


def test_dasks_own_client_is_refused_with_another_servers_certificate(
    site: Site, servers: tuple[Running, Running]
) -> None:
    """Dask doesn't compare host names: what keeps servers apart is their CA alone."""
    mine, theirs = servers
    for ca in (mine, theirs):
        ran = site.client(theirs.host, ca.file("ca.pem"), mine.file("hostcert.pem"))
        assert ran.returncode != 0
        assert ran.stdout == ""


def test_a_client_without_a_certificate_is_refused(site: Site, servers: tuple[Running, Running]) -> None:
    mine = servers[0]
    answer = site.dial(mine.host, strict(mine.file("ca.pem"), None))
    assert answer == "the server refused: TLSV13_ALERT_CERTIFICATE_REQUIRED"
    assert site.dial(mine.host, strict(mine.file("ca.pem"), mine.file("usercert.pem"))) == "welcome"


def test_the_certificate_of_an_earlier_start_is_refused(
    site: Site, servers: tuple[Running, Running], tmp_path: Path
) -> None:
    mine = servers[0]
    earlier = tmp_path / "usercert.pem"
    earlier.write_bytes(site.mint(mine.server, "f" * 32).files["usercert.pem"])
    answer = site.dial(mine.host, strict(mine.file("ca.pem"), str(earlier)))
    assert answer == "the server refused: TLSV1_ALERT_UNKNOWN_CA"
    assert site.dial(mine.host, strict(mine.file("ca.pem"), mine.file("usercert.pem"))) == "welcome"


def test_a_certificate_made_after_a_restart_of_the_hub_is_accepted(
    site: Site, servers: tuple[Running, Running], tmp_path: Path
) -> None:
    """The hub has its secret and what the record of the start says; the scheduler runs on with what it read."""
    mine = servers[0]
    state = json.loads(json.dumps(dict(mine.credential.state)))
    again = site.mint(mine.server, state=state)
    for name, content in again.files.items():
        (tmp_path / name).write_bytes(content)
    assert again.files["usercert.pem"] != mine.credential.files["usercert.pem"]
    ran = site.client(mine.host, str(tmp_path / "ca.pem"), str(tmp_path / "usercert.pem"))
    assert ran.stdout == f"{mine.server.slug}\n", ran.stderr
    assert site.dial(mine.host, strict(str(tmp_path / "ca.pem"), str(tmp_path / "hostcert.pem"))) == "welcome"


def test_an_expired_certificate_is_refused(site: Site, servers: tuple[Running, Running], tmp_path: Path) -> None:
    """Same CA key, but a life that is over: the scheduler looks at it."""
    mine = servers[0]
    state = dict(mine.credential.state)
    past = datetime.now(UTC) - timedelta(days=2)
    state["not_before"] = str(int(past.timestamp()))
    state["not_after"] = str(int((past + timedelta(days=1)).timestamp()))
    expired = site.dask.mint(Request(mine.server, START, past + timedelta(hours=1), state=state))
    certificate = tmp_path / "usercert.pem"
    certificate.write_bytes(expired.files["usercert.pem"])
    answer = site.dial(mine.host, strict(mine.file("ca.pem"), str(certificate)))
    assert answer == "the server refused: SSLV3_ALERT_CERTIFICATE_EXPIRED"
    assert site.dial(mine.host, strict(mine.file("ca.pem"), mine.file("usercert.pem"))) == "welcome"


def test_strict_verification_passes_at_scheduler_and_worker(site: Site, servers: tuple[Running, Running]) -> None:
    """Dask doesn't compare host names; whoever else comes (a browser, curl, Python) does."""
    for mine in servers:
        scheduler, worker = site.dask.routes(mine.server)
        context = strict(mine.file("ca.pem"), mine.file("usercert.pem"))
        assert context.check_hostname
        assert site.dial(scheduler.host, context) == "welcome"
        assert site.dial(worker.host, context, DASK_WORKER_PORT) == "welcome"
