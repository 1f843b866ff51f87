"""A real JupyterHub in a process of its own, and a browser for it."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import quote, urljoin, urlsplit

import requests

#: What every hub of the tests has; the rest of the configuration is the test's.
BASE = """
import os
import sys
c = get_config()
c.JupyterHub.bind_url = "http://127.0.0.1:{port}"
c.JupyterHub.hub_port = {hub_port}
c.JupyterHub.db_url = "sqlite:///hub.sqlite"
c.JupyterHub.cookie_secret_file = os.path.abspath("cookie_secret")
c.JupyterHub.proxy_class = "traefik_file"
c.TraefikProxy.traefik_api_url = "http://127.0.0.1:{api_port}"
c.TraefikProxy.traefik_api_username = "hub"
c.TraefikProxy.traefik_api_password = "{password}"
c.TraefikFileProviderProxy.dynamic_config_file = os.path.abspath("routes.toml")
c.TraefikProxy.static_config_file = os.path.abspath("traefik.toml")
c.JupyterHub.services = [{{"name": "tests", "api_token": "{api_token}"}}]
c.JupyterHub.load_roles = [
    {{"name": "tests", "services": ["tests"], "scopes": ["admin:users", "admin:auth_state", "admin:servers", "tokens",
      "access:servers", "read:hub", "shutdown", "groups"]}},
]
c.JupyterHub.log_level = "DEBUG"
"""


#: The authenticator with a clock that a test puts forward.
LATER = """
import time
from pathlib import Path
from casa_hub.authenticator import CasaOAuthenticator

class LaterOAuthenticator(CasaOAuthenticator):
    @staticmethod
    def clock():
        return time.time() + float(Path("ahead").read_text())

c.JupyterHub.authenticator_class = LaterOAuthenticator
c.JupyterHub.spawner_class = "simple"
# JupyterHub's own small server: as good as a notebook's for whether one may be started and reached.
c.Spawner.cmd = [sys.executable, "-m", "jupyterhub.tests.mocksu"]
"""

CLIENT_SECRET = "secret-of-the-client"


def casa_config(issuer: str, **traits: object) -> str:
    """A hub whose users log in at this issuer; `traits` are those of the authenticator."""
    settings = {
        "provider": "wlcg-iam",
        "issuer": issuer,
        "client_id": "hub",
        "client_secret": CLIENT_SECRET,
        "allowed_groups": ["/cms/uscms"],
        **traits,
    }
    return LATER + "".join(f"c.CasaOAuthenticator.{name} = {value!r}\n" for name, value in settings.items())


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def wait_for_port(port: int, *, timeout: float = 20) -> None:
    """Until something listens there; a server that tells nobody that it is ready leaves only the asking."""
    deadline = time.monotonic() + timeout
    while True:
        with contextlib.suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        assert time.monotonic() < deadline, f"nothing listens at port {port}"
        time.sleep(0.05)


#: Where no server has to be reached, the hub is spoken to directly: it starts and stops sooner.
NO_PROXY = """
from jupyterhub.proxy import Proxy

class NoProxy(Proxy):
    should_start = False
    async def add_route(self, routespec, target, data): pass
    async def delete_route(self, routespec): pass
    async def get_all_routes(self): return {}

