"""A real JupyterHub in its own process, for tests."""

from __future__ import annotations

import base64
import codecs
import contextlib
import hashlib
import os
import re
import secrets
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Self

import requests

from casa_hub.loopback import free_ports
from casa_hub.testing.browser import Browser

#: Configuration of every test hub.
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
# By default bcrypt, which takes a good part of a second whenever the hub asks for a route: twice for each server.
c.TraefikProxy.traefik_api_hashed_password = "{password_hash}"
c.TraefikFileProviderProxy.dynamic_config_file = os.path.abspath("routes.toml")
c.TraefikProxy.static_config_file = os.path.abspath("traefik.toml")
# Append: a configuration that came before may have services and roles of its own.
c.JupyterHub.setdefault("services", [])
c.JupyterHub.services.append({{"name": "tests", "api_token": "{api_token}"}})
c.JupyterHub.setdefault("load_roles", [])
c.JupyterHub.load_roles.append(
    {{"name": "tests", "services": ["tests"], "scopes": ["admin:users", "admin:auth_state", "admin:servers", "tokens",
      "access:servers", "read:hub", "shutdown", "groups"]}}
)
c.JupyterHub.log_level = "DEBUG"
"""

#: Configuration without a proxy, for tests whose browsers don't go to servers: browsers connect to the hub directly.
#: The hub starts and stops faster, and no proxy has to be installed.
NO_PROXY = """
from jupyterhub.proxy import Proxy

class NoProxy(Proxy):
    should_start = False
    async def add_route(self, routespec, target, data): pass
    async def delete_route(self, routespec): pass
    async def get_all_routes(self): return {}

