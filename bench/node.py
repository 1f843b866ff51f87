"""What the sidecar adds to a server's start and stop, on a real node: the same pod with it and with a plain mount.

    python bench/node.py [--pods 10]

Pods in turns, medians. Needs root, for the node. Always exits with 0: "met" and "missed" are for people.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import tempfile
import time
import uuid
from pathlib import Path, PurePosixPath
from typing import Any

from kubernetes_asyncio.client import ApiClient
from kubespawner.objects import make_pod

sys.path.insert(0, str(Path(__file__).parents[1]))  # tests.support

from casa_hub.delivery.kubernetes.manifests import HubMark, Pod, Start, secret
from casa_hub.delivery.kubernetes.pod import Outfit, Sidecar, patch
from casa_hub.demo.packages import Unavailable
from casa_hub.naming import Server
from tests.support.kubernetes import build
from tests.support.kubernetes.cluster import Cluster

FILES = {"xcache_token": b"x" * 400, "condor_tokens.d/condor_token": b"x" * 400, "hostcert.pem": b"x" * 2000}
IDLE = ["sh", "-c", "trap 'exit 0' TERM; sleep infinity & wait"]


async def serialized(pod: Any) -> Any:
    async with ApiClient() as client:
        return client.sanitize_for_serialization(pod)


def until(condition: Any) -> None:
    while not condition():
        time.sleep(0.01)


def start_and_stop(cluster: Cluster, namespace: str, sidecar: Sidecar | None) -> tuple[float, float]:
    """Seconds until a pod is ready, and until it is gone."""
    plane, name = cluster.plane, f"pod-{uuid.uuid4().hex[:8]}"
    path = f"/api/v1/namespaces/{namespace}/pods"
    start = Start(Server("", name), uuid.uuid4().hex, namespace, HubMark(namespace))
    pod = make_pod(name, IDLE, 8888, build.IMAGE, image_pull_policy="Never", env={}, uid=4321)
    patch(pod, Outfit(start.name, list(FILES), PurePosixPath("/etc/cmsaf-secrets"), {}, {}, {}), sidecar)

    def ready() -> bool:
        conditions = plane.request("GET", f"{path}/{name}")["status"].get("conditions", [])
        return any(one["type"] == "Ready" and one["status"] == "True" for one in conditions)

    body = asyncio.run(serialized(pod))
    begin = time.perf_counter()
    made = plane.request("POST", path, body)
    owned = secret(start, Pod.from_object(made), FILES, {})
    plane.apply(f"/api/v1/namespaces/{namespace}/secrets/{start.name}", owned)
    until(ready)
    running = time.perf_counter()
    plane.request("DELETE", f"{path}/{name}")
    until(lambda: plane.gone(f"{path}/{name}"))
    return running - begin, time.perf_counter() - running


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--pods", type=int, default=10)
    options = parser.parse_args()
    try:
        parts = build.node_parts()
    except Unavailable as error:
        print(f"Not measured, for there is no node here: {error}")
        return
    kinds: dict[str, Sidecar | None] = {"plain mount": None, "sidecar": Sidecar()}
    taken: dict[str, list[tuple[float, float]]] = {kind: [] for kind in kinds}
    with (
        tempfile.TemporaryDirectory() as work,
        Cluster(**parts, work_dir=Path(work) / "cluster") as cluster,
        cluster.network(),
    ):
        namespace = cluster.plane.make_namespace()
        for number in range(options.pods + 1):
            for kind, sidecar in kinds.items():
                times = start_and_stop(cluster, namespace, sidecar)
                if number:  # the first is a warm-up
                    taken[kind].append(times)
    median = {kind: [statistics.median(column) for column in zip(*rows, strict=True)] for kind, rows in taken.items()}
    print(f"{'on a node, median of ' + str(options.pods):36}{'ready, s':>12}{'gone, s':>12}")
    for kind, (ready, gone) in median.items():
        print(f"{kind:36}{ready:12.2f}{gone:12.2f}")
    added = [with_it - without for with_it, without in zip(median["sidecar"], median["plain mount"], strict=True)]
    print(f"{'the sidecar adds':36}{added[0]:12.2f}{added[1]:12.2f}")
    print(f"{'met   ' if added[0] <= 0.5 else 'missed'}  the sidecar adds at most 0.5 s to a start")


if __name__ == "__main__":
    main()
