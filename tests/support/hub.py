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
from urllib.parse import urljoin

import requests

#: What every hub of the tests has; the rest of the configuration is the test's.
BASE = """
import os
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


class Hub:
    """JupyterHub with `config` (Python text) in `directory`."""

    def __init__(self, directory: Path, config: str, *, environment: Mapping[str, str] | None = None) -> None:
        self.directory = directory
        self.api_token = secrets.token_hex(16)
        self.port, hub_port, api_port = free_ports(3)
        self.url = f"http://127.0.0.1:{self.port}"
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
        self._lines: list[str] = []
        self._changed = threading.Condition()
        self.process: subprocess.Popen[str] | None = None

    @property
    def log(self) -> str:
        with self._changed:
            return "".join(self._lines)

    def start(self, *, timeout: float = 60) -> Hub:
        self.begin()
        self.wait_for(r"JupyterHub is now running", timeout=timeout)
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
        assert self.process is not None

        def found() -> bool:
            return re.search(pattern, "".join(self._lines)) is not None or self.process.poll() is not None

        with self._changed:
            self._changed.wait_for(found, timeout)
            match = re.search(pattern, "".join(self._lines))
        assert match is not None, f"{pattern!r} isn't in the hub's log:\n{self.log[-6000:]}"
        return match

    def stop(self, how: int = signal.SIGINT) -> int:
        if self.process is None:
            return 0
        if self.process.poll() is None:
            self.process.send_signal(how)
        return self.process.wait(60)

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

    def log_in(self, sub: str, *, next_path: str = "") -> requests.Response:
        """From the hub's log-in to wherever it ends."""
        consent = self.page("/hub/oauth_login" + (f"?next={next_path}" if next_path else ""))
        if consent.status_code != 200 or "authorize" not in consent.url:
            return consent
        return self.post(consent.url, data={"sub": sub}, timeout=60)

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
