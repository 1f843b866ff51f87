"""Hubs of the tests: those that facilities' own tests have, with a clock that a test puts forward."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Mapping
from pathlib import Path

from casa_hub.testing import hub as general
from casa_hub.testing.browser import Browser
from casa_hub.testing.hub import free_ports

__all__ = ["CLIENT_SECRET", "Browser", "Hub", "casa_config", "free_ports", "wait_for_port"]

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


def wait_for_port(port: int, *, timeout: float = 20) -> None:
    """Until something listens there; a server that tells nobody that it is ready leaves only the asking."""
    deadline = time.monotonic() + timeout
    while True:
        with contextlib.suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        assert time.monotonic() < deadline, f"nothing listens at port {port}"
        time.sleep(0.05)


class Hub(general.Hub):
    """JupyterHub with `config` (Python text) in `directory`."""

    def __init__(
        self, directory: Path, config: str, *, environment: Mapping[str, str] | None = None, proxy: bool = True
    ) -> None:
        super().__init__(directory, config, environment=environment, proxy=proxy)
        self.ahead = 0.0
        self.put_forward(0)

    def put_forward(self, seconds: float) -> None:
        """Let the authenticator of `casa_config` think that it is so much later."""
        self.ahead += seconds
        (self.directory / "ahead.new").write_text(str(self.ahead))
        (self.directory / "ahead.new").replace(self.directory / "ahead")
