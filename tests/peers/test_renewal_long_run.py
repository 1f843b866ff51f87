"""A server whose credentials expire several times while it is used: nobody who uses them notices.

A whole facility with macaroons and IDTOKENs that live for 18 seconds: hub, Keeper and a server of it, XCache, HTCondor,
Traefik. One XRootD client, one client of the schedd and one Dask scheduler run from before the first renewal until the
first credentials have expired three times over; meanwhile new ones of each come. Nothing that is refused is tried
again, and in the end the logs of the other side are asked, too, and whether the first credentials are refused by then.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from casa_hub.demo.accounts import MEMBER
from casa_hub.demo.browser import Browser
from casa_hub.demo.facility import Facility
from casa_hub.demo.packages import silent
from casa_hub.demo.processes import Process, free_loopback_address, read_log
from casa_hub.processes import signed_in
from tests.support import condor_client, xrootd_client
from tests.support.dask import TOGETHER, dask_process, expected
from tests.support.peers import REQUIRED, condor, http

#: Seconds that a macaroon and an IDTOKEN live; three lives are over when it ends, and a session of the schedd (60 s).
LIFE, LONG = 18, 72
NAME = MEMBER.name
#: When new ones come, in seconds from the start: before the first renewal, and in each life after it.
ROUNDS = (2, 15, 29, 41, 54, 63)

CONFIG = f"""
load_subconfig("jupyterhub_config.py", path={{path!r}})
c = get_config()
c.XCache.lifetime = c.HTCondor.lifetime = {LIFE}
c.CasaLocalSpawner.cmd = [{sys.executable!r}, "-m", "jupyterhub.tests.mocksu"]
c.CasaLocalSpawner.default_url = ""
"""

#: New ones: what each program at a batch node or a laptop does first.
JOB = {"executable": "/usr/bin/id", "arguments": "-un"}


class Server:
    """The member's server, used from outside as if from inside: with its environment and its files."""

    def __init__(self, facility: Facility, directory: Path) -> None:
        self.facility, self.directory = facility, directory
        browser = Browser(facility.url)
        browser.log_in(NAME)
        browser.spawn(NAME)
        self.secrets = facility.directory / "servers" / NAME
        state = json.loads((self.secrets / "state.json").read_text())
        self.address = state["address"]
        entries = state["record"]["credentials"]
        #: When the first credentials expire, whichever lives longer (epoch seconds).
        self.expiry = max(self._epoch(entries[name]["expires_at"]) for name in ("xcache", "htcondor"))
        self.first = {name: (self.secrets / name).read_text() for name in ("xcache_token", "condor_token")}
        process = signed_in(self.secrets / "process")
        assert process is not None
        self.environment = process.environment()
        self.host = self.environment["HOST_IP"]

    @staticmethod
    def _epoch(text: str) -> float:
        return datetime.fromisoformat(text).timestamp()

    def run(self, program: str, *arguments: str) -> dict[str, Any]:
        """One of the clients, as a process of the server."""
        command = [sys.executable, program, *arguments]
        ran = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=120, cwd="/")
        assert ran.returncode == 0, ran.stderr
        answer: dict[str, Any] = json.loads(ran.stdout)
        return answer

    def read(self, end: float, *ways: str) -> dict[str, Any]:
        assert self.facility.xcache is not None
        return self.run(xrootd_client.__file__, str(end), str(self.facility.xcache.tls.ca_file), *ways)

    def command(self, end: float, pause: float) -> dict[str, Any]:
        return self.run(condor_client.__file__, str(end), str(pause))

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
        ran = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=120, cwd="/")
        assert ran.returncode == 0, ran.stderr
        return ran.stdout.splitlines()


