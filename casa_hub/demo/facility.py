"""The demo's facility: starts identity provider, XCache, HTCondor, Traefik and the hub, and ends them."""

from __future__ import annotations

import base64
import fcntl
import hashlib
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
from casa_hub.demo.accounts import (
    ACCOUNTS,
    ADMINISTRATOR,
    ADMINISTRATORS,
    DOMAIN,
    MEMBER,
    MEMBERS,
    PEOPLE,
    RECHECK_INTERVAL,
    VO,
)
from casa_hub.demo.credd import JobTokens
from casa_hub.demo.grid_storage import GsiServer
from casa_hub.demo.names import HostNames, facility_address
from casa_hub.demo.packages import Progress, Unavailable
from casa_hub.demo.processes import Process, minimal_environment, read_log
from casa_hub.demo.proxies import DAY, Authority, Holder, new_key, pem_of_key, read_key
from casa_hub.demo.traefik import DASK_PORT, DASK_WORKER_PORT, Traefik
from casa_hub.errors import CasaError
from casa_hub.files import replace_file
from casa_hub.issuer.settings import FacilityIssuer
from casa_hub.issuer.tokens import new_private_key, read_private_key
from casa_hub.loopback import free_port
from casa_hub.naming import Server
from casa_hub.processes import Process as ServerProcess
from casa_hub.processes import signed_in

#: Path of the demo's data in the XCache.
MUONS = "/store/user/demo/muons.csv"
#: The notebook in each home.
QUICKSTART = files("casa_hub.demo") / "quickstart.ipynb"
#: The hub's port, if it is free.
PORT = 8000
#: The hub, for the identity provider.
CLIENT_ID = "casa-hub-demo"


