"""Somebody leaves the group: when it is over, seen from XCache, the pool, Traefik and the hub.

A server with real credentials is used; then the identity provider, of which nobody tells the hub, drops the person from
the group. What the person had copied before is used on.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import requests

from casa_hub.audit import PREFIX
from casa_hub.demo.accounts import MEMBER
from casa_hub.demo.processes import read_log
from tests.support.dask import dial, strict
from tests.support.peers import condor, http
from tests.support.served import NAME, Served, short_lived
from tests.support.xrootd_client import content_of, path_of

LIFE, RECHECK = 60, 4
#: Seconds that are promised.
PROMISED = RECHECK + 30


@pytest.fixture
def served(peers_directory: Path, tmp_path: Path) -> Iterator[Served]:
    config = f"c.Keeper.recheck_interval = {RECHECK}\n"
    with short_lived(peers_directory / "departure", tmp_path, life=LIFE, config=config) as facility:
        yield Served(facility, tmp_path)


class Copies:
    """What the person has on a laptop, and what can still be done with it."""

    def __init__(self, served: Served, directory: Path) -> None:
        self.served = served
        self.xcache, self.pool = served.facility.xcache, served.facility.pool
        self.macaroon, self.token = served.first["xcache_token"], served.first["condor_token"].strip()
        for name in ("ca.pem", "usercert.pem"):
            (directory / name).write_bytes((served.secrets / name).read_bytes())
        self._context = strict(str(directory / "ca.pem"), str(directory / "usercert.pem"))
        answer = served.browser.call("POST", f"/hub/api/users/{NAME}/tokens")
        answer.raise_for_status()
        self._api_token = answer.json()["token"]

    def reads(self) -> bool:
        assert self.xcache is not None
        answer = http(self.xcache, path_of(1), self.macaroon, scheme="https")
        assert answer.status in {200, 403}
        assert answer.status == 403 or answer.content == content_of(1)
        return answer.status == 200

    def commands(self) -> bool:
        assert self.pool is not None
        return "error" not in condor(self.pool, self.token, "ping", authorization="WRITE")

    def opens_the_scheduler(self) -> bool:
        return dial(self.served.facility.address, 8786, self.served.host, self._context) == "welcome"

    def asks_the_api(self) -> bool:
        headers = {"Authorization": f"token {self._api_token}"}
        return requests.get(f"{self.served.facility.url}/hub/api/user", headers=headers, timeout=30).ok

    def sees_a_page(self) -> bool:
        answer = self.served.browser.get(f"{self.served.facility.url}/hub/home", timeout=30, allow_redirects=False)
        return answer.status_code == 200

    def has_files(self) -> bool:
        return (self.served.secrets / "xcache_token").exists()

    def has_a_server(self) -> bool:
        return self.served.process.alive


def test_who_leaves_has_nothing_within_the_time_but_copies_that_can_be_blocked(served: Served, tmp_path: Path) -> None:
    facility = served.facility
    with ExitStack() as stack:
        # Outside the server, so that it goes on when that is stopped: what ends is the way to it.
        scheduler = stack.enter_context(served.scheduler())
        scheduler.wait_until("it is there", lambda: "Scheduler at:" in read_log(served.directory / "scheduler.log"), 90)
        copies = Copies(served, tmp_path)
        # Traefik takes up what changed in its directory when it comes to it.
        scheduler.wait_until("the way to it is there", copies.opens_the_scheduler, 60)
        ends: dict[str, Callable[[], bool]] = {
            # Pages and the API last: who asks for them has the membership looked at, and here nobody does.
            "files": copies.has_files,
            "route": copies.opens_the_scheduler,
            "server": copies.has_a_server,
            "API token": copies.asks_the_api,
            "page": copies.sees_a_page,
        }
        worked = {
            name: works() for name, works in (ends | {"macaroon": copies.reads, "token": copies.commands}).items()
        }
        assert all(worked.values()), worked

        claims = MEMBER.claims | {"wlcg.groups": ["/cms"]}
        requests.put(f"{facility.issuer}/users/{NAME}", json=claims, timeout=30).raise_for_status()
        left = time.time()
        seconds: dict[str, float] = {}
        while len(seconds) < len(ends):
            for name, works in ends.items():
                if name not in seconds and not works():
                    seconds[name] = round(time.time() - left, 1)
                if name not in seconds:
                    break
            assert time.time() - left < PROMISED, seconds
        assert scheduler.running
        log = facility.hub.log if facility.hub is not None else Path()

        # The copies: nothing but their end, or whoever is told what to block, ends them.
        reads, commands = copies.reads(), copies.commands()
        assert time.time() < served.expiry - 1, "the machine is too busy for this test"
        assert (reads, commands) == (True, True)
        scheduler.wait_until("the end is told", lambda: '"access-ended"' in read_log(log), 60)
        told = [json.loads(line) for line in re.findall(rf"{PREFIX}(.*)", read_log(log))]
        revoked = {event["credential"]: event["identifiers"] for event in told if event["action"] == "revoked"}
        assert revoked.keys() == {"xcache", "htcondor", "dask", "bearer", "exchange:rucio", "x509"}
        assert facility.pool is not None
        facility.pool.reconfigure(
            f'SEC_TOKEN_REVOCATION_EXPR = stringListMember(jti, "{revoked["htcondor"]["jti"]}")\n'
        )
        assert not copies.commands()
        seconds["IDTOKEN, blocked by its jti"] = round(time.time() - left, 1)
        while copies.reads():
            assert time.time() < served.expiry + 20
            time.sleep(0.2)
        seconds["macaroon, by itself"] = round(time.time() - left, 1)
        assert time.time() > served.expiry - 2
    print(f"seconds until it was over: {seconds}")
    assert served.browser.log_in(NAME).status_code == 403
