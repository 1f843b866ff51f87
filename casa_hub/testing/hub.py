"""A real JupyterHub in a process of its own, for tests."""

from __future__ import annotations

import codecs
import contextlib
import os
import re
import secrets
import select
import signal
import socket
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any, Self

import requests

from casa_hub.testing.browser import Browser

#: What every hub of a test has, whatever else is configured.
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

#: Where no server has to be reached by a browser, the hub is spoken to directly: it starts and stops sooner, and needs
#: no proxy to be installed.
NO_PROXY = """
from jupyterhub.proxy import Proxy

class NoProxy(Proxy):
    should_start = False
    async def add_route(self, routespec, target, data): pass
    async def delete_route(self, routespec): pass
    async def get_all_routes(self): return {}

c.JupyterHub.proxy_class = NoProxy
"""

#: Lets a test put the authenticator's clock forward (`Hub.put_forward`), also that of a site's own subclass.
LATER = """
import time
from pathlib import Path
from casa_hub.authenticator import CasaOAuthenticator
CasaOAuthenticator.clock = staticmethod(lambda: time.time() + float(Path("ahead").read_text()))
"""


def free_ports(count: int, owner: object, address: str = "127.0.0.1") -> list[int]:
    """Ports of a loopback address where nobody listens, and which nobody else is given as long as `owner` exists.

    Each is held by a socket that is bound and doesn't listen. Linux lets a server bind and listen beside it, since both
    have SO_REUSEADDR, and gives the port to nobody who asks for any. Without that, another test on a busy machine gets
    it before the server has started, or while it is started anew.
    """
    held = [socket.socket() for _ in range(count)]
    for each in held:
        weakref.finalize(owner, each.close)
        each.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        each.bind((address, 0))
    return [each.getsockname()[1] for each in held]


class Hub:
    """JupyterHub that runs in `directory`.

    Args:
        directory: an empty one; configuration, database and all that the hub writes is there.
        config: configuration (Python text) after what every hub of a test has.
        first: configuration before that, which it overrules.
        environment: more variables for the hub's process; it inherits PATH only.
        proxy: with JupyterHub's Traefik proxy, for browsers that go to servers (``jupyterhub-traefik-proxy``).
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
        #: Of a service that may do everything that tests do.
        self.api_token = secrets.token_hex(16)
        self.port, hub_port, api_port = free_ports(3, self)
        #: Where browsers go, without a path.
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
        #: What it has said, in pieces, and where the rest of it comes from.
        self._said: list[str] = []
        self._output: _Output | None = None
        self._changed = threading.Condition()
        self.process: subprocess.Popen[bytes] | None = None
        self._told: subprocess.Popen[bytes] | None = None

    def put_forward(self, seconds: float) -> None:
        """Let the authenticator think that it is so much later, with `LATER` in the configuration."""
        self.ahead += seconds
        (self.directory / "ahead.new").write_text(str(self.ahead))
        (self.directory / "ahead.new").replace(self.directory / "ahead")

    @property
    def log(self) -> str:
        """What it has said so far, at level DEBUG: all that it wrote before this was asked for."""
        with self._changed:
            self._take()
            return "".join(self._said)

    def start(self, *, timeout: float = 120) -> Self:
        """Start it and wait until it serves; fails with the end of its log if it doesn't within `timeout` seconds."""
        since = len(self.log)
        self.begin()
        self.wait_for_all(r"JupyterHub is now running", 1, since=since, timeout=timeout)
        return self

    def begin(self) -> None:
        """Start it and don't wait: for one that is expected to refuse."""
        self.process = subprocess.Popen(
            [sys.executable, "-m", "jupyterhub", "-f", "jupyterhub_config.py"],
            cwd=self.directory,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            process_group=0,  # with its proxy, but without the servers, which have sessions of their own
        )
        assert self.process.stdout is not None
        with self._changed:
            self._take()  # the last words of the one before
            self._output = _Output(self.process.stdout)
        threading.Thread(target=self._read, args=(self.process, self._output), daemon=True).start()

    def _read(self, process: subprocess.Popen[bytes], output: _Output) -> None:
        """Take what there is as soon as it is there, or else the hub would wait for room in the pipe."""
        while output.wait():
            with self._changed:
                self._take(output)
        process.wait()
        with self._changed:
            self._changed.notify_all()

    def _take(self, output: _Output | None = None) -> None:
        """Take over what was written by now, whoever comes first. With the lock held."""
        output = output or self._output
        if output is not None and (text := output.take()):
            self._said.append(text)
            self._changed.notify_all()

    def wait_for(self, pattern: str, *, timeout: float = 60) -> re.Match[str]:
        """Wait until the log has a match; fails at once when the hub ends without one."""
        return self.wait_for_all(pattern, 1, timeout=timeout)[0]

    def wait_for_all(self, pattern: str, count: int, *, since: int = 0, timeout: float = 60) -> list[re.Match[str]]:
        """Wait for so many matches in the log from an offset on."""
        process = self.process
        assert process is not None

        matches: list[re.Match[str]] = []

        def over() -> bool:
            ended = process.poll() is not None  # before the last look, which then misses nothing
            self._take()
            matches[:] = re.finditer(pattern, "".join(self._said)[since:])
            return len(matches) >= count or ended

        with self._changed:
            self._changed.wait_for(over, timeout)
        assert len(matches) >= count, f"{pattern!r} isn't in the hub's log:\n{self.log[-6000:]}"
        return matches

    def end(self, how: int = signal.SIGINT) -> None:
        """Tell it to end, and don't wait. Once: a second Ctrl-C would break its orderly end off."""
        if self.process is not None and self.process.poll() is None and self._told is not self.process:
            self._told = self.process
            self.process.send_signal(how)

    def stop(self, how: int = signal.SIGINT) -> int:
        """Tell it to end, wait, and return its exit code."""
        self.end(how)
        if self.process is None:
            return 0
        code = self.process.wait(120)
        if how == signal.SIGKILL:  # nobody else ends the proxy that it had started
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
        return code

    @contextlib.contextmanager
    def running(self) -> Iterator[Self]:
        """Runs until the end of this."""
        try:
            yield self.start()
        finally:
            self.stop()

    def api(self, method: str, path: str, *, token: str | None = None, **kwargs: Any) -> requests.Response:
        """A request to JupyterHub's API, by the tests' service or with another token."""
        headers = {"Authorization": f"token {token or self.api_token}"}
        return requests.request(method, f"{self.url}/hub/api{path}", headers=headers, timeout=60, **kwargs)

    def browser(self) -> Browser:
        """A new one, of somebody who isn't logged in."""
        return Browser(self)


class _Output:
    """The end of a pipe, from which several threads take what there is; one of them waits."""

    def __init__(self, pipe: IO[bytes]) -> None:
        self._pipe = pipe
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._open = True
        os.set_blocking(pipe.fileno(), False)

    def wait(self) -> bool:
        """Until there is more; False at its end."""
        poll = select.poll()
        poll.register(self._pipe, select.POLLIN)
        poll.poll()
        return self._open

    def take(self) -> str:
        """All that was written to the pipe by now, without waiting."""
        pieces = []
        with contextlib.suppress(BlockingIOError):
            while self._open:
                piece = os.read(self._pipe.fileno(), 1 << 16)
                self._open = bool(piece)
                pieces.append(self._decoder.decode(piece))
        return "".join(pieces)
