"""A server's Dask scheduler and workers with minted certificates, behind a real Traefik, and clients outside."""

from __future__ import annotations

import base64
import os
import socket
import ssl
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath

from traitlets.config import Config

from casa_hub.credentials.base import Credential, Request
from casa_hub.credentials.dask import Dask
from casa_hub.delivery import file_layout
from casa_hub.delivery.local.route_files import RouteFiles
from casa_hub.delivery.traefik import TraefikRoutes
from casa_hub.demo.names import HostNames
from casa_hub.demo.processes import Process, free_loopback_address, minimal_environment, read_log
from casa_hub.demo.traefik import DASK_PORT, Traefik
from casa_hub.naming import Server

START = "0123456789abcdef" * 2
CLIENT = """
import os, sys
from distributed import Client
from distributed.security import Security

host, ca, certificate = sys.argv[1:]
security = Security(require_encryption=True, tls_ca_file=ca, tls_client_cert=certificate, tls_client_key=certificate)
with Client(f"tls://{host}:8786", security=security, timeout="60s") as client:
    print(client.submit(lambda: os.environ["WHOSE"]).result(60))
"""

#: Each worker named does a task of its own, and then one that needs the others' results, which it gets from them.
TOGETHER = """
import os, sys
from distributed import Client
from distributed.security import Security

host, ca, certificate, *workers = sys.argv[1:]
security = Security(require_encryption=True, tls_ca_file=ca, tls_client_cert=certificate, tls_client_key=certificate)

def whose(*others):
    return os.environ["WHOSE"] + "".join(f"<{other}>" for other in others)

with Client(f"tls://{host}:8786", security=security, timeout="60s") as client:
    client.wait_for_workers(len(workers), timeout=60)
    at = {name: client.submit(whose, workers=[name], pure=False) for name in workers}
    for name in workers:
        others = [at[other] for other in workers if other != name]
        print(client.submit(whose, *others, workers=[name], pure=False).result(60))
"""


def expected(workers: Sequence[str]) -> list[str]:
    return [name + "".join(f"<{other}>" for other in workers if other != name) for name in workers]


@dataclass
class Running:
    """A server's part of Dask."""

    server: Server
    credential: Credential
    directory: Path
    host: str
    #: By name; the first one is called as the server.
    workers: dict[str, Process] = field(default_factory=dict)

    def file(self, name: str) -> str:
        return str(self.directory / name)

    def wait_for(self, name: str) -> None:
        """Until a worker says that the scheduler has accepted it."""
        log = self.directory / f"{name}.log"
        self.workers[name].wait_until("the scheduler knows it", lambda: "Registered to:" in read_log(log), 120)


