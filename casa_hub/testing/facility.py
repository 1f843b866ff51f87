"""A facility's own hub on this machine, with the facility's configuration except for what a test can't have.

The facility decides who may log in and which credentials a server gets. The tests bring the identity provider, keys are
made for the test, and servers are processes of this machine instead of pods.
"""

from __future__ import annotations

import base64
import json
import os
import secrets
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from casa_hub.credentials.base import Route
from casa_hub.delivery.local.delivery import Delivered
from casa_hub.naming import Server
from casa_hub.processes import Process, signed_in
from casa_hub.testing.hub import LATER, Hub

#: Least characters of a file's content to look for in the log: a shorter text may stand there by chance.
_TELLING = 16

#: Settings of the hub's addresses, which are removed: the test chooses the addresses.
_PLACES = ("base_url", "ip", "port", "ssl_key", "ssl_cert", "internal_ssl", "subdomain_host")
_HUB_PLACES = ("hub_ip", "hub_bind_url", "hub_connect_ip", "hub_connect_url", "hub_connect_port")

#: Configuration after the facility's, which it overrules.
LOCAL = """
for _name in {places!r}:
    c.JupyterHub.pop(_name, None)
c.JupyterHub.setdefault("authenticator_class", "casa")
c.JupyterHub.cleanup_servers = True
c.JupyterHub.tornado_settings.update({{"slow_spawn_timeout": 30}})
c.CasaOAuthenticator.update({{
    "issuer": {issuer!r},
    "client_id": "casa-hub-tests",
    "client_secret": {client_secret!r},
    "oauth_callback_url": {callback!r},
    "ca_file": "",
    "http_proxy": "",
}})

# Servers are JupyterHub's own small one: as good as a notebook's for what it is given, and there at once.
c.JupyterHub.spawner_class = "casa-local"
c.CasaLocalSpawner.cmd = [sys.executable, "-m", "jupyterhub.tests.mocksu"]
c.CasaLocalSpawner.args = []
c.CasaLocalSpawner.poll_interval = 1
c.LocalDelivery.directory = os.path.abspath("servers")
c.TraefikRoutes.directory = os.path.abspath("routes")

# Never the facility's own keys.
c.XCache.key_file = os.path.abspath("keys/xcache")
c.HTCondor.key_file = os.path.abspath("keys/htcondor")
c.Dask.secret_file = os.path.abspath("keys/dask")
if "tokens_file" in c.ServiceX:
    c.ServiceX.tokens_file = os.path.abspath("keys/servicex")
"""


@dataclass(frozen=True, slots=True)
class Given:
    """Files, environment and routes of a running server."""

    server: Server
    #: The directory of its secret files.
    directory: Path
    #: Path below `directory` -> content.
    files: Mapping[str, bytes] = field(repr=False)
    #: The variables that its process was started with.
    environment: Mapping[str, str] = field(repr=False)
    #: Name of a credential -> ``issued_at``, ``expires_at``, ``identifiers`` and ``files`` of the server's record.
    credentials: Mapping[str, Mapping[str, Any]]
    #: Name of a credential that could not be minted -> why.
    missing: Mapping[str, str]
    #: Its routes from outside.
    routes: tuple[Route, ...]