c.JupyterHub.proxy_class = NoProxy
"""


class Hub:
    """JupyterHub with `config` (Python text) in `directory`."""

    def __init__(
        self, directory: Path, config: str, *, environment: Mapping[str, str] | None = None, proxy: bool = True
    ) -> None:
        self.directory = directory
        self.api_token = secrets.token_hex(16)
        self.port, hub_port, api_port = free_ports(3)
        self.url = f"http://127.0.0.1:{self.port if proxy else hub_port}"
        if not proxy:
            config = NO_PROXY + config
        base = BASE.format(
            port=self.port,
            hub_port=hub_port,
            api_port=api_port,
            password=secrets.token_hex(8),
            api_token=self.api_token,
        )
        (directory / "jupyterhub_config.py").write_text(base + config)
        self.environment = {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "LANG": "C.UTF-8",
            "HOME": str(directory),
            "JUPYTERHUB_CRYPT_KEY": secrets.token_hex(32),
            **(environment or {}),
        }
        self.ahead = 0.0
        self.put_forward(0)
        self._lines: list[str] = []
        self._changed = threading.Condition()
        self.process: subprocess.Popen[str] | None = None
        self._told: subprocess.Popen[str] | None = None

    def put_forward(self, seconds: float) -> None:
        """Let the authenticator of `casa_config` think that it is so much later."""
        self.ahead += seconds
        (self.directory / "ahead.new").write_text(str(self.ahead))
        (self.directory / "ahead.new").replace(self.directory / "ahead")

    @property
    def log(self) -> str:
        with self._changed:
            return "".join(self._lines)

    def start(self, *, timeout: float = 60) -> Hub:
        since = len(self.log)
        self.begin()
        self.wait_for_all(r"JupyterHub is now running", 1, since=since, timeout=timeout)
        return self

    def begin(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "jupyterhub", "-f", "jupyterhub_config.py"],
            cwd=self.directory,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        threading.Thread(target=self._read, args=(self.process,), daemon=True).start()

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            with self._changed:
                self._lines.append(line)
                self._changed.notify_all()
        process.wait()
        with self._changed:
            self._changed.notify_all()

    def wait_for(self, pattern: str, *, timeout: float = 30) -> re.Match[str]:
        """Wait until the log has a match; fails at once when the hub ends without one."""
        return self.wait_for_all(pattern, 1, timeout=timeout)[0]

    def wait_for_all(self, pattern: str, count: int, *, since: int = 0, timeout: float = 30) -> list[re.Match[str]]:
        """Wait for so many matches in the log from an offset on."""
        process = self.process
        assert process is not None

        def found() -> list[re.Match[str]]:
            return list(re.finditer(pattern, "".join(self._lines)[since:]))

        with self._changed:
            self._changed.wait_for(lambda: len(found()) >= count or process.poll() is not None, timeout)
            matches = found()
        assert len(matches) >= count, f"{pattern!r} isn't in the hub's log:\n{self.log[-6000:]}"
        return matches

    def end(self, how: int = signal.SIGINT) -> None:
        """Tell it to end, and don't wait. Once: a second Ctrl-C would break its orderly end off."""
        if self.process is not None and self.process.poll() is None and self._told is not self.process:
            self._told = self.process
            self.process.send_signal(how)

    def stop(self, how: int = signal.SIGINT) -> int:
        self.end(how)
        return self.process.wait(60) if self.process is not None else 0

    @contextlib.contextmanager
    def running(self) -> Iterator[Hub]:
        try:
            yield self.start()
        finally:
            self.stop()

    def api(self, method: str, path: str, *, token: str | None = None, **kwargs: object) -> requests.Response:
        """A request to JupyterHub's API, by the tests' service or with another token."""
        headers = {"Authorization": f"token {token or self.api_token}"}
        return requests.request(method, f"{self.url}/hub/api{path}", headers=headers, timeout=60, **kwargs)  # type: ignore[arg-type]


class Browser(requests.Session):
    """What a person does: follow redirects, keep cookies, press the button at the identity provider."""

    def __init__(self, hub: Hub) -> None:
        super().__init__()
        self.hub = hub
        self.trust_env = False

    def page(self, path: str, **kwargs: object) -> requests.Response:
        return self.get(urljoin(self.hub.url, path), timeout=60, **kwargs)  # type: ignore[arg-type]

    def log_in(self, sub: str, *, next_path: str = "/hub/home") -> requests.Response:
        """From the hub's log-in to wherever it ends."""
        consent = self.page("/hub/oauth_login" + (f"?next={next_path}" if next_path else ""))
        if consent.status_code != 200 or "authorize" not in consent.url:
            return consent
        return self.post(consent.url, data={"sub": sub}, timeout=60)

    def is_in(self) -> bool:
        """Whether a page of the hub is shown; else it sends to the log-in. Nothing else may happen."""
        answer = self.page("/hub/home", allow_redirects=False)
        if answer.status_code == 302:
            assert urlsplit(answer.headers["Location"]).path == "/hub/login"
        else:
            assert answer.status_code == 200, answer.text
        return answer.status_code == 200

    def token(self) -> str:
        """A new API token of this user."""
        path = f"/hub/api/users/{quote(self.user())}/tokens"
        answer = self.post(self.hub.url + path, json={}, headers=self._xsrf(), timeout=60)
        answer.raise_for_status()
        return str(answer.json()["token"])

    def spawn(self, name: str = "") -> requests.Response:
        """Start a server as the page does, with the form's token against forgery."""
        self.page("/hub/home")
        user = self.user()
        path = f"/hub/api/users/{user}/servers/{name}" if name else f"/hub/api/users/{user}/server"
        return self.post(self.hub.url + path, headers=self._xsrf(), timeout=120)

    def user(self) -> str:
        answer = self.get(self.hub.url + "/hub/api/user", headers=self._xsrf(), timeout=60)
        answer.raise_for_status()
        return str(answer.json()["name"])

    def _xsrf(self) -> dict[str, str]:
        cookies = [cookie for cookie in self.cookies if cookie.name == "_xsrf" and cookie.path == "/hub/"]
        return {"X-XSRFToken": str(cookies[0].value)} if cookies else {}
