"""A real JupyterHub with the local spawner, and a third party's installed credential."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import zipfile
from pathlib import Path
from urllib.parse import quote

import requests

from casa_hub.naming import Server
from casa_hub.processes import Process, signed_in
from tests.support.facility_config import credentials, make_keys
from tests.support.hub import SMALL_SERVER, Hub
from tests.support.with_token import WITH_TOKEN

SECRET = "SECRET-OF-THE-HUB"
#: The example for facilities is the third party's package of the tests.
SITE = Path(__file__).parents[2] / "examples" / "site-credential"

#: Configuration for servers that users have, rather than a small one.
JUPYTERLAB = """
c.Spawner.cmd = ["jupyterhub-singleuser"]
c.Spawner.args = ["--allow-root"]
"""
CONFIG = (
    WITH_TOKEN
    + f"""
c.Spawner.cmd = [sys.executable, {SMALL_SERVER!r}]
"""
    + """
c.JupyterHub.spawner_class = "casa-local"
c.JupyterHub.allow_named_servers = True
c.JupyterHub.cleanup_servers = False
# A start is looked at while it goes on; a stop is over when it is answered.
c.JupyterHub.tornado_settings = {"slow_spawn_timeout": 0, "slow_stop_timeout": 50}
c.Authenticator.allow_all = True
c.Spawner.poll_interval = 1
c.Spawner.start_timeout = 60
c.Spawner.http_timeout = 60
c.Spawner.environment = {"SITE_HOST": "the operator's", "FROM_OPERATOR": "yes"}
c.TraefikRoutes.directory = "traefik"
c.LocalDelivery.network = "127.78.0.0/16"
c.Site.key_file = "site.key"
c.Site.host = "badge.example.org"
c.Site.lifetime = 600
c.Site.barred = {"barred"}
"""
    + credentials("site", "xcache", "dask", "bearer", required=("xcache",))
)


def build_site_package(directory: Path) -> Path:
    """The site's package, ready to be found."""
    return build_package(SITE, directory)


def build_package(example: Path, directory: Path) -> Path:
    """A package, built as its author would, and unpacked as an installer does with pure Python."""
    source, target = directory / "source", directory / "site-packages"
    shutil.copytree(example, source)
    build = "import sys, hatchling.build as backend; print(backend.build_wheel(sys.argv[1]))"
    subprocess.run([sys.executable, "-c", build, str(source)], cwd=source, check=True, capture_output=True)
    [wheel] = source.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(target)
    return target


class LocalHub(Hub):
    """A hub of which the tests know all servers, to end them whatever happens."""

    def __init__(self, directory: Path, site_package: Path, config: str = "") -> None:
        environment = {
            "OAUTH_CLIENT_SECRET": SECRET,
            "LD_LIBRARY_PATH": f"/opt/{SECRET}",
            "PYTHONPATH": str(site_package),
        }
        # Asked directly: after each crash of these tests JupyterHub would have to be given a new proxy.
        super().__init__(directory, CONFIG + config, environment=environment, proxy=False)
        self.servers = directory / "casa-hub-servers"
        self.processes: list[Process] = []
        (directory / "traefik").mkdir()
        make_keys(directory, "xcache", "dask")
        # What the example's page has an operator run.
        encoded = subprocess.run(["openssl", "rand", "-base64", "64"], check=True, capture_output=True).stdout
        (directory / "site.key").write_bytes(encoded.replace(b"\n", b"") + b"\n")
        (directory / "site.key").chmod(0o600)

    def start(self, *, timeout: float = 120) -> LocalHub:
        super().start(timeout=timeout)
        return self

    def crash(self) -> None:
        self.stop(signal.SIGKILL)

    def end_all(self) -> None:
        self.stop(signal.SIGKILL)
        for path in self.servers.glob("*/process"):
            self.processes.append(signed_in(path))  # type: ignore[arg-type]
        for process in self.processes:
            if process is not None and process.alive:
                os.killpg(process.pid, signal.SIGKILL)

    def spawn(self, user: str, name: str = "") -> list[dict[str, object]]:
        """Start a server and listen until it is ready, or failed; what its spawn page was told."""
        path = self.begin_spawn(user, name)
        events = []
        with requests.get(
            f"{self.url}/hub/api{path}/progress",
            headers={"Authorization": f"token {self.api_token}"},
            stream=True,
            timeout=180,
        ) as answer:
            for line in answer.iter_lines():
                if line.startswith(b"data:"):
                    events.append(json.loads(line.removeprefix(b"data:")))
                    if events[-1].get("ready") or events[-1].get("failed"):
                        break
        self.remember(user, name)
        return events

    def begin_spawn(self, user: str, name: str = "") -> str:
        self.api("POST", f"/users/{quote(user, safe='')}")
        path = f"/users/{quote(user, safe='')}/" + (f"servers/{name}" if name else "server")
        answer = self.api("POST", path)
        assert answer.status_code in (201, 202), answer.text
        return path

    def remember(self, user: str, name: str = "") -> Process | None:
        process = signed_in(self.path(user, name) / "process")
        if process is not None:
            self.processes.append(process)
        return process

    def path(self, user: str, name: str = "") -> Path:
        return self.servers / Server("", user, name).slug

    def ready(self, user: str) -> set[str]:
        model = self.api("GET", f"/users/{quote(user, safe='')}").json()
        return {name for name, server in model["servers"].items() if server["ready"]}

    def stop_server(self, user: str, name: str = "") -> None:
        path = f"/users/{quote(user, safe='')}/" + (f"servers/{name}" if name else "server")
        answer = self.api("DELETE", path)
        assert answer.status_code in (202, 204), answer.text

    def state(self, user: str, name: str = "") -> dict[str, object]:
        content: dict[str, object] = json.loads((self.path(user, name) / "state.json").read_text())
        return content


def gone(hub: LocalHub, *servers: tuple[str, str]) -> bool:
    """Whether nothing is left of these servers, anywhere."""
    slugs = {Server("", user, name).slug for user, name in servers}
    left = {path.name for path in hub.servers.iterdir()} | {path.stem for path in (hub.directory / "traefik").iterdir()}
    hidden = any(name.startswith((".new", ".old")) for name in left)
    return not (slugs & left or hidden)
