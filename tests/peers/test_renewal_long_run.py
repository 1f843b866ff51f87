"""A server whose credentials expire several times while it is used: nobody who uses them notices.

A whole facility with macaroons and IDTOKENs that live for 18 seconds: hub, Keeper and a server of it, XCache, HTCondor,
Traefik. One XRootD client, one client of the schedd and one Dask scheduler run from before the first renewal until the
first credentials have expired two or three times over (`tests.support.scale`); meanwhile new ones of each come. Nothing
that is refused is tried again, and in the end the logs of the other side are asked, too, and whether the first
credentials are refused by then.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from casa_hub.demo.processes import read_log
from tests.support import xrootd_client
from tests.support.dask import expected
from tests.support.peers import condor, http
from tests.support.scale import LIVES, READS, READS_PAUSE, scaled
from tests.support.served import NAME, Served, short_lived

#: Seconds that a macaroon and an IDTOKEN live, and of the test: so many lives are over when it ends. In full, a session
#: of the schedd (60 s) has ended, too.
LIFE = 18
LONG = LIVES * LIFE * 4 // 3
#: When new ones come, in seconds from the start: before the first renewal, and in each life after it.
ROUNDS = scaled((2, 22, 41), (2, 15, 29, 41, 54, 63))

#: New ones: what each program at a batch node or a laptop does first.
JOB = {"executable": "/usr/bin/id", "arguments": "-un"}


@pytest.fixture
def server(peers_directory: Path, tmp_path: Path) -> Iterator[Served]:
    with short_lived(peers_directory / "long-run", tmp_path, life=LIFE) as facility:
        yield Served(facility, tmp_path)


@pytest.mark.soak
@pytest.mark.timeout(700)
def test_nobody_notices_that_credentials_expire(server: Served) -> None:
    facility = server.facility
    assert facility.xcache is not None
    assert facility.pool is not None
    server.fresh(LIFE / 2)  # to begin before their renewal
    begin = time.time()
    end = begin + LONG
    new: list[dict[str, Any]] = []
    workers: list[str] = []
    jobs: list[dict[str, Any]] = []
    with ExitStack() as stack, ThreadPoolExecutor() as threads:
        scheduler = stack.enter_context(server.scheduler())
        reading = threads.submit(server.read, end, "open", "authz", "named", "https", at_least=READS, pause=READS_PAUSE)
        commanding = threads.submit(server.command, end, 0.2, at_least=150)
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
            worker.wait_until("the scheduler knows it", lambda log=log: "Registered to:" in read_log(log), 120)
            workers.append(f"worker-{number}")
            assert server.work(*workers) == expected(workers)
            new += [other.result() for other in others]
        answers = {"reading": reading.result(), "commanding": commanding.result()}
        assert scheduler.running
        assert server.work(*workers) == expected(workers)

    # So many lives are over, that of the first credentials included, in which everybody has worked.
    assert time.time() > server.expiry + (LIVES - 1) * LIFE
    everything = [*answers.values(), *new]
    assert [answer["failures"] for answer in everything] == [[]] * len(everything)
    reads = sum(sum(answer.get("read", {}).values()) for answer in everything)
    commands = sum(answer.get("done", 0) for answer in everything)
    print(f"{reads} reads, {commands} commands, {len(jobs)} jobs, {len(workers)} workers: {answers}")
    assert min(answers["reading"]["read"].values()) >= READS
    assert reads >= 4 * READS
    assert answers["commanding"]["done"] > 100
    assert commands >= 150
    assert all((job["JobStatus"], job["ExitCode"], job["out"]) == (4, 0, f"{NAME}\n") for job in jobs), jobs
    assert len({job["AuthTokenId"] for job in jobs}) >= LIVES + 1
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
