"""A whole facility with credentials that live for seconds, and a member's server of it, used as if from inside."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from casa_hub.demo.accounts import MEMBER
from casa_hub.demo.browser import Browser
from casa_hub.demo.facility import Facility
from casa_hub.demo.packages import silent
from casa_hub.demo.processes import Process, free_loopback_address
from casa_hub.processes import signed_in
from tests.support import condor_client, xrootd_client
from tests.support.dask import TOGETHER, dask_process
from tests.support.hub import SMALL_SERVER
from tests.support.peers import REQUIRED

NAME = MEMBER.name

_CONFIG = """
load_subconfig("jupyterhub_config.py", path={path!r})
c = get_config()
c.XCache.lifetime = c.HTCondor.lifetime = {life}
c.CasaLocalSpawner.cmd = [{python!r}, {small_server!r}]
c.CasaLocalSpawner.default_url = ""
"""


@contextmanager
def short_lived(directory: Path, scratch: Path, *, life: int, config: str = "") -> Iterator[Facility]:
    """The demo's facility with `life` seconds for macaroons and IDTOKENs, and with more of a configuration."""
    file = scratch / "jupyterhub_config.py"
    demo = Path(sys.modules[Facility.__module__].__file__ or "").parent
    file.write_text(
        _CONFIG.format(path=str(demo), life=life, python=sys.executable, small_server=SMALL_SERVER) + config
    )

    class ShortLived(Facility):
        pass

    ShortLived.config = str(file)
    facility = ShortLived(directory, port=None, progress=silent)
    with facility.running():
        if facility.missing:
            assert not REQUIRED, facility.missing
            pytest.skip(str(facility.missing))
        assert facility.origin is not None
        for number in range(xrootd_client.FILES):
            facility.origin.add(xrootd_client.path_of(number), xrootd_client.content_of(number))
        yield facility


class Served:
    """The member's server, used from outside as if from inside: with its environment and its files."""

    def __init__(self, facility: Facility, directory: Path) -> None:
        self.facility, self.directory = facility, directory
        self.browser = Browser(facility.url)
        self.browser.log_in(NAME)
        self.browser.spawn(NAME)
        self.secrets = facility.directory / "servers" / NAME
        self.look()
        process = signed_in(self.secrets / "process")
        assert process is not None
        self.process = process
        self.environment = process.environment()
        self.host = self.environment["HOST_IP"]

    def look(self) -> None:
        """Take those credentials for the first that are there now."""
        state = json.loads((self.secrets / "state.json").read_text())
        self.address = state["address"]
        entries = state["record"]["credentials"]
        #: When the first credentials expire, whichever lives longer (epoch seconds).
        self.expiry = max(self._epoch(entries[name]["expires_at"]) for name in ("xcache", "htcondor"))
        self.first = {name: (self.secrets / name).read_text() for name in ("xcache_token", "condor_token")}

    def fresh(self, seconds: float) -> None:
        """Wait until the first credentials live so much longer: where the start took too long, for the next ones."""
        deadline = time.monotonic() + 120
        while time.time() > self.expiry - seconds:
            assert time.monotonic() < deadline, "the credentials are never so fresh"
            time.sleep(0.05)
            self.look()

    @staticmethod
    def _epoch(text: str) -> float:
        return datetime.fromisoformat(text).timestamp()

    def run(self, program: str, *arguments: str, at_least: int = 0, pause: float = 0.0) -> dict[str, Any]:
        """One of the clients, as a process of the server."""
        command = [sys.executable, program, *arguments]
        environment = {**self.environment, "AT_LEAST": str(at_least), "PAUSE": str(pause)}
        ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500, cwd="/")
        assert ran.returncode == 0, ran.stderr
        answer: dict[str, Any] = json.loads(ran.stdout)
        return answer

    def read(self, end: float, *ways: str, at_least: int = 0, pause: float = 0.0) -> dict[str, Any]:
        assert self.facility.xcache is not None
        authority = str(self.facility.xcache.tls.ca_file)
        return self.run(xrootd_client.__file__, str(end), authority, *ways, at_least=at_least, pause=pause)

    def command(self, end: float, pause: float, *, at_least: int = 0) -> dict[str, Any]:
        return self.run(condor_client.__file__, str(end), str(pause), at_least=at_least)

    # Dask

    def scheduler(self) -> Process:
        arguments = ["scheduler", "--host", f"tls://{self.address}:8786", "--no-dashboard"]
        return dask_process("scheduler", arguments, self.directory, self.secrets / "..data", self.environment)

    def worker(self, name: str) -> Process:
        """As at a batch node, with a copy of what is there now."""
        copy = self.directory / f"copy-{name}"
        shutil.copytree(self.secrets / "..data", copy)
        address = free_loopback_address(8788)
        arguments = ["worker", f"tls://{self.host}:8786", "--name", name, "--nthreads", "1", "--no-nanny"]
        arguments += ["--no-dashboard", "--listen-address", f"tls://{address}:8788"]
        arguments += ["--local-directory", str(self.directory / f"scratch-{name}")]
        return dask_process(name, arguments, self.directory, copy, self.environment)

    def work(self, *workers: str) -> list[str]:
        """What a new client is told by these workers."""
        files = [str(self.secrets / name) for name in ("ca.pem", "usercert.pem")]
        command = [sys.executable, "-c", TOGETHER, self.host, *files, *workers]
        ran = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=240, cwd="/")
        assert ran.returncode == 0, ran.stderr
        return ran.stdout.splitlines()