class Facility:
    """The running programs and their addresses. The context `running` starts and ends them.

    Users' servers are processes of this machine. A subclass may run them elsewhere. The methods for that are together
    below ("where servers live"); the check (`casa_hub.demo.check`) uses the same ones.
    """

    #: Default name of the facility's directory.
    name = "casa-hub-demo"
    #: The hub's configuration file, beside this one.
    config = "jupyterhub_config.py"
    #: Address of HTCondor and host name of XCache and of the storage with GSI for users' servers.
    peers_address, xcache_name = "127.0.0.1", "localhost"
    #: Addresses that may connect to the two, besides this machine's.
    xcache_clients: Sequence[str] = ()
    #: More host names for the operator's commands -> their addresses.
    more_names: Mapping[str, str] = MappingProxyType({})

    def __init__(self, directory: Path, *, port: int | None, progress: Progress) -> None:
        """Args:
        directory: for all that is kept: keys, homes, the hub's database.
        port: of the hub; None for a free port.
        progress: called with each line of progress.
        """
        self.directory = directory
        self._progress = progress
        self.address = facility_address(DASK_PORT, DASK_WORKER_PORT)
        self.url = f"http://127.0.0.1:{free_port(self) if port is None else port}"
        self.issuer = ""
        #: Issuer of the facility's own tokens, with the keys and the address that the hub has, too.
        self.tokens = FacilityIssuer(
            keys=str(directory / "issuer"), vo=VO, url=f"{self.url}/hub/casa/issuer", key_lead=0
        )
        #: The key of the pool, for the tokens of running jobs.
        self._pool_key = directory / "credmon.pem"
        #: Who has a certificate -> the certificate.
        self.people: dict[str, Holder] = {}
        self._stored_proxies = directory / "stored-proxies"
        self.names = HostNames(directory / "hosts", self.address)
        #: Part of the facility that this machine can't run -> why.
        self.missing: dict[str, str] = {}
        self.origin: xrootd.XRootDOrigin | None = None
        self.xcache: xrootd.XCache | None = None
        self.storage: GsiServer | None = None
        self.pool: htcondor.HTCondorPool | None = None
        self.hub: Process | None = None
        self._for_hub: dict[str, str] = {}
        self._servers: list[ServerProcess] = []

    @contextmanager
    def running(self) -> Iterator[Facility]:
        """A context in which everything runs. At its end, or if anything fails, everything is ended."""
        # 0711 for root: the pool's jobs run as other users then, and read the hosts file in this directory.
        self.directory.mkdir(mode=0o711 if os.geteuid() == 0 else 0o700, parents=True, exist_ok=True)
        with ExitStack() as stack:
            stack.enter_context(_alone(self.directory))
            shutil.rmtree(self.directory / "run", ignore_errors=True)  # left by a demo that was killed
            self.issuer = f"http://localhost:{self._issuer_port()}"
            self._home(stack)
            self._signing_keys()
            self._certificates()
            with self.network():
                self._identity_provider(stack)
                self._names()
                self._xcache(stack)
                self._storage(stack)
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
        """Start the environment of users' servers, such as a cluster."""

    @contextmanager
    def network(self) -> Iterator[None]:
        """A context in which the calling thread, and programs that it starts, can reach the facility's programs."""
        yield

    def _inside(self, *command: str) -> list[str]:
        """The command line that runs this command in the facility's network."""
        return list(command)

    def _doors(self, stack: ExitStack) -> None:
        """Make the hub (`url`), the provider (`issuer`) and Traefik (`address`) reachable from this machine."""

    def _traefik(self, stack: ExitStack) -> None:
        self._progress("Traefik")
        stack.enter_context(Traefik(self.directory / "traefik", routes=self._routes, address=self.address))

    def _home_settings(self) -> dict[str, Any]:
        """Settings of the hub's configuration that depend on where users' servers run."""
        first, second, third, _ = self.address.split(".")
        return {
            # Loopback addresses beside the facility's own.
            "network": f"{first}.{second}.{(int(third) + 1) % 256}.0/24",
            "routes": str(self._routes),
            "quickstart": str(QUICKSTART),
        }

    def _image_environment(self) -> dict[str, str]:
        """Variables that an analysis image would set."""
        trust = {} if self.xcache is None else self.xcache.client_environment
        return {**self.names.environment, **trust}

    def _hub_environment(self) -> dict[str, str]:
        """Variables for the hub."""
        return {}

    def about_servers(self) -> list[str]:
        """Sentences for people: where the files of servers are."""
        return [f"Homes, keys and logs are in {self.directory}."]

    def server_runs(self, name: str) -> bool:
        """Whether this user's server runs. `left` looks for it again."""
        process = signed_in(self.directory / "servers" / name / "process")
        if process is None or not process.alive:
            return False
        self._servers.append(process)
        return True

    def left_of(self, name: str) -> list[str]:
        """Leftovers of this user's server, which has stopped."""
        secrets_directory = self.directory / "servers" / name
        left = [secrets_directory] if secrets_directory.exists() else []
        left += [path for path in self._routes.iterdir() if path.name.startswith(f"{name}.")]
        return list(map(str, left))

    def left(self) -> list[str]:
        """Leftovers of all servers after the facility's end."""
        return [str(process) for process in self._servers if process.alive]

    def operate(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a command of `casa-hub` as the facility's operator, beside the hub."""
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
        """Variables for a command beside the hub; with them it resolves the servers' names, as Dask's clients do."""
        return {"CASA_HUB_DEMO": str(self._settings_file), **self.names.environment, **self._for_hub}

    @property
    def operator_command(self) -> str:
        """A command line for the person who tries the demo."""
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

    # -- the programs, in the order of their start ------------------------------------------------------------------

    def _identity_provider(self, stack: ExitStack) -> None:
        self._progress("Identity provider (a mock: it believes whoever you say you are)")
        command: list[str | Path] = [sys.executable, "-W", "ignore", "-m", "casa_hub.demo.identity_provider"]
        command += ["--port", self.issuer.rpartition(":")[2], "--client", CLIENT_ID, "--proxies", self._stored_proxies]
        for account in ACCOUNTS:
            command += ["--user-claims", json.dumps(account.claims)]
        process = self._start(stack, "identity provider", command)
        process.wait_until("it answers", lambda: _answers(self.issuer + "/.well-known/openid-configuration"))

    def _signing_keys(self) -> None:
        """Make the keys of the facility's issuer at the first start. Servers that verify its tokens start before it."""
        keys = Path(self.tokens.keys)
        keys.mkdir(mode=0o700, exist_ok=True)
        self._key(f"{keys.name}/1.pem", lambda path: path.write_bytes(new_private_key()[1]))
        self._key(self._pool_key.name, lambda path: path.write_bytes(new_private_key()[1]))
        self.tokens.extra_jwks = [dict(read_private_key(self._pool_key.read_bytes()).jwk)]

    def _certificates(self) -> None:
        """Make a certificate for everybody who gets a server, and the proxy of it that they store at the provider.

        The authority is the same at each start, because the hub keeps proxies with log-ins.
        """
        own = self._key("authority.pem", lambda path: path.write_text(pem_of_key(new_key())))
        self.authority = Authority(PEOPLE, domain=VO, own=read_key(own.read_bytes()))
        self._stored_proxies.mkdir(mode=0o700, exist_ok=True)
        for number, account in enumerate((MEMBER, ADMINISTRATOR)):
            person = self.people[account.name] = self.authority.certify(account.full_name, key_number=10 + number)
            stored = person.proxy(9 * DAY, own=new_key())
            replace_file(self._stored_proxies / f"{account.name}.pem", stored.pem.encode())

    def _names(self) -> None:
        with self._or_missing("Host names: Dask from outside"):
            self.names.prepare(self._progress)
            # All names at once: the file can't be replaced while programs use it.
            labels = ("dask", "dask-worker")
            users = [*(who.name for who in ACCOUNTS), NOBODY]
            hosts = [Server("demo", name).host(label, DOMAIN) for name in users for label in labels]
            self.names.replace({**dict.fromkeys(hosts, self.address), **self.more_names})

    def _issuer_port(self) -> int:
        """The port of the identity provider, always the same: the hub has bound the user names to this issuer."""
        port = int(self._key("issuer-port", lambda path: path.write_text(str(free_port(self)))).read_text())
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError as error:
                raise CasaError(
                    f"port {port}",
                    f"belongs to this demo's identity provider since its first start, but can't be used"
                    f" ({error.strerror})",
                    f"End the program that uses it, or remove {self.directory} to begin anew.",
                ) from error
        return port

    def _xcache(self, stack: ExitStack) -> None:
        with self._or_missing("XCache: reading files"):
            tree = xrootd.programs(progress=self._progress)
            self._progress("XRootD origin, and XCache in front of it")
            self.origin = stack.enter_context(xrootd.XRootDOrigin(tree, self._scratch(stack, "origin")))
            self.origin.add(MUONS, _muons())
            key_file = self._key("xcache-key", xrootd.make_key_file)
            xcache = xrootd.XCache(
                tree,
                self._scratch(stack, "xcache"),
                origin=self.origin,
                key_file=key_file,
                site="T2_XX_Demo",
                issuer=self.tokens.iss,
                names=[self.xcache_name],
                clients=self.xcache_clients,
            )
            if xcache.issuer:
                xcache.trust(self.tokens.jwks(time.time()))
            self.xcache = stack.enter_context(xcache)

    def _storage(self, stack: ExitStack) -> None:
        if self.xcache is None:  # it is of the same programs
            return
        self._progress("Storage that knows people by their certificates (XRootD with GSI)")
        self.authority.publish(self.xcache.tls.ca_directory)
        self.storage = stack.enter_context(
            GsiServer(
                self.xcache.tree,
                self._scratch(stack, "storage"),
                self.authority,
                self.people,
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
                    job_tokens=self._job_tokens(),
                )
            )

    def _job_tokens(self) -> JobTokens | None:
        """Tokens for the XCache, which live so short that a person sees a second one."""
        if self.xcache is None or not self.xcache.issuer:
            return None
        audience, scopes = [self.xcache.audience], ["storage.read:/store"]
        return JobTokens(self.tokens.iss, self._pool_key, audience, scopes, lifetime=30, refresh=2)

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
        """Settings for the hub's configuration."""
        dask_secret = self._key(
            "dask-secret", lambda path: path.write_text(base64.b64encode(os.urandom(32)).decode() + "\n")
        )
        proxy_password = secrets.token_hex(16)
        # A slow hash would be checked twice for each server that starts; nobody can guess what it is a hash of.
        sha1 = hashlib.sha1(proxy_password.encode(), usedforsecurity=False).digest()
        credentials = ["dask", "bearer", "exchange", "x509"]
        settings: dict[str, Any] = {
            "directory": str(self.directory),
            "url": self.url,
            "hub_port": free_port(self),
            "proxy_api_port": free_port(self),
            "proxy_password": proxy_password,
            "proxy_password_hash": "{SHA}" + base64.b64encode(sha1).decode(),
            "issuer": self.issuer,
            "client_id": CLIENT_ID,
            "client_secret": secrets.token_hex(16),
            "operator_token": secrets.token_hex(16),
            "members": MEMBERS,
            "recheck_interval": RECHECK_INTERVAL,
            "administrators": ADMINISTRATORS,
            "dask": {"secret_file": str(dask_secret), "domain": DOMAIN},
            "tokens": {name: getattr(self.tokens, name) for name in ("keys", "vo", "url", "extra_jwks")},
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
                "credential": "both" if self.xcache.issuer else "macaroon",
            }
        if self.storage is not None:
            storage = f"root://{self.xcache_name}:{self.storage.port}"
            settings["image_environment"] |= {"GRID_STORAGE": storage}
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
        """A key file of this demo, which is made at the first start."""
        path = self.directory / name
        if not path.exists():
            path.touch(mode=0o600)
            make(path)
        return path

    def _scratch(self, stack: ExitStack, name: str) -> Path:
        """A new directory for a program, removed after its end."""
        if os.geteuid() != 0:
            path = self.directory / "run"
            path.mkdir(mode=0o700, exist_ok=True)
            return path / name
        # As root the programs change to other users, who can't enter root's directories.
        path = Path(tempfile.mkdtemp(prefix=f"casa-demo-{name}-"))
        path.chmod(0o755)
        stack.callback(shutil.rmtree, path, ignore_errors=True)
        return path / name

    @contextmanager
    def _or_missing(self, what: str) -> Iterator[None]:
        """If this machine can't run a part, go on without it and tell the person."""
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
                str(directory), "is used by another demo that runs", "End that demo, or choose another --directory."
            ) from None
        yield


def _answers(url: str) -> bool:
    try:
        with urlopen(url, timeout=1) as answer:  # noqa: S310 - our own loopback address
            return bool(answer.status)
    except (URLError, OSError):
        return False


def _muons() -> bytes:
    """Transverse momentum and pseudorapidity of invented muons; the same at each call."""
    rows = [(20 + (n * 7919 % 1000) / 10, (n * 104729 % 480) / 100 - 2.4) for n in range(1000)]
    return "\n".join(["pt,eta", *(f"{pt:.1f},{eta:.2f}" for pt, eta in rows)]).encode()


def elapsed_printer() -> Progress:
    """Prints progress lines with the seconds since this call."""
    begin = time.monotonic()

    def tell(line: str) -> None:
        print(f"{time.monotonic() - begin:6.1f} s  {line}", flush=True)

    return tell