c.JupyterHub.proxy_class = NoProxy
"""

#: Configuration that lets a test put the authenticator's clock forward (`Hub.put_forward`), also of a site's subclass.
LATER = """
import time
from pathlib import Path
from casa_hub.authenticator import CasaOAuthenticator
CasaOAuthenticator.clock = staticmethod(lambda: time.time() + float(Path("ahead").read_text()))
"""


def password_hash(password: str) -> str:
    """As in a file of htpasswd(1), for a random password: nobody can guess it, so the hash need not be slow."""
    return "{SHA}" + base64.b64encode(hashlib.sha1(password.encode(), usedforsecurity=False).digest()).decode()


class Hub:
    """A JupyterHub that runs in `directory`.

    Args:
        directory: an empty one, for configuration, database and all that the hub writes.
        config: configuration (Python text) after `BASE`.
        first: configuration before `BASE`, which overrules it.
        environment: more variables for the hub's process, which inherits only PATH.
        proxy: whether to start JupyterHub's Traefik proxy (``jupyterhub-traefik-proxy``), for browsers that go to
            servers.
    """

    def __init__(
        self,
        directory: Path,
        config: str,
        *,
        first: str = "",
        environment: Mapping[str, str] | None = None,
        proxy: bool = True,
    ) -> None:
        self.directory = directory
        #: API token of the tests' service, whose scopes are in `BASE`.
        self.api_token = secrets.token_hex(16)
        self.port, hub_port, api_port = free_ports(3, self)
        #: URL for browsers, without a path.
        self.url = f"http://127.0.0.1:{self.port if proxy else hub_port}"
        if not proxy:
            config = NO_PROXY + config
        password = secrets.token_hex(16)
        base = BASE.format(
            port=self.port,
            hub_port=hub_port,
            api_port=api_port,
            password=password,
            password_hash=password_hash(password),
            api_token=self.api_token,
        )
        (directory / "jupyterhub_config.py").write_text(first + base + config)
        self.environment = {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "LANG": "C.UTF-8",
            "HOME": str(directory),
            "JUPYTERHUB_CRYPT_KEY": secrets.token_hex(32),
            **(environment or {}),
        }
        self.ahead = 0.0
        self.put_forward(0)
        #: The log so far, in pieces, and the pipe with the rest of it.
        self._said: list[str] = []
        self._output: _Output | None = None
        self._changed = threading.Condition()
        self.process: subprocess.Popen[bytes] | None = None
        #: The process that was told to end.
        self._told: subprocess.Popen[bytes] | None = None

    def put_forward(self, seconds: float) -> None:
        """Put the authenticator's clock forward. Needs `LATER` in the configuration."""
        self.ahead += seconds
        (self.directory / "ahead.new").write_text(str(self.ahead))
        (self.directory / "ahead.new").replace(self.directory / "ahead")

    @property
    def log(self) -> str:
        """The hub's log so far, at level DEBUG, with all that the hub wrote before this call."""
        with self._changed:
            self._take()
            return "".join(self._said)

    def start(self, *, timeout: float = 120) -> Self:
        """Start the hub and wait until it serves; fails with the end of its log after `timeout` seconds."""
        since = len(self.log)
        self.begin()
        self.wait_for_all(r"JupyterHub is now running", 1, since=since, timeout=timeout)
        return self

    def begin(self) -> None:
        """Start the hub without waiting, such as to see that it refuses its configuration."""
        self.process = self.popen(["-f", "jupyterhub_config.py"])
        assert self.process.stdout is not None
        with self._changed:
            self._take()  # the rest of the log of the process before
            self._output = _Output(self.process.stdout)
        threading.Thread(target=self._read, args=(self.process, self._output), daemon=True).start()

    def popen(self, arguments: Sequence[str]) -> subprocess.Popen[bytes]:
        """A new hub's process with these arguments; its output and errors come from `stdout`."""
        return subprocess.Popen(
            [sys.executable, "-m", "jupyterhub", *arguments],
            cwd=self.directory,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            process_group=0,  # with its proxy, but without the servers, which have sessions of their own
        )

    def _read(self, process: subprocess.Popen[bytes], output: _Output) -> None:
        """Read the log as soon as the hub writes it: with a full pipe the hub would wait."""
        while output.wait():
            with self._changed:
                self._take(output)
        process.wait()
        with self._changed:
            self._changed.notify_all()

    def _take(self, output: _Output | None = None) -> None:
        """Append what the hub has written by now to the log. The caller holds the lock."""
        output = output or self._output
        if output is not None and (text := output.take()):
            self._said.append(text)
            self._changed.notify_all()

    def wait_for(self, pattern: str, *, timeout: float = 60) -> re.Match[str]:
        """Wait until the log matches; fails at once if the hub ends without a match."""
        return self.wait_for_all(pattern, 1, timeout=timeout)[0]

    def wait_for_all(self, pattern: str, count: int, *, since: int = 0, timeout: float = 60) -> list[re.Match[str]]:
        """Wait until the log has `count` matches behind the offset `since`."""
        process = self.process
        assert process is not None

        matches: list[re.Match[str]] = []

        def over() -> bool:
            ended = process.poll() is not None  # asked first: the log is complete then
            self._take()
            matches[:] = re.finditer(pattern, "".join(self._said)[since:])
            return len(matches) >= count or ended

        with self._changed:
            self._changed.wait_for(over, timeout)
        assert len(matches) >= count, f"{pattern!r} isn't in the hub's log:\n{self.log[-6000:]}"
        return matches

    def end(self, how: int = signal.SIGINT) -> None:
        """Tell the hub to end, without waiting. Only once: a second Ctrl-C would cut its shutdown short."""
        if self.process is not None and self.process.poll() is None and self._told is not self.process:
            self._told = self.process
            self.process.send_signal(how)

    def stop(self, how: int = signal.SIGINT) -> int:
        """Tell the hub to end, wait, and return its exit code.
        Raises subprocess.TimeoutExpired if it does not end; it is killed then, or pytest would not end, either.
        """
        self.end(how)
        if self.process is None:
            return 0
        try:
            code = self.process.wait(120)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            raise
        if how == signal.SIGKILL:  # a killed hub leaves its proxy running
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
        return code

    @contextlib.contextmanager
    def running(self) -> Iterator[Self]:
        """A context in which the hub runs."""
        try:
            yield self.start()
        finally:
            self.stop()

    def api(self, method: str, path: str, *, token: str | None = None, **kwargs: Any) -> requests.Response:
        """A request to JupyterHub's API, by default with the token of the tests' service."""
        headers = {"Authorization": f"token {token or self.api_token}"}
        return requests.request(method, f"{self.url}/hub/api{path}", headers=headers, timeout=60, **kwargs)

    def browser(self) -> Browser:
        """A new browser, which isn't logged in."""
        return Browser(self)


class _Output:
    """The reading end of a pipe. Several threads take from it; one of them waits for more."""

    def __init__(self, pipe: IO[bytes]) -> None:
        self._pipe = pipe
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._open = True
        os.set_blocking(pipe.fileno(), False)

    def wait(self) -> bool:
        """Wait until there is more to read; False at the pipe's end."""
        poll = select.poll()
        poll.register(self._pipe, select.POLLIN)
        poll.poll()
        return self._open

    def take(self) -> str:
        """All that is in the pipe now, without waiting."""
        pieces = []
        with contextlib.suppress(BlockingIOError):
            while self._open:
                piece = os.read(self._pipe.fileno(), 1 << 16)
                self._open = bool(piece)
                pieces.append(self._decoder.decode(piece))
        return "".join(pieces)
