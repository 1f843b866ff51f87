"""What the delivery does where a real API server can't be made to show it; all else is in `tests/kubernetes`.

The API here is a script of answers, not a Kubernetes: each test says what is asked and what comes back.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from casa_hub.credentials.base import Route
from casa_hub.delivery.kubernetes import delivery as module
from casa_hub.delivery.kubernetes import manifests
from casa_hub.delivery.kubernetes.api import Deadline, KubernetesError
from casa_hub.delivery.kubernetes.delivery import KubernetesDelivery, OvertakenError
from casa_hub.delivery.kubernetes.manifests import HubMark, Object, Start
from casa_hub.errors import DeliveryError
from casa_hub.facility import Minted
from casa_hub.naming import Server
from casa_hub.record import ServerRecord
from tests.support.kubernetes.memory import MemoryAPI, SameLoop
from tests.support.kubernetes.memory import refusal as error


def start(user: str = "ada", start_id: str = "a" * 32) -> Start:
    return Start(Server("", user), start_id, "jupyter", HubMark("hub"))


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


class Facility:
    """As much of `casa_hub.facility.Facility` as the delivery asks; `routes` are those of every server."""

    hub_id = ""
    requires_routes = False
    hosts: tuple[Route, ...] = ()

    def server(self, username: str) -> Server:
        return Server("", username)

    def routes(self, *_: Any) -> tuple[Route, ...]:
        return self.hosts


ROUTES = (Route("ada.dask.example.org", "scheduler", 8786),)


def delivery(api: Any, facility: Facility | None = None) -> KubernetesDelivery:
    return KubernetesDelivery(api, SameLoop(), facility or Facility())  # type: ignore[arg-type]


def minted(of: Start, *names: str, order: int = 0, size: int = 1, routes: tuple[Route, ...] = ()) -> Minted:
    """Credentials that could not be minted (`names`) have a Secret to come into; without, there is none."""
    record = ServerRecord(of.server.identity, of.start_id, order, {}, dict.fromkeys(names, "why"))
    return Minted(of.server, of.start_id, {}, {}, {"token": b"x" * size} if names else {}, routes, record)


async def launch(to: KubernetesDelivery, of: Start, seconds: float = 5) -> Any:
    return await to.launch(pod(of), of, minted(of), seconds=seconds)


async def test_a_pod_that_was_made_by_a_try_whose_answer_got_lost_is_this_one() -> None:
    api = MemoryAPI()
    made = await api.create(pod(start()), Deadline(1))
    missing = await delivery(api).launch(pod(start()), start(), minted(start(), "xcache"), seconds=5)
    assert missing == {}
    assert api.asked[1:] == [("create", "Pod"), ("get", "Pod"), ("apply", "Secret")]
    [owner] = api.one("Secret")["metadata"]["ownerReferences"]
    assert owner["uid"] == made["metadata"]["uid"]


async def test_a_name_that_stays_taken_by_nothing_ends_in_the_conflict() -> None:
    async def create(*_: Any) -> Object:
        raise error(409)

    async def get(*_: Any) -> None:
        return None

    begun = time.monotonic()
    script = Script(create=create, get=get)
    with pytest.raises(KubernetesError) as raised:
        await launch(delivery(script), start(), 0.5)
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
    to = delivery(script)
    stuck = [asyncio.create_task(launch(to, start(user, "1" * 32), 6)) for user in old]
    await waiting.wait()
    await launch(to, start("ada"), 60)
    assert not any(task.done() for task in stuck)
    for task in stuck:
        with pytest.raises(KubernetesError, match="earlier pod does not go away"):
            await task


def delivery_that_hangs() -> tuple[KubernetesDelivery, asyncio.Event]:
    """Creations hang but for Ada's pod; the event says that one does."""
    hanging = asyncio.Event()

    async def create(body: Object, *_: Any) -> Object:
        if body["metadata"]["name"] != "jupyter-ada":
            hanging.set()
            await asyncio.sleep(60)
        return body

    return delivery(Script(create=create)), hanging


async def test_requests_that_hang_hold_up_nobody_elses_launch() -> None:
    to, hanging = delivery_that_hangs()
    others = [asyncio.create_task(launch(to, start(f"user-{number}"))) for number in range(module._AT_ONCE)]
    await hanging.wait()
    assert await launch(to, start()) == {}
    assert not any(task.done() for task in others)
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)


async def test_a_turn_comes_back_from_a_launch_that_was_cancelled() -> None:
    to, hanging = delivery_that_hangs()
    for _ in range(3):
        tasks = [asyncio.create_task(launch(to, start(f"user-{number}"))) for number in range(module._AT_ONCE)]
        await hanging.wait()
        await asyncio.sleep(0)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    assert await launch(to, start(), 30) == {}


@pytest.mark.parametrize("required", [False, True])
async def test_all_that_is_refused_is_told_and_what_is_wished_only_is_no_error(*, required: bool) -> None:
    async def refuse(_: Object) -> None:
        raise error(403)

    api, facility = MemoryAPI(), Facility()
    facility.requires_routes = required
    api.before = {("apply", kind): refuse for kind in ("Service", "IngressRouteTCP")}
    work = delivery(api, facility).launch(pod(start()), start(), minted(start(), "xcache", routes=ROUTES), seconds=30)
    if required:
        with pytest.raises(KubernetesError):
            await work
    else:
        assert set(await work) == {"Service", "IngressRouteTCP"}
    assert api.kinds() == ["Secret"]


async def test_without_its_secret_no_pod_is_started() -> None:
    async def refuse(_: Object) -> None:
        raise error(403)

    api = MemoryAPI()
    api.before["apply", "Secret"] = refuse
    with pytest.raises(KubernetesError):
        await delivery(api).launch(pod(start()), start(), minted(start(), "xcache"), seconds=30)


