"""A hub that is killed again and again while pods start and stop and their credentials are renewed.

Some kills come by the clock, the others with a renewal's request on its way to the API server: it arrives, it is lost,
its answer is lost, or it arrives when the next hub has renewed that server. CASA_HUB_KILL_SEED repeats a run, as far as
clocks allow. How many kills: `tests.support.scale`.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import random
import signal
import threading
import time
from collections import Counter
from datetime import datetime
from typing import Any

import pytest
import requests

from casa_hub.delivery.kubernetes.manifests import RECORD, START_ID
from tests.kubernetes.hub.faulty import Faulty, open_faulty
from tests.support.kubernetes.api import Api, KubernetesError
from tests.support.kubernetes.fault_proxy import Hold, Rule
from tests.support.scale import KILLS
from tests.support.sound import Keys
from tests.support.waiting import until_none

#: Servers that run all the time, and those that come and go.
STAY, COME = [f"stay-{number}" for number in range(6)], [f"come-{number}" for number in range(3)]
#: A renewal of a server that stays; a start's request has more in its query.
RENEWAL = ("PATCH", r"/secrets/casa-stay-[^/?]*\?fieldManager=casa-hub$")
WAYS = ["clock", "arrives", "is lost", "arrives late", "its answer is lost"]

#: What a look may meet before all objects of a start are there.
BETWEEN = (AssertionError, KeyError, KubernetesError)

CONFIG = """
c.XCache.lifetime = 4
c.HTCondor.lifetime = 40
c.Spawner.poll_interval = 1
c.JupyterHub.init_spawners_timeout = 1
c.JupyterHub.tornado_settings = {"slow_spawn_timeout": 0, "slow_stop_timeout": 0}
"""

Object = dict[str, Any]


class Killed(Faulty):
    """A site whose servers are looked at."""

    keys: Keys

    def record(self, secret: Object) -> Object:
        record: Object = json.loads(secret["metadata"]["annotations"][RECORD])
        return record

    def secrets(self) -> dict[str, Object]:
        """The Secret of each user who has a pod."""
        starts = {one["metadata"]["labels"][START_ID]: one for one in self.ours()["Secret"]}
        pods: Any = self.list("pods")
        users = {
            pod["metadata"]["annotations"]["hub.jupyter.org/username"]: pod["metadata"]["labels"][START_ID]
            for pod in pods
        }
        return {user: starts[start] for user, start in users.items() if start in starts}

    def order(self, user: str) -> int:
        return int(self.record(self.secrets()[user])["order"])

    def read(self, secret: Object) -> None:
        """Each credential in it is whole and verifies."""
        self.keys.read(_files(secret))

    def assert_sound(self, secret: Object) -> None:
        self.keys.assert_sound(_files(secret), self.record(secret))

    def running(self) -> set[str] | None:
        """Whose servers run; None while that isn't settled."""
        servers = {user["name"]: user["servers"].get("") for user in self.hub.api("GET", "/users").json()}
        if any(server is not None and server["pending"] for server in servers.values()):
            return None
        return {name for name, server in servers.items() if server is not None and server["ready"]}

    def orphans(self, running: set[str]) -> list[str]:
        """What belongs to no server that runs; and what of theirs isn't there."""
        objects = self.ours()
        there_are: Any = self.list("pods")
        pods = {pod["metadata"]["uid"]: pod["metadata"] for pod in there_are}
        owners = Counter(meta["annotations"]["hub.jupyter.org/username"] for meta in pods.values())
        wrong = [f"{count} pods of {user}" for user, count in owners.items() if count != 1 or user not in running]
        wrong += [f"no pod of {user}" for user in running - owners.keys()]
        for kind, ones in objects.items():
            there = Counter(one["metadata"]["ownerReferences"][0]["uid"] for one in ones)
            wrong += [f"{kind} without a pod" for uid in there.keys() - pods.keys()]
            wrong += [f"{there[uid]} {kind}s of {meta['name']}" for uid, meta in pods.items() if there[uid] != 1]
        return wrong


def _files(secret: Object) -> dict[str, bytes]:
    return {key.replace("..", "/"): base64.b64decode(value) for key, value in secret["data"].items()}


