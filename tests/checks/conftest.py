"""A whole facility of real servers, as those of tests/peers, and the command that looks at it.

`facility`  see `Facility`; what a test changes in it is put right again by the test's own context manager.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from casa_hub.demo import xrootd
from casa_hub.demo.htcondor import SCHEDD, HTCondorPool
from casa_hub.demo.names import HostNames
from casa_hub.demo.processes import free_loopback_address
from casa_hub.demo.traefik import Traefik
from casa_hub.demo.xrootd import XCache
from casa_hub.issuer.tokens import new_private_key
from casa_hub.loopback import free_port
from casa_hub.testing.idp import EXCHANGE
from tests.peers.conftest import names, peers_directory, pool, traefik, xcache  # noqa: F401 - fixtures
from tests.support.idp import IdP
from tests.support.kubernetes import build
from tests.support.kubernetes.control_plane import ControlPlane
from tests.support.kubernetes.definitions import definitions
from tests.support.kubernetes.hub import hub_account
from tests.support.peers import require

CLIENT_SECRET = "secret-of-the-client"
SCOPES = ["openid", "profile", "email", "offline_access", "wlcg.groups"]
#: What a ServiceX says of itself.
SERVICEX: dict[str, Any] = {"app-version": "1.7.0", "capabilities": []}
DISCOVERY = "/.well-known/openid-configuration"

#: JupyterHub takes seconds to load. So it is loaded once, in a process that sees the facility's names, and each command
#: is a fork of that.
_FORKS = """
import json, os, sys, tempfile
import casa_hub.checks.runner
from casa_hub.cli import main
for line in sys.stdin:
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        child = os.fork()
        if not child:
            os.dup2(out.fileno(), 1), os.dup2(err.fileno(), 2), os.close(0)
            try:
                code = main(json.loads(line))
            except BaseException:
                import traceback
                traceback.print_exc()
                code = 99
            sys.stdout.flush(), sys.stderr.flush()
            os._exit(code)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        out.seek(0), err.seek(0)
        print(json.dumps([code, out.read().decode(), err.read().decode()]), flush=True)
"""


@dataclass
class Checked:
    """What a run of the command ended with."""

    code: int
    findings: list[dict[str, str]]
    printed: str

    @property
    def bad(self) -> list[dict[str, str]]:
        """What isn't right. That Debian's XRootD is old is no fault of the facility; a test of its own is about it."""
        return [one for one in self.findings if one["status"] != "ok" and one not in self.xrootd_versions]

    @property
    def xrootd_versions(self) -> list[dict[str, str]]:
        return [one for one in self.findings if one["thing"].startswith("version of XCache")]


@dataclass
class Facility:
    """The parts, and the configuration of a hub to which they are as it says."""

    directory: Path
    idp: IdP
    plane: ControlPlane
    namespace: str
    xcache: XCache
    pool: HTCondorPool
    kubeconfig: Path
    #: An XRootD that serves everybody, by HTTP too.
    open_xrootd: int
    #: A loopback address where nobody listens.
    nowhere: str
    process: subprocess.Popen[str] = field(repr=False)

    def sound(self) -> None:
        """Let the identity provider be as it should, and the hub's account the one that it has."""
        self.idp.reset()
        self.idp.change[DISCOVERY] = lambda document: (
            document
            | {
                "scopes_supported": SCOPES,
                "grant_types_supported": ["authorization_code", "refresh_token", EXCHANGE],
            }
        )
        self.idp.answers["/servicex"] = (200, SERVICEX)
        self.use_account(self.kubeconfig.read_text())

    def use_account(self, kubeconfig: str) -> None:
        (self.directory / "kubeconfig").write_text(kubeconfig)

    @property
    def config(self) -> str:
        return f"""
c = get_config()
c.JupyterHub.authenticator_class = "casa"
c.JupyterHub.spawner_class = "casa"
c.JupyterHub.cookie_secret = bytes(32)
c.CryptKeeper.keys = ["00" * 32]
c.KubeSpawner.namespace = {self.namespace!r}
c.CasaOAuthenticator.provider = "wlcg-iam"
c.CasaOAuthenticator.issuer = {self.idp.issuer!r}
c.CasaOAuthenticator.client_id = "hub"
c.CasaOAuthenticator.client_secret = {CLIENT_SECRET!r}
c.CasaOAuthenticator.oauth_callback_url = "https://hub.example.org/hub/oauth_callback"
c.CasaOAuthenticator.allowed_groups = ["/cms"]
c.Facility.credentials = ["xcache", "htcondor", "dask"]
c.Facility.hub_id = "test"
c.XCache.key_file = {str(self.xcache.key_file)!r}
c.XCache.site_name = {self.xcache.site!r}
c.XCache.host = "127.0.0.1"  # XRootD 5 and 6 of the tests turn ::1 away
c.XCache.port = {self.xcache.port}
c.HTCondor.key_file = {str(self.pool.key_file("POOL"))!r}
c.HTCondor.trust_domain = {self.pool.domain!r}
c.HTCondor.uid_domain = {self.pool.domain!r}
c.HTCondor.subject = "{{username}}"
c.HTCondor.collector = {self.pool.address!r}
c.HTCondor.schedd = {SCHEDD!r}
c.Dask.secret_file = {str(self.directory / "dask")!r}
c.Dask.domain = "sound.test"
"""

    def check(self, more: str = "", *options: str) -> Checked:
        """Run ``casa-hub check --json`` with the configuration and `more` of it."""
        file = self.directory / "jupyterhub_config.py"
        file.write_text(self.config + more)
        return self.command("check", "-f", str(file), *options)

    def command(self, *arguments: str) -> Checked:
        """Run ``casa-hub --json`` in the facility's directory."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps([*arguments, "--json"]) + "\n")
        self.process.stdin.flush()
        code, out, err = json.loads(self.process.stdout.readline())
        document = json.loads(out) if out else {"exit_code": code, "findings": []}
        assert document["exit_code"] == code, err
        return Checked(code, document["findings"], out + err)

    @property
    def by_token(self) -> str:
        """More configuration, with which the XCache is read by macaroons and by tokens of the facility's own issuer."""
        url, _, vo = self.xcache.issuer.rpartition("/")
        return f"""
c.XCache.credential = "both"
c.XCache.audience = {self.xcache.audience!r}
c.FacilityIssuer.keys = {str(self.keys)!r}
c.FacilityIssuer.url = {url!r}
c.FacilityIssuer.vo = {vo!r}
"""

    @property
    def keys(self) -> Path:
        return self.directory / "issuer"

    def secrets(self) -> list[str]:
        """What must be in no output."""
        files = [self.directory / "dask", self.xcache.key_file, self.kubeconfig, self.keys / "1.pem"]
        return [
            CLIENT_SECRET,
            "0" * 64,
            *(line for file in files for line in file.read_text().split() if len(line) > 40),
        ]


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """With Traefik 3's kinds only, unlike that of tests/kubernetes."""
    kinds = [one for one in definitions() if one["spec"]["group"] == "traefik.io"]
    work_dir = tmp_path_factory.mktemp("plane") / "work"
    running = require(lambda: ControlPlane(build.programs(), work_dir, crds=kinds).__enter__())
    yield running
    running.__exit__()


