"""Requests to the API server: what is tried again, for how long, and what an error says.

Against a small HTTP server that answers what a real API server can't be made to.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NoReturn

import pytest
from aiohttp import web
from kubernetes_asyncio.client import ApiClient, Configuration
from kubernetes_asyncio.config import ConfigException
from kubernetes_asyncio.config import incluster_config as incluster

from casa_hub.delivery.kubernetes.api import Deadline, KubernetesAPI, KubernetesError, OwnLoop

SECRET = {
    "apiVersion": "v1",
    "kind": "Secret",
    "metadata": {"name": "casa-ada-1f2e3d4c", "namespace": "jupyter"},
    "data": {"xcache_token": "c2VjcmV0IG9mIHRoZSB0ZXN0"},
}
POD = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "jupyter-ada", "namespace": "jupyter"}}

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


def status(code: int, message: str = "", **headers: str) -> Answer:
    async def answer(request: web.Request) -> web.StreamResponse:
        document = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "code": code, "message": message}
        return web.json_response(document, status=code, headers={k.replace("_", "-"): v for k, v in headers.items()})

    return answer


async def good(request: web.Request) -> web.StreamResponse:
    return web.json_response({"metadata": {"uid": "1", "token": request.headers.get("Authorization", "")}})


async def never(request: web.Request) -> web.StreamResponse:
    await asyncio.sleep(60)
    raise AssertionError


async def reset(request: web.Request) -> web.StreamResponse:
    assert request.transport is not None
    request.transport.abort()
    return web.Response()


def text(content: str, content_type: str = "text/html") -> Answer:
    async def answer(request: web.Request) -> web.StreamResponse:
        return web.Response(text=content, content_type=content_type)

    return answer


class Peer:
    """What answers; the last answer again and again."""

    def __init__(self) -> None:
        self.answers: list[Answer] = [good]
        self.requests: list[tuple[float, web.Request]] = []

    async def handle(self, request: web.Request) -> web.StreamResponse:
        await request.read()
        self.requests.append((time.monotonic(), request))
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        return await answer(request)


@asynccontextmanager
async def asked(*answers: Answer, seconds: float = 30) -> AsyncIterator[tuple[KubernetesAPI, Peer]]:
    peer = Peer()
    peer.answers = list(answers)
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", peer.handle)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()

    def plain() -> ApiClient:
        return ApiClient(Configuration(host=f"http://127.0.0.1:{runner.addresses[0][1]}"))

    api = KubernetesAPI(plain, seconds)
    try:
        yield api, peer
    finally:
        await api.close()
        await runner.cleanup()


class NoThreads(ThreadPoolExecutor):
    """Refuses all work."""

    def submit(self, *work: object, **more: object) -> NoReturn:
        raise AssertionError(work)


async def test_no_request_waits_for_another_thread() -> None:
    """aiohttp asked two other threads for a proxy and a .netrc file, before each request.

    A hundred starts at once took half of their CPU for that, and pods waited for their Secrets.
    """
    async with asked(good) as (api, _):
        asyncio.get_running_loop().set_default_executor(NoThreads())
        assert (await api.create(SECRET, Deadline(60)))["metadata"]["uid"] == "1"


async def test_a_proxy_that_the_environment_names_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    async with asked(good) as (api, peer):
        client = api.connect()
        monkeypatch.setenv("http_proxy", client.configuration.host)
        client.configuration.host = "http://kubernetes.example.org"
        api.connect = lambda: client
        await api.create(SECRET, Deadline(60))
        assert [str(request.url.origin()) for _, request in peer.requests] == ["http://kubernetes.example.org"]


async def test_a_proxy_is_not_used_for_an_api_server_that_the_environment_excepts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    async with asked(good) as (api, peer):
        await api.create(SECRET, Deadline(1))
        assert len(peer.requests) == 1


@pytest.mark.parametrize(
    "fault",
    [status(429), status(500), status(502), status(503), status(504), never, reset, text("<html>")],
    ids=["429", "500", "502", "503", "504", "no answer", "reset", "no JSON"],
)
async def test_what_may_pass_is_tried_again(fault: Answer) -> None:
    async with asked(fault, fault, good, seconds=1.5 if fault is never else 30) as (api, peer):
        assert (await api.create(SECRET, Deadline(60)))["metadata"]["uid"] == "1"
        assert len(peer.requests) == 3


@pytest.mark.parametrize("code", [400, 401, 403, 404, 410, 422])
async def test_what_will_not_pass_is_said_at_once(code: int) -> None:
    async with asked(status(code, "the reason")) as (api, peer):
        with pytest.raises(KubernetesError) as raised:
            await api.apply(SECRET, Deadline(5))
        assert raised.value.status == code
        assert str(raised.value).startswith("Secret jupyter/casa-ada-1f2e3d4c: ")
        assert code == 401 or "the reason" in str(raised.value)
        assert len(peer.requests) == 1


async def test_two_requests_that_met_at_a_quota_are_no_conflict() -> None:
    met = status(409, 'Operation cannot be fulfilled on resourcequotas "q": the object has been modified; please ...')
    async with asked(met, met, good) as (api, peer):
        await api.apply(SECRET, Deadline(5))
        assert len(peer.requests) == 3


@pytest.mark.parametrize("verb", ["apply", "patch", "delete"])
async def test_a_409_that_does_not_say_what_is_in_the_way_is_tried_again_a_few_times(verb: str) -> None:
    """One such answer to the apply of a Service left its server without it for as long as it ran."""
    unclear = status(409, "Conflict")

    async def ask(api: KubernetesAPI) -> object:
        arguments = {"apply": [], "patch": [[]], "delete": ["1"]}[verb]
        return await getattr(api, verb)(SECRET, *arguments, Deadline(30))

    async with asked(unclear, unclear, good) as (api, peer):
        await ask(api)
        assert len(peer.requests) == 3
    async with asked(unclear) as (api, peer):
        with pytest.raises(KubernetesError, match="it conflicts with something") as raised:
            await ask(api)
        assert raised.value.status == 409
        assert not raised.value.transient
        assert len(peer.requests) == 5


async def test_a_field_that_another_manager_owns_is_said_at_once() -> None:
    owned = status(409, 'Apply failed with 2 conflicts: conflicts with "kubectl" using v1:\n- .spec.type')
    async with asked(owned) as (api, peer):
        with pytest.raises(KubernetesError, match="something else is in its place"):
            await api.apply(SECRET, Deadline(30))
        assert len(peer.requests) == 1


async def test_an_object_that_is_there_already_is_the_callers_to_look_at() -> None:
    async with asked(status(409, 'pods "x" already exists')) as (api, peer):
        with pytest.raises(KubernetesError):
            await api.create(SECRET, Deadline(30))
        assert len(peer.requests) == 1


@pytest.mark.parametrize("fault", [status(503), never, reset], ids=["503", "no answer", "reset"])
async def test_all_tries_together_end_with_the_deadline(fault: Answer) -> None:
    async with asked(fault, seconds=0.3) as (api, peer):
        begun = time.monotonic()
        with pytest.raises(KubernetesError, match=r"Secret jupyter/casa-ada-1f2e3d4c: the (Kubernetes )?API server"):
            await api.create(SECRET, Deadline(2))
        assert time.monotonic() - begun < 10
        assert len(peer.requests) >= 2


async def test_a_deadline_that_is_over_is_none_to_try_in() -> None:
    async with asked(good) as (api, _):
        with pytest.raises(KubernetesError, match="no answer"):
            await api.create(SECRET, Deadline(0))


def test_a_deadline_is_never_negative() -> None:
    assert Deadline(-1).left == 0
    assert 50 < Deadline(60).left <= 60


async def test_the_server_is_left_alone_as_long_as_it_asks_for() -> None:
    async with asked(status(429, Retry_After="1"), good) as (api, peer):
        await api.create(SECRET, Deadline(5))
        first, second = (moment for moment, _ in peer.requests)
        assert second - first >= 1


async def test_a_server_that_wants_to_be_left_alone_for_longer_than_there_is_time_is() -> None:
    async with asked(status(429, "slow down", Retry_After="60")) as (api, peer):
        begun = time.monotonic()
        with pytest.raises(KubernetesError, match=r"too much to do \(slow down\)"):
            await api.create(SECRET, Deadline(50))
        assert time.monotonic() - begun < 20
        assert len(peer.requests) == 1


@pytest.mark.parametrize("odd", ["", "soon", "-1", "Wed, 21 Oct 2026 07:28:00 GMT", "1.5"])
async def test_an_odd_retry_after_is_as_good_as_none(odd: str) -> None:
    async with asked(status(503, Retry_After=odd), good) as (api, _):
        await api.create(SECRET, Deadline(5))


@pytest.mark.parametrize(
    "odd", [text("<html>"), text(""), text("[]"), text('"x"'), text("{}"), text("{"), text("null")]
)
async def test_an_answer_that_is_none_of_kubernetes_is_an_error(odd: Answer) -> None:
    async with asked(odd) as (api, _):
        with pytest.raises(KubernetesError, match="an answer that isn't Kubernetes'"):
            await api.create(SECRET, Deadline(1))


@pytest.mark.parametrize("odd", ["<html>Bad gateway", "", "[]", "null", '{"message": 7}'])
async def test_an_odd_error_is_told_by_its_status(odd: str) -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        return web.Response(text=odd, status=418)

    async with asked(answer) as (api, _):
        with pytest.raises(KubernetesError, match="failed with status 418") as raised:
            await api.create(SECRET, Deadline(30))
        assert "html" not in str(raised.value)


@pytest.mark.parametrize(
    ("code", "message", "says", "remedy"),
    [
        (403, "secrets is forbidden: User x cannot create", "may not patch secrets there", "needs the verb patch on"),
        (403, "", "may not patch secrets there", "needs the verb patch on secrets"),
        (403, "exceeded quota: q, requested: pods=1", "a quota of the namespace is used up", "Stop something"),
        (403, "violates PodSecurity restricted", "an admission policy of the cluster refuses it", "Correct a setting"),
        (401, "", "doesn't know this hub", "ServiceAccount token must be mounted"),
        (404, "not found", "doesn't know it", "namespace must exist, and v1 Secret must be installed"),
        (409, "conflict with kubectl", "something else is in its place", "Whoever made that"),
        (422, "Invalid value", "finds it invalid", "Correct a setting"),
    ],
)
async def test_an_error_says_what_why_and_the_remedy(code: int, message: str, says: str, remedy: str) -> None:
    async with asked(status(code, message)) as (api, _):
        with pytest.raises(KubernetesError) as raised:
            await api.apply(SECRET, Deadline(30))
        assert raised.value.thing == "Secret jupyter/casa-ada-1f2e3d4c"
        assert says in raised.value.problem
        assert message in raised.value.problem or code == 401
        assert remedy in raised.value.remedy


async def test_what_is_gone_already_is_deleted() -> None:
    another = 'Operation cannot be fulfilled on pods "x": '
    for code, message in (
        (404, ""),
        (409, f"{another}Precondition failed: UID in precondition: 1, UID in object meta: 2"),
        (409, f"{another}the UID in the precondition (1) does not match the UID in record (2). The object might ..."),
    ):
        async with asked(status(code, message)) as (api, peer):
            await api.delete(POD, "uid-1", Deadline(30), grace_seconds=0)
            assert len(peer.requests) == 1
            assert await peer.requests[0][1].json() == {"preconditions": {"uid": "uid-1"}, "gracePeriodSeconds": 0}


async def test_a_deletion_that_met_another_request_is_not_taken_for_one_that_is_done() -> None:
    met = status(409, 'Operation cannot be fulfilled on pods "x": the object has been modified')
    async with asked(met) as (api, _):
        with pytest.raises(KubernetesError):
            await api.delete(POD, "uid-1", Deadline(1))


async def test_what_is_not_there_is_none() -> None:
    async with asked(status(404)) as (api, _):
        assert await api.get(POD, Deadline(30)) is None


async def test_a_list_comes_in_pages() -> None:
    async def page(request: web.Request) -> web.StreamResponse:
        begin = int(request.query["continue"] or 0)
        end = begin + int(request.query["limit"])
        items = [{"metadata": {"name": f"pod-{number}"}} for number in range(begin, min(end, 1000))]
        return web.json_response({"metadata": {"continue": str(end)} if end < 1000 else {}, "items": items})

    async with asked(page) as (api, peer):
        found = await api.list(POD, {"labelSelector": "a=b"}, Deadline(60))
        assert [one["metadata"]["name"] for one in found] == [f"pod-{number}" for number in range(1000)]
        assert len(peer.requests) == 10
        assert {request.query["labelSelector"] for _, request in peer.requests} == {"a=b"}
        assert all("PartialObjectMetadataList" in request.headers["Accept"] for _, request in peer.requests)


async def test_an_empty_list_is_one() -> None:
    async with asked(text('{"metadata": {}, "items": null}', "application/json")) as (api, _):
        assert await api.list(POD, {}, Deadline(30)) == []


async def test_a_name_that_nobody_resolves_is_told() -> None:
    api = KubernetesAPI(lambda: ApiClient(Configuration(host="https://no-such-host.invalid")), 1)
    with pytest.raises(KubernetesError, match=r"gave no answer \(ClientConnectorDNSError\)"):
        await api.create(SECRET, Deadline(1))
    await api.close()


async def test_a_hub_that_was_told_no_api_server_says_so() -> None:
    def connect() -> ApiClient:
        raise ConfigException("Service host/port is not set.")

    with pytest.raises(KubernetesError, match=r"no answer \(ConfigException\)"):
        await KubernetesAPI(connect, 1).create(SECRET, Deadline(0.5))


async def test_a_token_that_kubelet_has_replaced_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A ServiceAccount's token lives for an hour, and its file is newer from time to time."""
    token, authority = tmp_path / "token", tmp_path / "ca.crt"
    token.write_text("the-first")
    authority.write_text((Path(__file__).parent / "test_api.py").read_text())
    configuration = Configuration()
    environ = {"KUBERNETES_SERVICE_HOST": "127.0.0.1", "KUBERNETES_SERVICE_PORT": "1"}
    monkeypatch.setattr(incluster, "TOKEN_REFRESH_PERIOD", incluster.datetime.timedelta(0))
    incluster.InClusterConfigLoader(str(token), str(authority), environ=environ).load_and_set(configuration)
    configuration.ssl_ca_cert = None

    async with asked(good) as (plain, _):
        await plain.get(POD, Deadline(30))
        assert plain._client is not None
        configuration.host = plain._client.configuration.host
        api = KubernetesAPI(lambda: ApiClient(configuration), 30)
        for content in ("the-first", "the-second"):
            token.write_text(content)
            answer = await api.get(POD, Deadline(30))
            assert answer is not None
            assert answer["metadata"]["token"] == f"Bearer {content}"
        await api.close()


