"""Hubs of the tests: those that facilities' own tests have, but for how they are started."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from casa_hub.testing import hub
from casa_hub.testing.browser import Browser
from casa_hub.testing.facility import FacilityHub
from casa_hub.testing.hub import LATER
from tests.support.forked import Forked

__all__ = ["CLIENT_SECRET", "SMALL_SERVER", "Browser", "Hub", "all_ended", "casa_config", "wait_for_port"]

#: As good as a notebook's server for whether one may be started and reached.
SMALL_SERVER = str(Path(__file__).with_name("small_server.py"))
#: Log-ins, and servers that come and go at once.
SERVERS = f"""
c.JupyterHub.authenticator_class = "casa"
c.JupyterHub.spawner_class = "simple"
c.Spawner.cmd = [sys.executable, {SMALL_SERVER!r}]
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
    return LATER + SERVERS + "".join(f"c.CasaOAuthenticator.{name} = {value!r}\n" for name, value in settings.items())


class Hub(hub.Hub):
    """A JupyterHub that needs a quarter of the processor time to start."""

    def popen(self, arguments: Sequence[str]) -> subprocess.Popen[bytes]:
        return Forked("jupyterhub", arguments, self.directory, self.environment)


@pytest.fixture(scope="session", autouse=True)
def forked_facility_hubs() -> Iterator[None]:
    """The hubs of facilities' own tests (`casa_hub.testing`) start as quickly; for a directory that imports this."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FacilityHub, "popen", Hub.popen)
        yield


@contextlib.contextmanager
def all_ended() -> Iterator[list[Hub]]:
    """A list for hubs: they end together, whatever happened."""
    hubs: list[Hub] = []
    try:
        yield hubs
    finally:
        for hub in hubs:
            hub.end()
        for hub in hubs:
            hub.stop()


def wait_for_port(port: int, *, timeout: float = 60) -> None:
    """Until something listens there; a server that tells nobody that it is ready leaves only the asking."""
    deadline = time.monotonic() + timeout
    while True:
        with contextlib.suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        assert time.monotonic() < deadline, f"nothing listens at port {port}"
        time.sleep(0.05)
