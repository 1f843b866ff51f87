"""An HTTPS proxy in front of the real API server, which goes wrong in the way that a test tells it to.

    with FaultProxy(plane, directory) as proxy:
        hub = kubernetes_hub(..., kubeconfig=proxy.kubeconfig(plane.make_account(...)))
        rule = proxy.on("POST", r"/pods$", Answer(503), times=2)
        ...
        assert rule.hits == 2

Everything without a rule goes through as it is, watches included. It ends TLS with a certificate of its own, so a
client must log in with a token. One thread with an event loop; rules may be made and ended from any other.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import re
import socket
import ssl
import struct
import threading
from collections.abc import Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import aiohttp
import trustme
from aiohttp import web

from tests.support.kubernetes.api import Api

#: Headers of one connection, not of the message (RFC 9110, section 7.6.1), and the length that is counted anew.
_HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "te", "upgrade", "host", "content-length"}


@dataclass(frozen=True)
class Answer:
    """The API server isn't asked; this is the answer, as a `Status` of Kubernetes."""

    status: int
    message: str = "of the fault proxy"
    retry_after: int | None = None


@dataclass(frozen=True)
class Delay:
    """The request arrives so many seconds later."""

    seconds: float


@dataclass(frozen=True)
class Reset:
    """The connection is reset, before the request arrives at the API server or (`after`) when it has been answered."""

    after: bool = False


@dataclass(frozen=True)
class Hold:
    """Nothing happens until the test says what (`Rule.release`, `Rule.drop`); `after`: the API server has answered."""

    after: bool = False


Fault = Answer | Delay | Reset | Hold


@dataclass
class Rule:
    """One of the proxy's; what it does can be awaited."""

    method: str
    path: re.Pattern[str]
    fault: Fault
    #: The first request that is meant, and how many.
    nth: int
    times: float
    chance: float = 1.0
    seen: int = 0
    #: Requests that the fault happened to.
    hits: int = 0
    _changed: threading.Condition = field(default_factory=threading.Condition)
    _loop: asyncio.AbstractEventLoop | None = None
    _decided: asyncio.Event = field(default_factory=asyncio.Event)
    _dropped: bool = False

    def applies(self, method: str, path: str) -> bool:
        if method != self.method or not self.path.search(path):
            return False
        self.seen += 1
        if not self.nth <= self.seen < self.nth + self.times or random.random() >= self.chance:
            return False
        with self._changed:
            self.hits += 1
            self._changed.notify_all()
        return True

    def wait(self, hits: int = 1, timeout: float = 60) -> None:
        """Until the fault has happened so often."""
        with self._changed:
            assert self._changed.wait_for(lambda: self.hits >= hits, timeout), f"no {self.method} {self.path.pattern}"

    def release(self) -> None:
        """What is held goes on, and all after it goes through."""
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._decided.set)

    def drop(self) -> None:
        """What is held is reset, and so is all after it."""
        self._dropped = True
        self.release()

    async def decided(self) -> bool:
        """Whether it may go on."""
        await self._decided.wait()
        return not self._dropped