class FacilityHub(Hub):
    """A facility's hub, whose users log in at the identity provider of the tests.

    Args:
        directory: an empty one.
        facility: its configuration: a file, its text, or ``hub.config`` of Zero to JupyterHub's values.
        issuer: URL of the tests' identity provider.
        overrides: configuration (Python text) after all else, such as the key file of the site's own credential.
        environment: more variables for the hub's process.
        proxy: as in `Hub`.
    """

    def __init__(
        self,
        directory: Path,
        facility: Path | str | Mapping[str, Any],
        issuer: str,
        *,
        overrides: str = "",
        environment: Mapping[str, str] | None = None,
        proxy: bool = False,
    ) -> None:
        self.client_secret = secrets.token_urlsafe(24)
        self._seen: set[str] = set()
        self._processes: list[Process] = []
        for name in ("keys", "routes"):
            (directory / name).mkdir(mode=0o700)
        for name, content in {
            "xcache": base64.b64encode(secrets.token_bytes(64)) + b"\n",
            "htcondor": secrets.token_bytes(64),
            "dask": base64.b64encode(secrets.token_bytes(48)) + b"\n",
            "servicex": b"somebody: invented\n",
        }.items():
            path = directory / "keys" / name
            path.touch(mode=0o600)
            path.write_bytes(content)
        super().__init__(directory, "", first=_loaded(facility, directory), environment=environment, proxy=proxy)
        local = LOCAL.format(
            places=_PLACES + _HUB_PLACES,
            issuer=issuer,
            client_secret=self.client_secret,
            callback=f"{self.url}/hub/oauth_callback",
        )
        with (directory / "jupyterhub_config.py").open("a") as file:
            file.write(LATER + local + overrides)

    def given(self, username: str, name: str = "") -> Given:
        """Wait until a starting server is ready, and return what it has.

        Fails with the sentences of the spawn page if the server doesn't start.
        """
        self._wait_for_start(username, name)
        delivered, directory = self._delivered(username, name)
        record = delivered.record.to_document()
        paths = [path for entry in record["credentials"].values() for path in entry["files"]]
        files = {path: (directory / path).read_bytes() for path in paths}
        self._seen |= {text for text in map(_secret_text, files.values()) if len(text) >= _TELLING}
        process = signed_in(directory / "process")
        assert process is not None, f"the server of {username} has no process"
        self._processes.append(process)
        environment = process.environment()
        credentials, missing = record["credentials"], record["missing"]
        return Given(delivered.server, directory, files, environment, credentials, missing, delivered.routes)

    def renewed(self, before: Given, credential: str, *, timeout: float = 60) -> Given:
        """Wait until a credential of a running server has been renewed, and return what the server has then.

        `before`: what the same start of the server had earlier. Configure a lifetime of a few seconds.
        """
        username, name = before.server.username, before.server.name
        order = before.credentials[credential]["order"]
        deadline = time.monotonic() + timeout
        while True:
            delivered, _ = self._delivered(username, name)
            if delivered.record.to_document()["credentials"][credential]["order"] > order:
                return self.given(username, name)
            assert time.monotonic() < deadline, f"no new {credential} within {timeout} s:\n{self.log[-6000:]}"
            time.sleep(0.05)  # polled: the hub logs no line for a successful renewal

    def _wait_for_start(self, username: str, name: str) -> None:
        path = f"/users/{quote(username, safe='')}/" + (f"servers/{quote(name, safe='')}" if name else "server")
        said: list[str] = []
        with self.api("GET", f"{path}/progress", stream=True) as answer:
            assert answer.ok, f"there is no server of {username}: {answer.text}"
            for line in answer.iter_lines():
                event = json.loads(line.removeprefix(b"data:")) if line.startswith(b"data:") else {}
                said += [event["message"]] if "message" in event else []
                if event.get("ready"):
                    return
        raise AssertionError(f"the server of {username} did not start: " + " / ".join(said))

    def _delivered(self, username: str, name: str) -> tuple[Delivered, Path]:
        for path in (self.directory / "servers").glob("[!.]*/state.json"):
            delivered = Delivered.from_json(path.read_bytes())
            if (delivered.server.username, delivered.server.name) == (username, name):
                return delivered, path.parent
        raise AssertionError(f"nothing was delivered for the server of {username}")

    def close(self) -> None:
        """End the hub and its servers, in any state."""
        try:
            self.stop()
        finally:
            if self.process is not None and self.process.poll() is None:
                self.process.kill()
            signed = [signed_in(path) for path in (self.directory / "servers").glob("[!.]*/process")]
            left = [process for process in [*self._processes, *filter(None, signed)] if process.alive]
            for process in left:
                os.killpg(process.pid, signal.SIGKILL)
            deadline = time.monotonic() + 60
            while any(process.alive for process in left):  # polled: they are not our children
                assert time.monotonic() < deadline, f"servers can't be ended: {left}"
                time.sleep(0.05)

    def assert_no_secret_in_log(self, given_out: set[str]) -> None:
        """Fail if a secret is in the hub's log, which is at level DEBUG.
        `given_out`: secrets of the identity provider (`IdP.secrets`). Files that `given` read are added to them.
        """
        wanted, log = given_out | self._seen | {self.client_secret, self.api_token}, self.log
        # The message doesn't show the secret: it would be in the log of the tests then.
        found = [secret for secret in wanted if secret in log]
        assert not found, f"{len(found)} secrets are in the hub's log, the first at character {log.index(found[0])}"


def _loaded(facility: Path | str | Mapping[str, Any], directory: Path) -> str:
    """Configuration text that loads the facility's. A file is loaded from its directory: it may load others there."""
    if isinstance(facility, Mapping):
        (directory / "values.json").write_text(json.dumps(facility))
        # Setting by setting, as the chart does.
        return (
            "import json\nc = get_config()\n"
            "for _section, _settings in json.load(open('values.json')).items():\n    c[_section].update(_settings)\n"
        )
    if isinstance(facility, str):
        path = directory / "facility_config.py"
        path.write_text(facility)
    else:
        path = facility.resolve()
        assert path.is_file(), f"{path} is not a file"
    return f"c = get_config()\nload_subconfig({path.name!r}, path={str(path.parent)!r})\n"


def _secret_text(content: bytes) -> str:
    return "" if content.lstrip().startswith(b"-----BEGIN CERT") else content.decode(errors="replace").strip()