class Run:
    """Kill after kill of the hub of one site."""

    def __init__(self, site: Killed, lot: random.Random) -> None:
        self.site, self.lot = site, lot
        #: The order of what each server had when it was looked at last.
        self.orders = dict.fromkeys(STAY, 0)
        self.count = Counter[str]()
        #: Seconds until all were renewed by the next hub.
        self.slowest = 0.0

    def begin(self) -> None:
        (self.site.hub.directory / "token").write_text("the-first-token")
        for user in STAY + COME:
            self.site.make_user(user)
        for user in STAY:
            self.site.begin(user)
        until_none(lambda: (self.site.running() or set()) ^ set(STAY), "all run", 120, not_yet=BETWEEN)

    def once(self, number: int) -> None:
        way = WAYS[number % len(WAYS)]
        self.count[way] += 1
        held = self.kill(way)
        if held is not None and way != "arrives late":
            held.release() if way == "arrives" else held.drop()
        self.look_meanwhile()
        # Brought by the next hub, since its users' tokens are others by then.
        token = f"token-{number}"
        (self.site.hub.directory / "token").write_text(token)
        self.site.hub.start()
        self.look_afterwards(token)
        if held is not None and way == "arrives late":
            self.let_it_arrive(held, token)
        self.site.proxy.clear()

    def kill(self, way: str) -> Rule | None:
        """Some servers are told to start or stop, and in the midst of it the hub ends. What is held of a renewal."""
        site, running = self.site, self.site.running() or set()
        rule = site.proxy.on(*RENEWAL, Hold(after=way == "its answer is lost")) if way != "clock" else None
        if rule is not None:
            rule.wait()  # the next renewal comes within a second or two
        users = self.lot.sample(COME, self.lot.randint(1, len(COME)))

        def asked(user: str) -> None:
            with contextlib.suppress(requests.ConnectionError):  # it may be killed by then
                site.hub.api("DELETE" if user in running else "POST", f"/users/{user}/server")

        threads = [threading.Thread(target=asked, args=(user,)) for user in users]
        for thread in threads:
            thread.start()
        time.sleep(self.lot.random() * 0.5)
        site.hub.stop(signal.SIGKILL)
        for thread in threads:
            thread.join()
        self.count["starts"] += len({*users} - running)
        self.count["stops"] += len({*users} & running)
        return rule

    def look_meanwhile(self) -> None:
        """What kubelet finds without a hub is whole, and what was not due yet is valid."""
        for user, secret in self.site.secrets().items():
            if user in STAY:
                record = self.site.record(secret)
                self.site.read(secret)
                expires = datetime.fromisoformat(record["credentials"]["htcondor"]["expires_at"])
                assert expires.timestamp() > time.time()
                assert record["order"] >= self.orders[user]
                self.count["renewals"] += record["order"] - self.orders[user]
                self.orders[user] = record["order"]

    def look_afterwards(self, token: str) -> None:
        site = self.site
        until_none(lambda: site.running() is None, "all starts and stops are over", 90, not_yet=BETWEEN)
        until_none(
            lambda: site.orphans(site.running() or set()),
            "nothing is left of servers that don't run",
            90,
            not_yet=BETWEEN,
        )
        running = site.running()
        assert running is not None
        assert running >= set(STAY)
        self.slowest = max(
            self.slowest, until_none(lambda: self.late(token), "all are renewed by the next hub", 60, not_yet=BETWEEN)
        )

    def late(self, token: str) -> list[str]:
        """Who has not got yet what only the next hub can have given; everybody's files fit."""
        found = []
        for user, secret in self.site.secrets().items():
            self.site.assert_sound(secret)
            brought = base64.b64decode(secret["data"]["access_token"]).decode() == token
            if user in STAY and not (brought and self.site.record(secret)["order"] > self.orders[user]):
                found.append(user)
        return found

    def let_it_arrive(self, held: Rule, token: str) -> None:
        """The request of the hub that was killed, which knew an older state: it is refused, and changes nothing."""
        before = {user: self.site.order(user) for user in STAY}
        refused = self.refused()
        held.release()
        until_none(lambda: self.refused() == refused, "the late request is refused", 60, not_yet=BETWEEN)
        self.count["refused"] += 1
        until_none(lambda: self.late(token), "it has changed nothing", 60, not_yet=BETWEEN)
        assert all(self.site.order(user) >= order for user, order in before.items())

    def refused(self) -> int:
        return sum(method == "PATCH" and status == 422 for method, _, status in self.site.proxy.answered)


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_killed_while_renewing_and_starting(
    plane: Api, tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    seed = int(os.environ.get("CASA_HUB_KILL_SEED", random.randrange(1 << 32)))
    print(f"CASA_HUB_KILL_SEED={seed}")
    with open_faulty(plane, tmp_path_factory, CONFIG) as opened:
        site = Killed(**vars(opened))
        keys = site.hub.directory.parent / "keys"
        site.keys = Keys.of(keys / "xcache.key", keys / "htcondor.key")
        run = Run(site, random.Random(seed))
        run.begin()
        begun = time.monotonic()
        for number in range(KILLS):
            run.once(number)
        with capsys.disabled():
            took, count = time.monotonic() - begun, dict(run.count)
            print(f"\n{KILLS} kills in {took:.0f} s (seed {seed}), renewed within {run.slowest:.1f} s: {count}")
        assert run.count["renewals"] > KILLS
        assert run.count["refused"] == run.count["arrives late"]
        for user in site.running() or set():
            site.stop(user)
        site.nothing_left()
