"""What a courier does where a real API server can't be made to show it; all else is in `tests/kubernetes`.

The API here is a script of answers, not a Kubernetes: each test says what is asked and what comes back.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from casa_hub.delivery.kubernetes import courier as module
from casa_hub.delivery.kubernetes import manifests
from casa_hub.delivery.kubernetes.api import Deadline, KubernetesError
from casa_hub.delivery.kubernetes.courier import Courier
from casa_hub.delivery.kubernetes.manifests import Object, Pod, Start
from casa_hub.naming import Server

LOG = logging.getLogger("test")


def start(user: str = "ada", start_id: str = "a" * 32) -> Start:
    return Start(Server("", user), start_id, "jupyter", "hub", {})


def pod(of: Start, uid: str = "uid-1") -> Object:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": f"jupyter-{of.server.username}",
            "namespace": of.namespace,
            "uid": uid,
            "creationTimestamp": "2026-11-21T15:00:00Z",
            "labels": of.labels,
            "annotations": {manifests.SERVER: of.server.identity},
        },
    }


def error(status: int | None) -> KubernetesError:
    return KubernetesError("Pod jupyter/x", "a problem", "a remedy", status)


class Script:
    """The API's verbs; `answers` says what each does."""

    def __init__(self, **answers: Callable[..., Awaitable[Any]]) -> None:
        self._answers = answers
        self.asked: list[str] = []

    def __getattr__(self, verb: str) -> Callable[..., Awaitable[Any]]:
        async def ask(*arguments: Any, **options: Any) -> Any:
            self.asked.append(verb)
            return await self._answers[verb](*arguments)

        return ask


def nothing(_: Pod) -> tuple[list[Object], list[Object]]:
    return [], []


async def launch(courier: Courier, of: Start, seconds: float = 5) -> Any:
    return await courier.launch(pod(of), of, nothing, seconds)


async def test_a_pod_that_was_made_by_a_try_whose_answer_got_lost_is_this_one() -> None:
    async def create(*_: Any) -> Object:
        raise error(409)

    async def get(*_: Any) -> Object:
        return pod(start(), "made-before")

    script = Script(create=create, get=get)
    launched = await launch(Courier(script, LOG), start())  # type: ignore[arg-type]
    assert launched.pod.uid == "made-before"
    assert script.asked == ["create", "get"]


async def test_a_name_that_stays_taken_by_nothing_ends_in_the_conflict() -> None:
    async def create(*_: Any) -> Object:
        raise error(409)

    async def get(*_: Any) -> None:
        return None

    begun = time.monotonic()
    script = Script(create=create, get=get)
    with pytest.raises(KubernetesError) as raised:
        await launch(Courier(script, LOG), start(), 0.5)  # type: ignore[arg-type]
    assert raised.value.status == 409
    assert time.monotonic() - begun < 10
    assert len(script.asked) < 20, "it asks without a pause"


async def test_a_pod_that_does_not_go_holds_up_nobody_else() -> None:
    """As many as may launch at once wait for a pod of theirs that a finalizer keeps."""
    old = {f"user-{number}": start(f"user-{number}", "0" * 32) for number in range(module._AT_ONCE)}
    waiting = asyncio.Event()

    async def create(body: Object, *_: Any) -> Object:
        name = body["metadata"]["name"].removeprefix("jupyter-")
        if name in old:
            raise error(409)
        return body

    async def get(what: Object, *_: Any) -> Object:
        if script.asked.count("delete") == module._AT_ONCE:
            waiting.set()
        return pod(old[what["metadata"]["name"].removeprefix("jupyter-")], "old")

    async def delete(*_: Any) -> None:
        pass

    script = Script(create=create, get=get, delete=delete)
    courier = Courier(script, LOG)  # type: ignore[arg-type]
    stuck = [asyncio.create_task(launch(courier, start(user, "1" * 32), 6)) for user in old]
    await waiting.wait()
    await launch(courier, start("ada"), 60)
    assert not any(task.done() for task in stuck)
    for task in stuck:
        with pytest.raises(KubernetesError, match="an earlier one of this server does not go away"):
            await task


async def test_requests_that_hang_hold_up_nobody_elses_launch() -> None:
    hanging = asyncio.Event()

    async def create(body: Object, *_: Any) -> Object:
        if body["metadata"]["name"] != "jupyter-ada":
            hanging.set()
            await asyncio.sleep(60)
        return body

    courier = Courier(Script(create=create), LOG)  # type: ignore[arg-type]
    others = [asyncio.create_task(launch(courier, start(f"user-{number}"))) for number in range(module._AT_ONCE)]
    await hanging.wait()
    assert (await launch(courier, start())).pod.name == "jupyter-ada"
    assert not any(task.done() for task in others)
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)


async def test_a_turn_comes_back_from_a_launch_that_was_cancelled() -> None:
    hanging = asyncio.Event()

    async def create(body: Object, *_: Any) -> Object:
        if body["metadata"]["name"] != "jupyter-ada":
            hanging.set()
            await asyncio.sleep(60)
        return body

    courier = Courier(Script(create=create), LOG)  # type: ignore[arg-type]
    for _ in range(3):
        tasks = [asyncio.create_task(launch(courier, start(f"user-{number}"))) for number in range(module._AT_ONCE)]
        await hanging.wait()
        await asyncio.sleep(0)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    assert (await launch(courier, start(), 30)).pod.name == "jupyter-ada"


async def test_all_that_is_refused_is_told_and_what_is_wished_only_is_no_error() -> None:
    refused = {"Service", "IngressRouteTCP"}

    async def apply(one: Object, *_: Any) -> Object:
        if one["kind"] in refused:
            raise error(403)
        return one

    async def create(body: Object, *_: Any) -> Object:
        return body

    courier = Courier(Script(create=create, apply=apply), LOG)  # type: ignore[arg-type]
    objects = [{"kind": kind} for kind in ("Secret", "Service", "IngressRouteTCP")]
    launched = await courier.launch(pod(start()), start(), lambda _: (objects[:1], objects[1:]), 30)
    assert set(launched.missing) == refused
    with pytest.raises(KubernetesError):
        await courier.launch(pod(start()), start(), lambda _: (objects, []), 30)


@pytest.mark.parametrize(
    "there", [None, pod(start(start_id="b" * 32)), {"metadata": {"name": "x", "uid": "1"}}], ids=str
)
async def test_only_this_starts_pod_is_taken_down(there: Object | None) -> None:
    async def get(*_: Any) -> Object | None:
        return there

    script = Script(get=get)
    await Courier(script, LOG).take_down(start(), "jupyter-ada", Deadline(30))  # type: ignore[arg-type]
    assert script.asked == ["get"]