class FaultProxy:
    """A context manager."""

    def __init__(self, api: Api, directory: Path) -> None:
        """`directory`: for its certificate and kubeconfigs; made if need be."""
        self._api = api
        self._directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        self._rules: list[Rule] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        #: Method, path and status of each request that was answered, in their order.
        self.answered: list[tuple[str, str, int]] = []
        authority = trustme.CA(organization_name="fault proxy")
        self._certificate = authority.issue_cert("127.0.0.1")
        self._ca = directory / "fault-proxy.crt"
        authority.cert_pem.write_to_path(self._ca)
        self._open = asyncio.Event()
        self._open.set()

    def kubeconfig(self, of: Path) -> Path:
        """A copy of a kubeconfig (with a token in it) that leads here."""
        document = json.loads(of.read_text())
        document["clusters"][0]["cluster"] = {"server": self.url, "certificate-authority": str(self._ca)}
        path = self._directory / of.name
        path.touch(mode=0o600)
        path.write_text(json.dumps(document))
        return path

    # -- what a test tells it

    def on(self, method: str, path: str, fault: Fault, *, nth: int = 1, times: float = 1, chance: float = 1.0) -> Rule:
        """From the `nth` request on whose path (with its query) has a match of a pattern, do `fault` `times` times."""
        rule = Rule(method, re.compile(path), fault, nth, times, chance, _loop=self._loop)
        self._rules.append(rule)
        return rule

    def clear(self) -> None:
        """No more faults; what is held is dropped."""
        for rule in self._rules:
            rule.drop()
        self._rules = []

    def go_away(self) -> None:
        """A black hole: connections are taken, nothing is answered any more, watches are silent."""
        self._loop.call_soon_threadsafe(self._open.clear)

    def come_back(self) -> None:
        """All that the black hole held goes on."""
        self._loop.call_soon_threadsafe(self._open.set)

    # -- the proxy

    def __enter__(self) -> Self:
        self._thread.start()
        self._run(self._start())
        return self

    def __exit__(self, *_: object) -> None:
        self.clear()
        self.come_back()
        self._run(self._stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(60)

    async def _start(self) -> None:
        upstream = ssl.create_default_context(cafile=self._api.ca_path)
        self._session = aiohttp.ClientSession(
            self._api.url,
            connector=aiohttp.TCPConnector(ssl=upstream, limit=0),
            timeout=aiohttp.ClientTimeout(total=None),
            auto_decompress=False,
            read_bufsize=1 << 21,
        )
        app = web.Application(client_max_size=1 << 24)
        app.router.add_route("*", "/{path:.*}", self._handle)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self._certificate.configure_cert(context)
        site = web.TCPSite(self._runner, "127.0.0.1", 0, ssl_context=context)
        await site.start()
        port = self._runner.addresses[0][1]
        self.url = f"https://127.0.0.1:{port}"

    async def _stop(self) -> None:
        await self._runner.cleanup()
        await self._session.close()
        left = asyncio.all_tasks() - {asyncio.current_task()}
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        await self._open.wait()
        for rule in list(self._rules):
            if rule.applies(request.method, request.path_qs):
                return await self._fail(rule, request, body)
        return await self._pass(request, body)

    async def _fail(self, rule: Rule, request: web.Request, body: bytes) -> web.StreamResponse:
        match rule.fault:
            case Answer(status, message, retry_after):
                self.answered.append((request.method, request.path, status))
                document = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "code": status}
                headers = {} if retry_after is None else {"Retry-After": str(retry_after)}
                return web.json_response({**document, "message": message}, status=status, headers=headers)
            case Delay(seconds):
                await asyncio.sleep(seconds)
                return await self._pass(request, body)
            case Reset(after):
                if after:
                    await self._ask(request, body)
                return _reset(request)
            case Hold(after):
                response = await self._ask(request, body) if after else None
                if not await rule.decided():
                    return _reset(request)
                return response or await self._pass(request, body)

    async def _ask(self, request: web.Request, body: bytes) -> web.Response:
        """A request that the API server is to have, whether or not somebody still waits for its answer."""
        async with self._upstream(request, body) as answer:
            content = await answer.read()
            self.answered.append((request.method, request.path, answer.status))
            return web.Response(body=content, status=answer.status, headers=_end_to_end(answer.headers))

    async def _pass(self, request: web.Request, body: bytes) -> web.StreamResponse:
        if "watch=" not in request.query_string:
            response: web.StreamResponse = await self._ask(request, body)
            await self._open.wait()
            return response
        async with self._upstream(request, body) as answer:
            response = web.StreamResponse(status=answer.status, headers=_end_to_end(answer.headers))
            with contextlib.suppress(ConnectionError):  # the client has gone
                await response.prepare(request)
                async for chunk in answer.content.iter_any():
                    await self._open.wait()
                    await response.write(chunk)
                await response.write_eof()
            return response

    def _upstream(self, request: web.Request, body: bytes) -> Any:
        return self._session.request(
            request.method, request.path_qs, data=body, headers=_end_to_end(request.headers), allow_redirects=False
        )


def _end_to_end(headers: Any) -> dict[str, str]:
    return {name: value for name, value in headers.items() if name.lower() not in _HOP_BY_HOP}


def _reset(request: web.Request) -> web.StreamResponse:
    """Break the connection off, with a RST as a router's or a dying server's."""
    if request.transport is not None:
        raw = request.transport.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        request.transport.abort()
    return web.Response(status=502)  # nobody gets it
