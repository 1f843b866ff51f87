"""A whole facility on this machine: identity provider, XCache, HTCondor, Traefik and the hub, started in that order."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import secrets
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from importlib.resources import files
from pathlib import Path
from types import MappingProxyType
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

from casa_hub.checks.findings import NOBODY
from casa_hub.demo import htcondor, xrootd
from casa_hub.demo.accounts import ACCOUNTS, ADMINISTRATORS, DOMAIN, MEMBERS, RECHECK_INTERVAL
from casa_hub.demo.names import HostNames, facility_address
from casa_hub.demo.packages import Progress, Unavailable
from casa_hub.demo.processes import Process, free_port, minimal_environment, read_log
from casa_hub.demo.traefik import DASK_PORT, DASK_WORKER_PORT, Traefik
from casa_hub.errors import CasaError
from casa_hub.naming import Server
from casa_hub.processes import Process as ServerProcess
from casa_hub.processes import signed_in

#: Where the data are that the demo serves.
MUONS = "/store/user/demo/muons.csv"
#: The notebook that everybody's home has.
QUICKSTART = files("casa_hub.demo") / "quickstart.ipynb"
#: The hub's port, if it is free.
PORT = 8000


class Facility:
    """What runs, and where. `running` starts it and ends all of it.

    This one's servers are processes of this machine. A subclass has them elsewhere: methods and attributes that say
    so are together below, and the check (`casa_hub.demo.check`) asks the same ones.
    """

    #: Of the directory where it is kept, unless another one is asked for.
    name = "casa-hub-demo"
    #: The hub's configuration, beside this file.
    config = "jupyterhub_config.py"
    #: Where servers find HTCondor, and XCache by this name; and who may connect to it beside this machine.
    peers_address, xcache_name = "127.0.0.1", "localhost"
    xcache_clients: Sequence[str] = ()
    #: What else the operator's commands find by name, and where.
    more_names: Mapping[str, str] = MappingProxyType({})

    def __init__(self, directory: Path, *, port: int | None, progress: Progress) -> None:
        """Args:
        directory: everything that is kept: keys, homes, the hub's database.
        port: of the hub; None for a free one.
        progress: is told what happens.
        """
        self.directory = directory
        self._progress = progress
        self.address = facility_address(DASK_PORT, DASK_WORKER_PORT)
        self.url = f"http://127.0.0.1:{free_port() if port is None else port}"
        self.issuer = ""
        self.names = HostNames(directory / "hosts", self.address)
        #: What of the facility can't be had on this machine, and why.
        self.missing: dict[str, str] = {}
        self.origin: xrootd.XRootDOrigin | None = None
        self.xcache: xrootd.XCache | None = None
        self.pool: htcondor.HTCondorPool | None = None
        self.hub: Process | None = None
        self._for_hub: dict[str, str] = {}
        self._servers: list[ServerProcess] = []

    @contextmanager
    def running(self) -> Iterator[Facility]:
        """Start everything; at the end of the block, or when anything fails, end everything."""
        # As root, the pool's jobs run as other users and read the hosts file in here.
        self.directory.mkdir(mode=0o711 if os.geteuid() == 0 else 0o700, parents=True, exist_ok=True)
        with ExitStack() as stack:
            stack.enter_context(_alone(self.directory))
            shutil.rmtree(self.directory / "run", ignore_errors=True)  # of one that was killed
            self.issuer = f"http://localhost:{self._issuer_port()}"
            self._home(stack)
            with self.network():
                self._identity_provider(stack)
                self._names()
                self._xcache(stack)
                self._pool(stack)
                self._traefik(stack)
                self._hub(stack)
            self._doors(stack)
            try:
                yield self
            finally:
                self._progress("Ending everything")

    # -- where servers live -----------------------------------------------------------------------------------------

    def _home(self, stack: ExitStack) -> None:
        """Start what servers live in."""

    @contextmanager
    def network(self) -> Iterator[None]:
        """The calling thread, and what it starts, is where the facility's programs reach each other."""
        yield

    def _inside(self, *command: str) -> list[str]:
        """The same as a command from this machine's own network."""
        return list(command)

    def _doors(self, stack: ExitStack) -> None:
        """Let this machine in: the hub at `url`, the identity provider at `issuer`, Traefik at `address`."""

    def _traefik(self, stack: ExitStack) -> None:
        self._progress("Traefik")
        stack.enter_context(Traefik(self.directory / "traefik", routes=self._routes, address=self.address))

    def _home_settings(self) -> dict[str, Any]:
        """What the hub's configuration needs to know of where servers live."""
        first, second, third, _ = self.address.split(".")
        return {
            # Loopback addresses beside the facility's own.
            "network": f"{first}.{second}.{(int(third) + 1) % 256}.0/24",
            "routes": str(self._routes),
            "quickstart": str(QUICKSTART),
        }

    def _image_environment(self) -> dict[str, str]:
        """Variables that an analysis image has, and this machine hasn't."""
        trust = {} if self.xcache is None else self.xcache.client_environment
        return {**self.names.environment, **trust}

    def _hub_environment(self) -> dict[str, str]:
        """Variables that the hub needs."""
        return {}

    def about_servers(self) -> list[str]:
        """Where a person finds what servers leave."""
        return [f"Homes, keys and logs are in {self.directory}."]

    def server_runs(self, name: str) -> bool:
        """Whether this user's server runs; it is looked for again when all should have ended."""
        process = signed_in(self.directory / "servers" / name / "process")
        if process is None or not process.alive:
            return False
        self._servers.append(process)
        return True

    def left_of(self, name: str) -> list[str]:
        """What is still there of this user's server, which has stopped."""
        secrets_directory = self.directory / "servers" / name
        left = [secrets_directory] if secrets_directory.exists() else []
        left += [path for path in self._routes.iterdir() if path.name.startswith(f"{name}.")]
        return list(map(str, left))

    def left(self) -> list[str]:
        """What is still there of servers when the facility has ended."""
        return [str(process) for process in self._servers if process.alive]

    def operate(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a command of `casa-hub` as this facility's operator would, beside its hub."""
        command = [sys.executable, "-W", "ignore::DeprecationWarning", "-m", "casa_hub.cli", *arguments]
        environment = minimal_environment(**self.operator_environment)
        with self.network():
            return subprocess.run(
                [*command, "-f", self._config_file],
                env=environment,
                capture_output=True,
                text=True,
                timeout=120,
                check=False,
            )

    @property
    def operator_environment(self) -> dict[str, str]:
        """Variables of a command beside the hub, which knows the servers' names as Dask's clients do."""
        return {"CASA_HUB_DEMO": str(self._settings_file), **self.names.environment, **self._for_hub}

    @property
    def operator_command(self) -> str:
        """For the person who tries the demo."""
        variables = [f"{name}={value}" for name, value in self.operator_environment.items()]
        program = str(Path(sys.executable).parent / "casa-hub")
        return shlex.join(self._inside("env", *variables, program, "check", "-f", self._config_file))

    @property
    def _settings_file(self) -> Path:
        return self.directory / "demo.json"

    @property
    def _config_file(self) -> str:
        return str(files("casa_hub.demo") / self.config)

    @property
    def _routes(self) -> Path:
        return self.directory / "routes"

    # -- one after the other ----------------------------------------------------------------------------------------

    def _identity_provider(self, stack: ExitStack) -> None:
        self._progress("Identity provider (a mock: it believes whoever you say you are)")
        command: list[str | Path] = [sys.executable, "-W", "ignore", "-m", "oidc_provider_mock"]
        command += ["--host", "127.0.0.1", "--port", self.issuer.rpartition(":")[2], "--require-nonce", "true"]
        for account in ACCOUNTS:
            command += ["--user-claims", json.dumps(account.claims)]
        process = self._start(stack, "identity provider", command)
        process.wait_until("it answers", lambda: _answers(self.issuer + "/.well-known/openid-configuration"))

    def _names(self) -> None:
        with self._or_missing("Host names: Dask from outside"):
            self.names.prepare(self._progress)
            # All that will ever be in there: the file isn't replaced while programs use it.
            labels = ("dask", "dask-worker")
            users = [*(who.name for who in ACCOUNTS), NOBODY]
            hosts = [Server("demo", name).host(label, DOMAIN) for name in users for label in labels]
            self.names.replace({**dict.fromkeys(hosts, self.address), **self.more_names})

    def _issuer_port(self) -> int:
        """Always the same: the hub has bound the user names to this issuer, and lets nobody else have them."""
        port = int(self._key("issuer-port", lambda path: path.write_text(str(free_port()))).read_text())
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError as error:
                raise CasaError(
                    f"port {port}",
                    f"the one of this demo's identity provider from its first start, can't be used ({error.strerror})",
                    f"End what uses it, or begin anew without {self.directory}",
                ) from error
        return port

    def _xcache(self, stack: ExitStack) -> None:
        with self._or_missing("XCache: reading files"):
            tree = xrootd.programs(progress=self._progress)
            self._progress("XRootD origin, and XCache in front of it")
            self.origin = stack.enter_context(xrootd.XRootDOrigin(tree, self._scratch(stack, "origin")))
            self.origin.add(MUONS, _muons())
            key_file = self._key("xcache-key", xrootd.make_key_file)
            self.xcache = stack.enter_context(
                xrootd.XCache(
                    tree,
                    self._scratch(stack, "xcache"),
                    origin=self.origin,
                    key_file=key_file,
                    site="T2_XX_Demo",
                    names=[self.xcache_name],
                    clients=self.xcache_clients,
                )
            )

    def _pool(self, stack: ExitStack) -> None:
        with self._or_missing("HTCondor: batch jobs"):
            tree = htcondor.programs(progress=self._progress)
            self._progress("HTCondor pool")
            self.pool = stack.enter_context(
                htcondor.HTCondorPool(
                    tree,
                    self._scratch(stack, "pool"),
                    host=self.peers_address,
                    accounts=[account.name for account in ACCOUNTS],
                    job_environment=self.names.environment,
                )
            )

    def _hub(self, stack: ExitStack) -> None:
        self._progress("JupyterHub")
        (self.directory / "proxy").mkdir(mode=0o700, exist_ok=True)
        self._key("crypt-key", lambda path: path.write_text(secrets.token_hex(32)))
        self._for_hub = self._hub_environment()
        self._settings_file.touch(mode=0o600)
        self._settings_file.write_text(json.dumps(self._settings(), indent=1))
        bin_directory = Path(sys.executable).parent
        environment = minimal_environment(
            CASA_HUB_DEMO=str(self._settings_file),
            PATH=f"{bin_directory}{os.pathsep}{os.environ['PATH']}",
            **self._for_hub,
        )
        self.hub = self._start(
            stack,
            "JupyterHub",
            [sys.executable, "-W", "ignore::DeprecationWarning", "-m", "jupyterhub", "-f", self._config_file],
            env=environment,
            grace=20.0,
        )
        hub_log = self.hub.log
        self.hub.wait_until("it says that it runs", lambda: "JupyterHub is now running" in read_log(hub_log), 120)

    def _settings(self) -> dict[str, Any]:
        """What the hub's configuration needs to know."""
        dask_secret = self._key(
            "dask-secret", lambda path: path.write_text(base64.b64encode(os.urandom(32)).decode() + "\n")
        )
        credentials = ["dask", "bearer"]
        settings: dict[str, Any] = {
            "directory": str(self.directory),
            "url": self.url,
            "hub_port": free_port(),
            "proxy_api_port": free_port(),
            "proxy_password": secrets.token_hex(16),
            "issuer": self.issuer,
            "client_secret": secrets.token_hex(16),
            "operator_token": secrets.token_hex(16),
            "members": MEMBERS,
            "recheck_interval": RECHECK_INTERVAL,
            "administrators": ADMINISTRATORS,
            "dask": {"secret_file": str(dask_secret), "domain": DOMAIN},
            "image_environment": self._image_environment(),
            **self._home_settings(),
        }
        if self.xcache is not None:
            credentials.append("xcache")
            settings["xcache"] = {
                "key_file": str(self.xcache.key_file),
                "site": self.xcache.site,
                "host": self.xcache_name,
                "port": self.xcache.port,
            }
        if self.pool is not None:
            credentials.append("htcondor")
            settings["htcondor"] = {
                "key_file": str(self.pool.key_file()),
                "domain": self.pool.domain,
                "collector": self.pool.address,
                "schedd": htcondor.SCHEDD,
            }
            settings["image_environment"] |= {"CONDOR_CONFIG": "/dev/null"}
        return settings | {"credentials": credentials, "required": ["dask"]}

    # -- helpers ----------------------------------------------------------------------------------------------------

    def _start(self, stack: ExitStack, name: str, command: list[str | Path], **options: Any) -> Process:
        log = self.directory / f"{name.replace(' ', '-').lower()}.log"
        options.setdefault("env", minimal_environment())
        return stack.enter_context(Process(name, command, log=log, cwd=self.directory, **options))

    def _key(self, name: str, make: Any) -> Path:
        """A key file of this demo, made the first time."""
        path = self.directory / name
        if not path.exists():
            path.touch(mode=0o600)
            make(path)
        return path

    def _scratch(self, stack: ExitStack, name: str) -> Path:
        """A new directory for a server, gone with it."""
        if os.geteuid() != 0:
            path = self.directory / "run"
            path.mkdir(mode=0o700, exist_ok=True)
            return path / name
        # Servers change to other users then, who can't get into root's directories.
        path = Path(tempfile.mkdtemp(prefix=f"casa-demo-{name}-"))
        path.chmod(0o755)
        stack.callback(shutil.rmtree, path, ignore_errors=True)
        return path / name

    @contextmanager
    def _or_missing(self, what: str) -> Iterator[None]:
        """The demo goes on without what this machine can't have, and says so."""
        try:
            yield
        except Unavailable as error:
            self.missing[what] = str(error)
            self._progress(f"Not here: {what}. {error}")


@contextmanager
def _alone(directory: Path) -> Iterator[None]:
    with (directory / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CasaError(
                str(directory), "a demo is running there already", "End it, or choose another --directory"
            ) from None
        yield


def _answers(url: str) -> bool:
    try:
        with urlopen(url, timeout=1) as answer:  # noqa: S310 - our own loopback address
            return bool(answer.status)
    except (URLError, OSError):
        return False


def _muons() -> bytes:
    """Transverse momentum and pseudorapidity of muons that never were, always the same."""
    rows = [(20 + (n * 7919 % 1000) / 10, (n * 104729 % 480) / 100 - 2.4) for n in range(1000)]
    return "\n".join(["pt,eta", *(f"{pt:.1f},{eta:.2f}" for pt, eta in rows)]).encode()


def elapsed_printer() -> Progress:
    """Progress lines with the seconds since the start."""
    begin = time.monotonic()

    def tell(line: str) -> None:
        print(f"{time.monotonic() - begin:6.1f} s  {line}", flush=True)

    return tell
