"""Certificates that are issued again while a server runs: what is there goes on, what is new can join.

One scheduler runs all the time with what it read at its start, as Dask does. Before each new worker and each new client
the certificates are issued again, by a hub that remembers no more of the start than its record says.
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path

import pytest

from casa_hub.credentials.base import Credential, Request
from casa_hub.credentials.dask import Dask
from casa_hub.delivery import file_layout
from casa_hub.demo.names import HostNames
from casa_hub.demo.traefik import Traefik
from casa_hub.errors import CredentialError
from casa_hub.naming import Server
from tests.support.dask import START, TOGETHER, Running, Site, expected, strict

ALICE = Server("", "alice")


class Cluster(Site):
    """Alice's scheduler and first worker, and the hub's record of her start."""

    def begin(self, stack: ExitStack) -> None:
        self.names.replace({route.host: self.traefik.address for route in self.dask.routes(ALICE)})
        self.running: Running = self.start(ALICE, stack)
        self.stack = stack
        self.running.wait_for(ALICE.slug)

    @property
    def record(self) -> dict[str, str]:
        return dict(json.loads(json.dumps(dict(self.running.credential.state))))

    def issue_again(self) -> Credential:
        """As a hub that was restarted: from its secret file and the record, into the server's directory."""
        hub = Dask(secret_file=str(self.secret), domain="localhost")
        again = hub.mint(Request(ALICE, START, datetime.now(UTC), state=self.record))
        file_layout.write_set(self.running.directory, again.files, datetime.now(UTC))
        file_layout.remove_old_sets(self.running.directory)
        return again

    def rotate(self) -> None:
        """A new secret in front of the ones that are there."""
        before = self.secret.read_bytes()
        self.secret.write_bytes(base64.b64encode(os.urandom(48)) + b"\n" + before)

    def add_worker(self, name: str) -> None:
        self.join(self.running, name, self.stack)
        self.running.wait_for(name)

    def work(self, *workers: str) -> list[str]:
        """What a new client, with the certificates that are there now, is told by these workers."""
        mine = self.running
        ran = self.client(mine.host, mine.file("ca.pem"), mine.file("usercert.pem"), *workers, program=TOGETHER)
        assert ran.returncode == 0, ran.stderr
        return ran.stdout.splitlines()


@pytest.fixture
def cluster(traefik: Traefik, names: HostNames, tmp_path: Path) -> Iterator[Cluster]:
    made = Cluster(tmp_path, traefik, names)
    with ExitStack() as stack:
        made.begin(stack)
        yield made
    made.routes.retract(ALICE, START)


def test_new_workers_and_clients_join_a_scheduler_from_before(cluster: Cluster, tmp_path: Path) -> None:
    """Three times, the last two after the secret was rotated; the first worker is older than all of it."""
    first = cluster.running.credential
    workers = [ALICE.slug]
    assert cluster.work(*workers) == expected(workers)
    for name, rotated in (("second", False), ("third", True), ("fourth", True)):
        if rotated:
            cluster.rotate()
        again = cluster.issue_again()
        assert again.files["ca.pem"] == first.files["ca.pem"]
        assert again.files["hostcert.pem"] != first.files["hostcert.pem"]
        assert again.expires_at == first.expires_at
        cluster.add_worker(name)
        workers.append(name)
        assert cluster.work(*workers) == expected(workers)
    assert len(cluster.secret.read_text().splitlines()) == 3

    # The next start is made with the newest secret, and is a stranger here.
    other = cluster.mint(ALICE, "f" * 32)
    assert other.state["secret"] != first.state["secret"]
    stranger = tmp_path / "stranger.pem"
    stranger.write_bytes(other.files["usercert.pem"])
    mine = cluster.running
    answer = cluster.dial(mine.host, strict(mine.file("ca.pem"), str(stranger)))
    assert answer == "the server refused: TLSV1_ALERT_UNKNOWN_CA"
    ran = cluster.client(mine.host, mine.file("ca.pem"), str(stranger))
    assert (ran.returncode != 0, ran.stdout) == (True, "")
    assert cluster.dial(mine.host, strict(mine.file("ca.pem"), mine.file("usercert.pem"))) == "welcome"


def test_without_the_secret_of_the_start_nothing_is_issued_and_what_runs_goes_on(cluster: Cluster) -> None:
    cluster.rotate()
    before = cluster.secret.read_text()
    cluster.secret.write_text(before.splitlines()[0] + "\n")
    with pytest.raises(CredentialError, match=cluster.record["secret"]):
        cluster.issue_again()
    # A worker that is started now has what was there before.
    cluster.add_worker("late")
    assert cluster.work(ALICE.slug, "late") == expected([ALICE.slug, "late"])
    cluster.secret.write_text(before)
    assert cluster.issue_again().expires_at == cluster.running.credential.expires_at