async def test_a_secret_is_in_no_error_and_in_no_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    for answer in (status(422, "invalid"), status(503), never, reset, text("<html>")):
        async with asked(answer, seconds=0.3) as (api, _):
            with pytest.raises(KubernetesError) as raised:
                await api.apply(SECRET, Deadline(0.4))
            assert SECRET["data"]["xcache_token"] not in f"{raised.value!r} {raised.value}"  # type: ignore[index]
    assert SECRET["data"]["xcache_token"] not in caplog.text  # type: ignore[index]


# -- the loop in a thread


async def test_work_is_done_in_the_other_thread_and_its_error_comes_back() -> None:
    loop = OwnLoop("test")
    here = asyncio.get_running_loop()

    async def there() -> bool:
        return asyncio.get_running_loop() is not here

    async def fails() -> None:
        raise KubernetesError("Pod a/b", "problem", "remedy", 403)

    assert await loop.run(there())
    with pytest.raises(KubernetesError, match="Pod a/b"):
        await loop.run(fails())


async def test_work_ends_with_a_caller_that_is_cancelled() -> None:
    loop, begun, ended = OwnLoop("test"), asyncio.Event(), asyncio.Event()
    here = asyncio.get_running_loop()

    async def work() -> None:
        here.call_soon_threadsafe(begun.set)
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            here.call_soon_threadsafe(ended.set)
            raise

    task = asyncio.create_task(loop.run(work()))
    await begun.wait()
    task.cancel()
    async with asyncio.timeout(60):
        await ended.wait()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_the_last_work_waits_for_what_cancelled_callers_still_do(caplog: pytest.LogCaptureFixture) -> None:
    loop, order = OwnLoop("test"), []

    async def note(what: str, after: float = 0.0) -> None:
        await asyncio.sleep(after)
        order.append(what)

    async def caller() -> None:
        try:
            await loop.run(asyncio.sleep(60))
        except asyncio.CancelledError:
            await loop.run(note("cleaned up", 0.3))
            raise

    task = asyncio.create_task(caller())
    await asyncio.sleep(0.2)
    task.cancel()
    async with asyncio.timeout(60):
        await loop.end(note("the last"))
    assert order == ["cleaned up", "the last"]
    assert task.cancelled()
    gc.collect()
    assert "was destroyed" not in caplog.text
