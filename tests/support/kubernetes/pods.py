"""Pods that "run" on a control plane without a node: somebody must write down what a kubelet would.

This is no Kubernetes and doesn't stand in for any part of one: the API server, its pods, watches and rules are real. It
watches the pods of one namespace and writes the status of each (Running, Ready, an address of its own), and at that
address it answers as a Jupyter server does when JupyterHub asks whether it is there. A deleted pod needs nothing: one
without a node goes at once.

One asyncio process for any number of pods:

    python -m tests.support.kubernetes.pods KUBECONFIG NAMESPACE NETWORK AFTER
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import importlib.metadata
import ipaddress
import json
import random
import ssl
import sys
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

import aiohttp

from casa_hub.demo.processes import Process, read_log
from tests.support.kubernetes.api import MERGE, Api

ROOT = Path(__file__).parents[3]
READY_LINE = "watching pods"
PORT = 8888

Answer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def running(pod: dict[str, Any], address: str) -> dict[str, Any]:
    """The ``status`` of a pod that runs and is ready, as a kubelet writes it."""
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")

    def containers(kind: str) -> list[dict[str, Any]]:
        return [
            {
                "name": each["name"],
                "image": each["image"],
                "imageID": "",
                "restartCount": 0,
                "ready": True,
                "started": True,
                "state": {"running": {"startedAt": now}},
            }
            for each in pod["spec"].get(kind, [])
        ]

    conditions = ("PodScheduled", "Initialized", "ContainersReady", "Ready")
    return {
        "phase": "Running",
        "startTime": now,
        "hostIP": "127.0.0.1",
        "podIP": address,
        "podIPs": [{"ip": address}],
        "conditions": [{"type": kind, "status": "True", "lastTransitionTime": now} for kind in conditions],
        "containerStatuses": containers("containers"),
        "initContainerStatuses": containers("initContainers"),
    }


class RunningPods:
    """The process that does it for one namespace; a context manager."""

    def __init__(
        self, api: Api, namespace: str, directory: Path, *, network: str | None = None, after: float = 0
    ) -> None:
        """Args:
        api: the control plane.
        namespace: whose pods.
        directory: for its log.
        network: where the pods' addresses are taken from, a /16 that this machine may bind to. Default: one of
            127.0.0.0/8 at random. The API server refuses endpoints of Services at loopback addresses.
        after: seconds from a pod's creation until it runs.
        """
        network = network or f"127.{random.randint(64, 250)}.0.0/16"
        command = [sys.executable, "-m", "tests.support.kubernetes.pods", api.kubeconfig, namespace, network, after]
        log = directory / f"pods-{namespace}.log"
        self._process = Process("pods", list(map(str, command)), log=log, cwd=ROOT, grace=1)

    def __enter__(self) -> Self:
        self._process.start()
        self._process.wait_until("watching", lambda: READY_LINE in read_log(self._process.log), 90)
        return self

    def __exit__(self, *_: object) -> None:
        self._process.stop()


class _Pods:
    def __init__(self, session: aiohttp.ClientSession, namespace: str, network: str, after: float) -> None:
        self.session = session
        self.path = f"/api/v1/namespaces/{namespace}/pods"
        self.addresses = ipaddress.ip_network(network).hosts()
        self.after = after
        self.tasks: dict[str, asyncio.Task[None]] = {}
        self.version = importlib.metadata.version("jupyterhub")

    async def watch(self) -> None:
        """List, then watch from there; again when the API server ends that or is away."""
        while True:
            try:
                async with self.session.get(self.path, raise_for_status=True) as answer:
                    listed = await answer.json()
                for uid in self.tasks.keys() - {pod["metadata"]["uid"] for pod in listed["items"]}:
                    self.tasks.pop(uid).cancel()
                for pod in listed["items"]:
                    self.see(pod)
                query = {"watch": "1", "resourceVersion": listed["metadata"]["resourceVersion"]}
                async with self.session.get(self.path, params=query, raise_for_status=True) as answer:
                    print(READY_LINE, flush=True)
                    async for line in answer.content:
                        event = json.loads(line)
                        if event["type"] == "ERROR":
                            break
                        self.see(event["object"], gone=event["type"] == "DELETED")
            except (aiohttp.ClientError, TimeoutError) as error:
                print(f"{type(error).__name__}: {error}", flush=True)
            await asyncio.sleep(0.1)

    def see(self, pod: dict[str, Any], *, gone: bool = False) -> None:
        uid = pod["metadata"]["uid"]
        if gone and uid in self.tasks:
            self.tasks.pop(uid).cancel()
        elif not gone and uid not in self.tasks:
            self.tasks[uid] = asyncio.create_task(self.run(pod))
            self.tasks[uid].add_done_callback(_tell)

    async def run(self, pod: dict[str, Any]) -> None:
        await asyncio.sleep(self.after)
        name = pod["metadata"]["name"]

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            # Every path is answered with the pod's name and the path: who is behind an address is then plain.
            with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                body = json.dumps({"version": "0", "pod": name, "path": head.split(" ", 2)[1]})
                lines = ["HTTP/1.1 200 OK", "Content-Type: application/json", f"Content-Length: {len(body)}"]
                lines += [f"X-JupyterHub-Version: {self.version}", "Connection: close", "", body]
                writer.write("\r\n".join(lines).encode())
                await writer.drain()
            writer.close()

        async with await self.listen(answer) as server:
            status = {"status": running(pod, server.sockets[0].getsockname()[0])}
            patch = {"data": json.dumps(status), "headers": {"Content-Type": MERGE}}
            async with self.session.patch(f"{self.path}/{name}/status", **patch) as written:
                if written.status == 404:
                    return  # deleted meanwhile
                written.raise_for_status()
            await asyncio.Event().wait()  # until it is deleted

    async def listen(self, answer: Answer) -> asyncio.Server:
        """At an address that no other pod has, nor one of another run of tests whose network is the same by chance."""
        while True:
            try:
                return await asyncio.start_server(answer, str(next(self.addresses)), PORT)
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise


def _tell(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()):
        print(f"a pod did not run: {error!r}", flush=True)


async def _main(config: dict[str, Any], namespace: str, network: str, after: str) -> None:
    cluster, user = config["clusters"][0]["cluster"], config["users"][0]["user"]
    context = ssl.create_default_context(cafile=cluster["certificate-authority"])
    context.load_cert_chain(user["client-certificate"], user["client-key"])
    async with aiohttp.ClientSession(
        cluster["server"],
        connector=aiohttp.TCPConnector(ssl=context, limit=20),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=10),
        read_bufsize=1 << 22,  # a line is a pod
    ) as session:
        await _Pods(session, namespace, network, float(after)).watch()


if __name__ == "__main__":
    asyncio.run(_main(json.loads(Path(sys.argv[1]).read_text()), *sys.argv[2:]))