@pytest.mark.parametrize(
    "bad",
    [
        minted(start(), "xcache", size=manifests.MAX_SECRET_SIZE + 1),
        minted(start(), "dask", routes=(Route("no host name", "scheduler", 8786),)),
    ],
    ids=["too large", "no host"],
)
async def test_what_cannot_be_delivered_makes_no_pod(bad: Minted) -> None:
    api = MemoryAPI()
    with pytest.raises(DeliveryError):
        await delivery(api).launch(pod(start()), start(), bad, seconds=30)
    assert api.asked == []


async def test_an_earlier_starts_pod_is_removed_and_another_servers_is_not() -> None:
    api = MemoryAPI()
    await api.create(pod(start(start_id="0" * 32)), Deadline(1))
    await launch(delivery(api), start())
    assert api.one("Pod")["metadata"]["labels"][manifests.START_ID] == "a" * 32
    other = pod(start("bob")) | {"metadata": pod(start())["metadata"] | {"name": "jupyter-bob"}}
    api = MemoryAPI()
    await api.create(other, Deadline(1))
    with pytest.raises(KubernetesError, match="another server's"):
        await launch(delivery(api), start("bob", "b" * 32))
    assert api.one("Pod")["metadata"]["labels"][manifests.START_ID] == "a" * 32


# -- renewals


async def running() -> tuple[MemoryAPI, KubernetesDelivery]:
    """A server that runs, with a Secret."""
    api = MemoryAPI()
    to = delivery(api)
    await to.launch(pod(start()), start(), minted(start(), "xcache"), seconds=30)
    return api, to


def text(order: int) -> str:
    return manifests.record_text(minted(start(), "xcache", order=order).record)


async def test_a_renewal_goes_on_from_the_record_that_is_there() -> None:
    api, to = await running()
    after = await to.renew(start(), minted(start(), "xcache", order=1, size=2), text(0), Deadline(30))
    assert after == text(1) == await to.record(start(), Deadline(30))
    assert api.one("Secret")["data"] == {"token": "eHg="}


async def test_a_renewal_that_had_come_through_after_all_is_one_and_anothers_is_not() -> None:
    _, to = await running()
    await to.renew(start(), minted(start(), "xcache", order=1), text(0), Deadline(30))
    # The same again, as after an answer that got lost: the Secret has what was to be written.
    assert await to.renew(start(), minted(start(), "xcache", order=1), text(0), Deadline(30)) == text(1)
    with pytest.raises(OvertakenError):
        await to.renew(start(), minted(start(), "xcache", order=2), text(0), Deadline(30))


async def test_a_renewal_of_a_secret_that_is_not_this_starts_is_refused() -> None:
    api, to = await running()
    api.one("Secret")["metadata"]["labels"][manifests.START_ID] = "b" * 32
    with pytest.raises(KubernetesError) as raised:
        await to.renew(start(), minted(start(), "xcache", order=1), text(0), Deadline(30))
    assert raised.value.status == 422
    assert await to.record(start(), Deadline(30), there=True) is None


async def test_a_secret_that_must_be_there_and_was_deleted_is_an_error() -> None:
    api, to = await running()
    api.remove("Secret")
    assert await to.record(start(), Deadline(30)) is None
    with pytest.raises(KubernetesError, match="it was deleted"):
        await to.record(start(), Deadline(30), there=True)


# -- what is brought back and taken away


async def test_what_is_there_as_this_starts_is_left_as_it_is_when_the_rest_is_brought_back() -> None:
    api, to = await running()
    secret = {**api.one("Secret"), "data": {}}
    assert await to.bring_back(start(), [secret], Deadline(30)) == {}
    assert api.one("Secret")["data"] == {"token": "eA=="}
    api.one("Secret")["metadata"]["labels"][manifests.START_ID] = "b" * 32  # somebody else's, under our name
    assert list(await to.bring_back(start(), [secret], Deadline(30))) == ["Secret"]


async def test_a_withdrawal_leaves_pod_and_policy_and_the_end_takes_all() -> None:
    api, facility = MemoryAPI(), Facility()
    facility.hosts = ROUTES
    to = delivery(api, facility)
    to.routes.network_policy_peers = [{"podSelector": {}}]
    await to.launch(pod(start()), start(), minted(start(), "xcache", routes=ROUTES), seconds=30)
    assert api.kinds() == ["IngressRouteTCP", "NetworkPolicy", "Secret", "Service"]
    assert await to.is_complete(start(), minted(start(), "xcache").record, Deadline(30))
    await to.withdraw(start(), Deadline(30))
    assert api.kinds() == ["NetworkPolicy"]
    assert not await to.is_complete(start(), minted(start(), "xcache").record, Deadline(30))
    await to.remove(start(), Deadline(30))
    assert api.kinds() == []
    await to.take_down(start(), "jupyter-ada", Deadline(30))
    assert api.there == {}


async def test_a_start_without_credentials_is_complete_without_a_secret() -> None:
    assert await delivery(MemoryAPI()).is_complete(start(), minted(start()).record, Deadline(30))


@pytest.mark.parametrize(
    "there", [None, pod(start(start_id="b" * 32)), {"metadata": {"name": "x", "uid": "1"}}], ids=str
)
async def test_only_this_starts_pod_is_taken_down(there: Object | None) -> None:
    async def get(*_: Any) -> Object | None:
        return there

    script = Script(get=get)
    await delivery(script).take_down(start(), "jupyter-ada", Deadline(30))
    assert script.asked == ["get"]