@pytest.fixture
def server(peers_directory: Path, tmp_path: Path) -> Iterator[Server]:
    config = tmp_path / "jupyterhub_config.py"
    config.write_text(CONFIG.format(path=str(Path(sys.modules[Facility.__module__].__file__ or "").parent)))

    class ShortLived(Facility):
        pass

    ShortLived.config = str(config)
    facility = ShortLived(peers_directory / "long-run", port=None, progress=silent)
    with facility.running():
        if facility.missing:
            assert not REQUIRED, facility.missing
            pytest.skip(str(facility.missing))
        assert facility.origin is not None
        for number in range(xrootd_client.FILES):
            facility.origin.add(xrootd_client.path_of(number), xrootd_client.content_of(number))
        yield Server(facility, tmp_path)


@pytest.mark.timeout(240)
def test_nobody_notices_that_credentials_expire(server: Server) -> None:
    facility = server.facility
    assert facility.xcache is not None
    assert facility.pool is not None
    begin = time.time()
    end = begin + LONG
    assert begin < server.expiry - LIFE / 2, "the machine is too busy for this test"
    new: list[dict[str, Any]] = []
    workers: list[str] = []
    jobs: list[dict[str, Any]] = []
    with ExitStack() as stack, ThreadPoolExecutor() as threads:
        scheduler = stack.enter_context(server.scheduler())
        reading = threads.submit(server.read, end, "open", "authz", "named", "https")
        commanding = threads.submit(server.command, end, 0.2)
        for number, at in enumerate(ROUNDS):
            time.sleep(max(0.0, begin + at - time.time()))
            # Dask certificates live as long as a server may; they are issued again when the operator asks for it.
            done = facility.operate("renew", "--credential", "dask", NAME)
            assert done.returncode == 0, done.stdout + done.stderr
            worker = stack.enter_context(server.worker(f"worker-{number}"))
            log = server.directory / f"worker-{number}.log"
            others: list[Future[dict[str, Any]]] = [
                threads.submit(server.read, time.time() + 1, "ztn", "authz", "https"),
                threads.submit(server.command, time.time() + 1, 0),
            ]
            token = (server.secrets / "condor_token").read_text().strip()
            jobs.append(condor(facility.pool, token, "run", job=JOB))
            worker.wait_until("the scheduler knows it", lambda log=log: "Registered to:" in read_log(log), 60)
            workers.append(f"worker-{number}")
            assert server.work(*workers) == expected(workers)
            new += [other.result() for other in others]
        answers = {"reading": reading.result(), "commanding": commanding.result()}
        assert scheduler.running
        assert server.work(*workers) == expected(workers)

    # Three lives of the first credentials are over, in which everybody has worked.
    assert time.time() > server.expiry + 2 * LIFE
    everything = [*answers.values(), *new]
    assert [answer["failures"] for answer in everything] == [[]] * len(everything)
    reads = sum(sum(answer.get("read", {}).values()) for answer in everything)
    commands = sum(answer.get("done", 0) for answer in everything)
    print(f"{reads} reads, {commands} commands, {len(jobs)} jobs, {len(workers)} workers: {answers}")
    assert min(answers["reading"]["read"].values()) > 1000
    assert reads >= 10_000
    assert answers["commanding"]["done"] > 100
    assert commands >= 150
    assert all((job["JobStatus"], job["ExitCode"], job["out"]) == (4, 0, f"{NAME}\n") for job in jobs), jobs
    assert len({job["AuthTokenId"] for job in jobs}) >= 4
    # Nor did the other side refuse anything that a client kept to itself.
    xcache_log, schedd_log = read_log(facility.xcache.log), facility.pool.log("SchedLog")
    assert "permission denied" not in xcache_log
    assert "has been expired for" not in schedd_log
    assert "DENIED" not in schedd_log

    # It is the renewals that did it.
    path = xrootd_client.path_of(1)
    assert http(facility.xcache, path, server.first["xcache_token"], scheme="https").status == 403
    assert "error" in condor(facility.pool, server.first["condor_token"].strip(), "ping", authorization="WRITE")
    token = (server.secrets / "xcache_token").read_text()
    assert http(facility.xcache, path, token, scheme="https").content == xrootd_client.content_of(1)
