"""Many servers start and stop at once while the API server fails at random: nothing is left, mixed up or given away."""

from __future__ import annotations

import base64
import math
import os
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Self

import pytest

from casa_hub.naming import Server
from tests.kubernetes.hub.faulty import Faulty, open_faulty
from tests.kubernetes.hub.servers import KINDS
from tests.support.kubernetes.api import Api
from tests.support.kubernetes.fault_proxy import Answer, Delay, Fault, Reset
from tests.support.scale import STORM_AT_ONCE, STORM_STARTS, STORM_USERS

#: Each happens to so many of the requests that it is for.
FAULTS: list[tuple[Fault, float]] = [
    (Answer(429, retry_after=1), 0.02),
    (Answer(500), 0.03),
    (Answer(503), 0.03),
    (Answer(403, "for once"), 0.01),
    (Answer(422, "for once"), 0.01),
    (Delay(0.5), 0.05),
    (Delay(3), 0.01),  # longer than a request may take
    (Reset(), 0.03),
    (Reset(after=True), 0.03),
]
REQUESTS = [("POST", r"/pods$"), ("PATCH", r"/casa-"), ("GET", r"/pods/"), ("DELETE", r"/pods/")]


class Watcher:
    """Looks at the namespace all the time, past the proxy, and keeps what it has seen of casa_hub's."""

    def __init__(self, plane: Api, namespace: str) -> None:
        self._plane, self._namespace = plane, namespace
        self.secrets: set[str] = set()
        #: Objects that don't belong to the pod they should.
        self.wrong: list[str] = []
        self.pods: dict[str, dict[str, Any]] = {}
        self.objects = 0
        self._ended = threading.Event()
        self._seen: set[str] = set()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        # The objects first and the pods afterwards: an owner is there before what it owns.
        while not self._ended.wait(0.1):
            found = [
                (kind, one)
                for kind, path in KINDS.items()
                for one in self._plane.request("GET", path.format(self._namespace))["items"]
            ]
            for pod in self._plane.request("GET", f"/api/v1/namespaces/{self._namespace}/pods")["items"]:
                self.pods[pod["metadata"]["uid"]] = pod
            for kind, one in found:
                if one["metadata"]["uid"] not in self._seen and one["metadata"]["name"].startswith("casa-"):
                    self._see(kind, one)

    def _see(self, kind: str, one: dict[str, Any]) -> None:
        metadata = one["metadata"]
        self._seen.add(metadata["uid"])
        self.objects += 1
        if kind == "Secret":
            for value in one["data"].values():
                lines = base64.b64decode(value).decode().splitlines()
                # As it is, and as it would be in the text of a Secret; a PEM file line by line.
                self.secrets |= {value, *(line.strip() for line in lines if "-----" not in line)}
        [owner] = metadata["ownerReferences"]
        pod = self.pods.get(owner["uid"])
        if pod is None:
            return  # it went between two looks
        identity = metadata["annotations"]["casa-hub/server"]
        if pod["metadata"]["annotations"]["casa-hub/server"] != identity:
            self.wrong.append(f"{kind} {metadata['name']} of {identity} is owned by {pod['metadata']['name']}")
        if pod["metadata"]["labels"]["casa-hub/start-id"] != metadata["labels"]["casa-hub/start-id"]:
            self.wrong.append(f"{kind} {metadata['name']} is of another start than {pod['metadata']['name']}")


def lives(site: Faulty, user: str, times: int) -> tuple[int, int]:
    """Start and stop a server so often. How many starts succeeded, and how many failed."""
    good = bad = 0
    for _ in range(times):
        site.begin(user)
        events = site.progress(user)
        last = events[-1] if events else {"failed": "before anybody asked"}
        if last.get("ready"):
            good += 1
            site.stop(user)
        else:
            assert last.get("failed"), last
            bad += 1
            site.settle(user)
    return good, bad


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_many_starts_with_faults(plane: Api, tmp_path_factory: pytest.TempPathFactory) -> None:
    seed = int(os.environ.get("CASA_HUB_STORM_SEED", random.randrange(1 << 32)))
    print(f"CASA_HUB_STORM_SEED={seed}")
    random.seed(seed)
    users = [f"user-{number}" for number in range(STORM_USERS)]
    with (
        open_faulty(plane, tmp_path_factory, 'c.Facility.required = ["xcache"]\n') as site,
        Watcher(plane, site.namespace) as watcher,
    ):
        for user in users:
            assert site.hub.api("POST", f"/users/{user}").status_code == 201
        rules = [
            site.proxy.on(*request, fault, times=math.inf, chance=chance)
            for request in REQUESTS
            for fault, chance in FAULTS
        ]
        begun = time.monotonic()
        with ThreadPoolExecutor(STORM_AT_ONCE) as pool:
            counts = list(pool.map(lambda user: lives(site, user, STORM_STARTS // STORM_USERS), users))
        took = time.monotonic() - begun
        faults = sum(rule.hits for rule in rules)
        site.proxy.clear()
        good, bad = (sum(column) for column in zip(*counts, strict=True))
        print(f"{good} starts, {bad} failed; {faults} faults in {len(site.proxy.answered)} requests; {took:.0f} s")
        assert good + bad == STORM_STARTS
        assert good > STORM_STARTS / 2
        assert faults > STORM_STARTS / 4

        site.nothing_left(timeout=60)
        assert watcher.wrong == []
        assert watcher.objects > good
        for user in users[:3]:
            site.ready(user)
            pod = site.whole(user)
            assert pod["metadata"]["annotations"]["casa-hub/server"] == Server("", user).identity
            site.stop(user)
        site.nothing_left()
        log = site.hub.log
    secrets = {value for value in watcher.secrets if len(value) > 15}
    assert len(secrets) > good
    leaked = [value for value in secrets if value in log]
    assert not leaked, f"{len(leaked)} values of Secrets are in the hub's log"