class Site:
    """A hub's minter, a Traefik, and what runs behind it."""

    def __init__(self, directory: Path, traefik: Traefik, names: HostNames) -> None:
        self.directory, self.traefik, self.names = directory, traefik, names
        #: Secrets, a line each; the first one is for new starts.
        self.secret = directory / "dask.secret"
        self.secret.write_bytes(base64.b64encode(os.urandom(48)) + b"\n")
        self.secret.chmod(0o600)
        self.dask = Dask(secret_file=str(self.secret), domain="localhost")
        settings = TraefikRoutes(config=Config(TraefikRoutes={"directory": str(traefik.routes)}))
        self.routes = RouteFiles(settings)

    def mint(self, server: Server, start_id: str = START, **more: dict[str, str]) -> Credential:
        return self.dask.mint(Request(server, start_id, datetime.now(UTC), **more))  # type: ignore[arg-type]

    def start(self, server: Server, stack: ExitStack) -> Running:
        """Scheduler and worker, with certificates as the command lines of the analysis images name them."""
        directory = self.directory / server.slug
        directory.mkdir()
        credential = self.mint(server)
        file_layout.write_set(directory, credential.files, datetime.now(UTC))
        address = free_loopback_address(8786, 8788)
        self.routes.publish(server, START, self.dask.routes(server), address)
        running = Running(server, credential, directory, self.dask.routes(server)[0].host)
        scheduler = ["scheduler", "--host", f"tls://{address}:8786", "--no-dashboard"]
        stack.enter_context(self._process(running, "scheduler", scheduler))
        self.join(running, server.slug, stack, address=address)
        return running

    def join(self, running: Running, name: str, stack: ExitStack, *, address: str = "") -> Process:
        """A worker with the certificates that the files hold now; jobs there find its name in ``$WHOSE``."""
        address = address or free_loopback_address(8788)
        arguments = ["worker", f"tls://{running.host}:8786", "--name", name]
        # No contact address by name: a scheduler resolves it and connects to the bare address, so without SNI.
        arguments += ["--listen-address", f"tls://{address}:8788", "--nthreads", "1", "--no-nanny", "--no-dashboard"]
        arguments += ["--local-directory", str(running.directory / f"scratch-{name}")]
        running.workers[name] = stack.enter_context(self._process(running, name, arguments))
        return running.workers[name]

    def _process(self, running: Running, name: str, arguments: list[str]) -> Process:
        environment = dict(self.dask.environment(running.server, PurePosixPath(running.directory)))
        environment |= self.names.environment
        certificates = Path(environment["CERT_DIR"]) / "..data"
        return dask_process(name, arguments, running.directory, certificates, environment)

    def client(
        self, host: str, ca: str, certificate: str, *arguments: str, program: str = CLIENT
    ) -> subprocess.CompletedProcess[str]:
        """What a real Dask client outside says."""
        return subprocess.run(
            [sys.executable, "-c", program, host, ca, certificate, *arguments],
            capture_output=True,
            text=True,
            check=False,
            timeout=240,
            env=minimal_environment(**self.names.environment),
        )

    def dial(self, host: str, context: ssl.SSLContext, port: int = DASK_PORT) -> str:
        """As `dial`, at this Traefik."""
        return dial(self.traefik.address, port, host, context)


def dial(address: str, port: int, host: str, context: ssl.SSLContext) -> str:
    """What a TLS client hears of `host` at Traefik: "welcome", or the refusal."""
    with socket.create_connection((address, port), 60) as connection:
        try:
            with context.wrap_socket(connection, server_hostname=host) as tls:
                # Dask speaks first, to whom it accepts. TLS 1.3 tells a client of its refusal only here.
                return "welcome" if tls.recv(1) else "closed"
        except ssl.SSLCertVerificationError as error:
            return f"the client refused: {error.verify_message}"
        except ssl.SSLError as error:
            return f"the server refused: {error.reason}"


def dask_process(
    name: str, arguments: Sequence[str], directory: Path, certificates: Path, environment: Mapping[str, str]
) -> Process:
    """``dask ARGUMENTS`` as the analysis images run it; jobs at a worker find its name in ``$WHOSE``.

    Args:
        name: of the process and, in `directory`, of its log.
        arguments: of ``dask``.
        directory: where it works.
        certificates: directory of ``ca.pem`` and ``hostcert.pem``.
        environment: more variables.
    """
    tls = ["--tls-ca-file", f"{certificates}/ca.pem"]
    tls += ["--tls-cert", f"{certificates}/hostcert.pem", "--tls-key", f"{certificates}/hostcert.pem"]
    command = [sys.executable, "-m", "dask", *arguments, *tls]
    more = minimal_environment(**environment, WHOSE=name)
    return Process(name, command, log=directory / f"{name}.log", env=more, cwd=directory)


def strict(ca: str, certificate: str | None) -> ssl.SSLContext:
    """What ``ssl.create_default_context()`` is from Python 3.13 on."""
    context = ssl.create_default_context(cafile=ca)
    context.verify_flags |= ssl.VERIFY_X509_STRICT | ssl.VERIFY_X509_PARTIAL_CHAIN
    if certificate:
        context.load_cert_chain(certificate)
    return context
