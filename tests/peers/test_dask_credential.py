"""Minted certificates with a real Dask, through a real Traefik.

Two servers run at once, each with a scheduler and a worker at an address of its own; whoever connects comes from
outside, by the server's name. Each refusal stands beside a positive twin.
"""

from __future__ import annotations

import base64
import json
import os
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path, PurePosixPath

import pytest
from traitlets.config import Config

from casa_hub.credentials.base import Credential, Request
from casa_hub.credentials.dask import Dask
from casa_hub.delivery import layout
from casa_hub.delivery.local.route_files import RouteFiles
from casa_hub.delivery.traefik import TraefikRoutes
from casa_hub.demo.names import HostNames
from casa_hub.demo.processes import Process, free_loopback_address, minimal_environment, read_log
from casa_hub.demo.traefik import DASK_PORT, DASK_WORKER_PORT, Traefik
from casa_hub.naming import Server

START = "0123456789abcdef" * 2
CLIENT = """
import os, sys
from distributed import Client
from distributed.security import Security

host, ca, certificate = sys.argv[1:]
security = Security(require_encryption=True, tls_ca_file=ca, tls_client_cert=certificate, tls_client_key=certificate)
with Client(f"tls://{host}:8786", security=security, timeout="30s") as client:
    print(client.submit(lambda: os.environ["WHOSE"]).result(30))
"""


@dataclass
class Running:
    """A server's part of Dask."""

    server: Server
    credential: Credential
    directory: Path
    host: str
    worker: Process

    def file(self, name: str) -> str:
        return str(self.directory / name)


class Site:
    """A hub's minter, a Traefik, and what runs behind it."""

    def __init__(self, directory: Path, traefik: Traefik, names: HostNames) -> None:
        self.directory, self.traefik, self.names = directory, traefik, names
        secret = directory / "dask.secret"
        secret.write_bytes(base64.b64encode(os.urandom(48)) + b"\n")
        secret.chmod(0o400)
        self.dask = Dask(secret_file=str(secret), domain="localhost")
        settings = TraefikRoutes(config=Config(TraefikRoutes={"directory": str(traefik.routes)}))
        self.routes = RouteFiles(settings)

    def mint(self, server: Server, start_id: str = START, **more: dict[str, str]) -> Credential:
        return self.dask.mint(Request(server, start_id, datetime.now(UTC), **more))  # type: ignore[arg-type]

    def start(self, server: Server, stack: ExitStack) -> Running:
        """Scheduler and worker, with certificates as the command lines of the analysis images name them."""
        directory = self.directory / server.slug
        directory.mkdir()
        credential = self.mint(server)
        layout.write_set(directory, credential.files, datetime.now(UTC))
        address = free_loopback_address(8786, 8788)
        self.routes.publish(server, START, self.dask.routes(server), address)
        environment = dict(self.dask.environment(server, PurePosixPath(directory)))
        certificates = f"{environment['CERT_DIR']}/..data"
        tls = ["--tls-ca-file", f"{certificates}/ca.pem"]
        tls += ["--tls-cert", f"{certificates}/hostcert.pem", "--tls-key", f"{certificates}/hostcert.pem"]
        commands = {
            "scheduler": ["--host", f"tls://{address}:8786", "--no-dashboard"],
            "worker": [
                f"tls://{environment['HOST_IP']}:8786",
                # No contact address by name: a scheduler resolves it and connects to the bare address, so without SNI.
                *("--listen-address", f"tls://{address}:8788"),
                *("--nthreads", "1", "--no-nanny", "--no-dashboard", "--local-directory", str(directory / "scratch")),
            ],
        }
        for role, arguments in commands.items():
            command = [sys.executable, "-m", "dask", role, *arguments, *tls]
            log = directory / f"{role}.log"
            more = {**environment, **self.names.environment, "WHOSE": server.slug}
            process = Process(role, command, log=log, env=minimal_environment(**more), cwd=directory)
            stack.enter_context(process)
        return Running(server, credential, directory, environment["HOST_IP"], worker=process)

    def client(self, host: str, ca: str, certificate: str) -> subprocess.CompletedProcess[str]:
        """What a real Dask client outside says."""
        return subprocess.run(
            [sys.executable, "-c", CLIENT, host, ca, certificate],
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
            env=minimal_environment(**self.names.environment),
        )

    def dial(self, host: str, context: ssl.SSLContext, port: int = DASK_PORT) -> str:
        """What a TLS client hears of `host` at Traefik: "welcome", or the refusal."""
        with socket.create_connection((self.traefik.address, port), 20) as connection:
            try:
                with context.wrap_socket(connection, server_hostname=host) as tls:
                    # Dask speaks first, to whom it accepts. TLS 1.3 tells a client of its refusal only here.
                    return "welcome" if tls.recv(1) else "closed"
            except ssl.SSLCertVerificationError as error:
                return f"the client refused: {error.verify_message}"
            except ssl.SSLError as error:
                return f"the server refused: {error.reason}"


def strict(ca: str, certificate: str | None) -> ssl.SSLContext:
    """What ``ssl.create_default_context()`` is from Python 3.13 on."""
    context = ssl.create_default_context(cafile=ca)
    context.verify_flags |= ssl.VERIFY_X509_STRICT | ssl.VERIFY_X509_PARTIAL_CHAIN
    if certificate:
        context.load_cert_chain(certificate)
    return context


@pytest.fixture(scope="module")
def site(traefik: Traefik, names: HostNames, tmp_path_factory: pytest.TempPathFactory) -> Site:
    return Site(tmp_path_factory.mktemp("dask"), traefik, names)


@pytest.fixture(scope="module")
def servers(site: Site) -> Iterator[tuple[Running, Running]]:
    users = Server("", "alice"), Server("", "bob", "lab")
    site.names.replace({route.host: site.traefik.address for user in users for route in site.dask.routes(user)})
    with ExitStack() as stack:
        running = [site.start(user, stack) for user in users]
        for one in running:  # it says so once the scheduler has accepted it, through Traefik
            log = one.directory / "worker.log"
            one.worker.wait_until("the scheduler knows it", lambda log=log: "Registered to:" in read_log(log), 60)
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
