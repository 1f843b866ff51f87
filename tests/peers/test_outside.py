"""Credentials that a person takes to a laptop by the hub's API, at those who accept them, until their short life ends.

The demo's facility, whose hub mints with the keys of the real XCache, the real pool and the server's CA. The servers'
own credentials live for an hour meanwhile: only what was taken outside ends.
"""

from __future__ import annotations

import base64
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import requests

from casa_hub.demo.processes import read_log
from tests.support.dask import dial, strict
from tests.support.peers import condor, http
from tests.support.served import NAME, Served, short_lived
from tests.support.xrootd_client import content_of, path_of

#: Seconds of life that are asked for; and how much later, at most, the last client may begin that is accepted.
LIFE, LATER = 40, 20


@pytest.fixture
def served(peers_directory: Path, tmp_path: Path) -> Iterator[Served]:
    with short_lived(peers_directory / "outside", tmp_path, life=3600) as facility:
        yield Served(facility, tmp_path)


class Laptop:
    """Has a token with the scopes of three credentials, and nothing else of the hub."""

    def __init__(self, served: Served, directory: Path) -> None:
        self.facility, self.host, self.directory = served.facility, served.host, directory
        scopes = [f"custom:casa-hub:credential:{name}" for name in ("xcache", "htcondor", "dask")]
        answer = served.browser.call("POST", f"/hub/api/users/{NAME}/tokens", json={"scopes": scopes})
        answer.raise_for_status()
        self._token = answer.json()["token"]

    def take(self, name: str, **asked: Any) -> float:
        """Ask for a credential, and write its files; returns when it expires, in epoch seconds."""
        answer = requests.post(
            f"{self.facility.url}/hub/api/casa/credentials/{name}",
            headers={"Authorization": f"Bearer {self._token}"},
            json=asked,
            timeout=60,
        )
        assert answer.status_code == 200, answer.text
        for path, content in answer.json()["files"].items():
            file = self.directory / path
            file.parent.mkdir(exist_ok=True)
            file.write_bytes(base64.b64decode(content))
        return datetime.fromisoformat(answer.json()["expires_at"]).timestamp()

    def reads(self) -> bool:
        assert self.facility.xcache is not None
        token = (self.directory / "xcache_token").read_text()
        answer = http(self.facility.xcache, path_of(1), token, scheme="https")
        assert answer.status in {200, 403}
        assert answer.status == 403 or answer.content == content_of(1)
        return answer.status == 200

    def commands(self) -> bool:
        assert self.facility.pool is not None
        token = (self.directory / "condor_token").read_text().strip()
        return "error" not in condor(self.facility.pool, token, "ping", authorization="WRITE")

    def opens_the_scheduler(self) -> bool:
        context = strict(str(self.directory / "ca.pem"), str(self.directory / "usercert.pem"))
        return dial(self.facility.address, 8786, self.host, context) == "welcome"


def test_a_laptop_s_credentials_are_accepted_and_end_after_the_life_that_was_asked_for(
    served: Served, tmp_path: Path
) -> None:
    with served.scheduler() as scheduler:
        scheduler.wait_until("it is there", lambda: "Scheduler at:" in read_log(served.directory / "scheduler.log"), 90)
        (tmp_path / "laptop").mkdir()
        laptop = Laptop(served, tmp_path / "laptop")
        ways = {"xcache": laptop.reads, "htcondor": laptop.commands, "dask": laptop.opens_the_scheduler}
        # With a long life first: the way to each is there and open.
        for name, works in ways.items():
            laptop.take(name)
            scheduler.wait_until(f"{name} is open", works, 60)
        expiry = {name: laptop.take(name, lifetime=LIFE) for name in ways}
        accepted = {name: works() for name, works in ways.items()}
        assert time.time() < min(expiry.values()) - 1, "the machine is too busy for this test"
        assert all(accepted.values()), accepted
        for name, works in ways.items():
            while works():
                assert time.time() < expiry[name] + LATER, f"{name} is still accepted"
                time.sleep(0.2)
            assert time.time() > expiry[name] - 1, f"{name} was refused before its end"
        # What refuses is the end of the life, and nothing else that has changed.
        for name, works in ways.items():
            laptop.take(name)
            assert works(), name