@pytest.fixture(scope="module")
def open_xrootd(xcache: XCache, peers_directory: Path) -> Iterator[int]:  # noqa: F811
    template = xrootd._COMMON + "xrd.protocol http:{port} libXrdHttp.so\n"
    directory = peers_directory / "open"
    with xrootd.XRootDServer("open XRootD", xcache.tree, directory, xcache.origin.data, template) as server:
        yield server.port


@pytest.fixture(scope="module")
def facility(  # noqa: PLR0917 - a facility has as many parts
    xcache: XCache,  # noqa: F811
    pool: HTCondorPool,  # noqa: F811
    traefik: Traefik,  # noqa: F811
    names: HostNames,  # noqa: F811
    plane: ControlPlane,
    open_xrootd: int,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Facility]:
    directory = tmp_path_factory.mktemp("facility")
    (directory / "dask").touch(mode=0o600)
    (directory / "dask").write_text("A" * 44 + "\n")
    (directory / "issuer").mkdir()
    key, pem = new_private_key()
    (directory / "issuer" / "1.pem").touch(mode=0o600)
    (directory / "issuer" / "1.pem").write_bytes(pem)
    if xcache.issuer:
        xcache.trust({"keys": [dict(key.jwk)]})
    nowhere = free_loopback_address(8786, 8788)
    names.replace(
        {f"casa-hub-check.{label}.sound.test": traefik.address for label in ("dask", "dask-worker")}
        | {"casa-hub-check.dask.half.test": traefik.address}
        | {f"casa-hub-check.{label}.closed.test": nowhere for label in ("dask", "dask-worker")}
    )
    namespace = plane.make_namespace()
    (directory / "kubeconfig").touch(mode=0o600)
    with contextlib.ExitStack() as stack:
        idp = stack.enter_context(IdP().running())
        process = stack.enter_context(
            subprocess.Popen(
                [sys.executable, "-c", _FORKS],
                env={
                    "PATH": "/usr/bin:/bin",
                    "HOME": str(directory),
                    "KUBECONFIG": str(directory / "kubeconfig"),
                    **names.environment,
                },
                cwd=directory,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        )
        made = Facility(
            directory,
            idp,
            plane,
            namespace,
            xcache,
            pool,
            hub_account(plane, namespace),
            open_xrootd,
            f"127.0.0.1:{free_port(idp)}",
            process,
        )
        made.sound()
        yield made
        assert process.stdin is not None
        process.stdin.close()
        process.wait(60)
