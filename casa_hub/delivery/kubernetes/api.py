"""Requests to the Kubernetes API: each within its work's deadline, their errors translated in this one place.

They are made in a thread with an event loop of its own. A hub's loop is held up now and then for a second or more (a
hundred people start their servers at once), and a pod whose Secret comes 100 ms late costs its user 0.6 s: kubelet then
waits before it looks again.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import threading
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, TypeVar
from urllib.parse import urlencode, urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp
from kubernetes_asyncio.client import ApiClient
from kubernetes_asyncio.config import ConfigException

from casa_hub.delivery.deadline import Deadline
from casa_hub.delivery.kubernetes.manifests import MANAGER, Object, path
from casa_hub.errors import DeliveryError

T = TypeVar("T")

#: Answers that may be another one in a moment: too many requests, and whatever ails the server.
_TRANSIENT = {429, 500, 502, 503, 504}
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 2.0
#: Seconds below which a try would say no more than that there was no time.
_LEAST = 0.1

APPLY = "application/apply-patch+yaml"
_JSON_PATCH = "application/json-patch+json"
#: Asks for an object, or a list, without its contents: a Secret's stay where they are.
_METADATA = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"
_METADATA_LIST = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"

#: Objects in an answer to `list`: some 0.3 MB, which take some milliseconds to read that no other thread runs in.
_PAGE = 100

#: Where Kubernetes says so in a 409, two requests met at one object, which need not be the one that was asked for (a
#: ResourceQuota): the same request succeeds when the other one is done.
_TRY_AGAIN = "the object has been modified"
#: Where Kubernetes says so in a 409 to an apply, another manager owns a field. It stays so until that one gives it up.
_OWNED = re.compile(r"\bconflicts? with\b")
#: Where Kubernetes says so in a 409 to a deletion, another object has the name by now.
_ANOTHER = re.compile(r"\bUID in (the )?precondition\b")
#: Times that a request is made again whose 409 says neither: something that passes, or an admission webhook's "no".
_UNCLEAR = 4
#: And where it says so in a 500, an apply had a field of a wrong type.
_MISTYPED = "failed to create typed patch object"

#: Seconds for a cancelled caller to begin with what it does about it.
_TO_NOTICE = 0.05

#: Whether a 409 is unclear -> problem and remedy.
_CONFLICTS = {
    False: ("something else is in its place", "Whoever made that must remove it."),
    True: ("the API server says that it conflicts with something", "Try again in a minute."),
}

#: HTTP method -> the verb of RBAC that it needs.
_VERBS = {"GET": "get", "POST": "create", "PATCH": "patch", "DELETE": "delete"}
#: The API server says which one is missing: an apply that would make an object needs `create` too, and a list is a GET.
_CANNOT = re.compile(r"\bcannot (\w+) resource\b")


class KubernetesError(DeliveryError):
    """The API server didn't do what it was asked to: which object, why, and the remedy."""

    def __init__(
        self,
        thing: str,
        problem: str,
        remedy: str,
        status: int | None = None,
        retry_after: float = 0.0,
        *,
        unclear: bool = False,
    ) -> None:
        super().__init__(thing, problem, remedy)
        #: HTTP status of the answer; None if there was none in time.
        self.status = status
        #: Seconds that the server wants to be left alone.
        self.retry_after = retry_after
        #: Whether the answer is a 409 that doesn't say what is in the way, so that it may pass or stay.
        self.unclear = unclear

    @property
    def transient(self) -> bool:
        """Whether the same request may succeed in a moment."""
        if self.status == HTTPStatus.CONFLICT:
            return _TRY_AGAIN in self.problem
        return self.status is None or self.status in _TRANSIENT


class OwnLoop:
    """An event loop in a thread, for work that must not wait for the hub's other work."""

    def __init__(self, name: str) -> None:
        self._loop = asyncio.new_event_loop()
        # A daemon: nothing in it outlives the hub or is worth to be waited for at its end.
        self._thread = threading.Thread(target=self._loop.run_forever, name=name, daemon=True)
        self._thread.start()
        #: Of the callers' loop.
        self._work: set[asyncio.Future[Any]] = set()

    async def run(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of `work`, done there; cancelled there if the caller is."""
        future = asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self._loop))
        self._work.add(future)
        future.add_done_callback(self._work.discard)
        return await future

    async def end(self, last: Coroutine[Any, Any, None]) -> None:
        """Do `last` when all other work is done, that of cancelled callers who clean up included."""
        await asyncio.sleep(_TO_NOTICE)
        while self._work:
            await asyncio.wait(self._work)
            await asyncio.sleep(_TO_NOTICE)
        await self.run(last)


@dataclass(frozen=True, slots=True)
class _Call:
    method: str
    where: str
    #: For errors.
    what: Object
    body: Any = field(default=None, repr=False)
    headers: Mapping[str, str] = field(default_factory=dict)


class KubernetesAPI:
    """The few verbs that this package uses; all coroutines are for one and the same event loop.

    Transient failures (time-out, reset, 429 with its ``Retry-After``, 5xx, a 409 of two requests that met) are tried
    again until the deadline: every verb may be repeated without harm. A 409 that doesn't say what is in the way is
    tried again a few times. All else is raised at once.
    """

    def __init__(self, connect: Callable[[], ApiClient], request_timeout: float) -> None:
        """`connect` makes the client when it is first needed; `request_timeout`: seconds of a single request."""
        self.connect = connect
        self._request_timeout = request_timeout
        self._client: ApiClient | None = None

    async def create(self, body: Object, deadline: Deadline, *, manager: str = "") -> Object:
        """`manager`: of its fields; default: by the client's name.

        Raises KubernetesError; 409 if it is there already, as it may be after an answer that got lost.
        """
        where = f"{_collection(body)}?fieldManager={manager}" if manager else _collection(body)
        return await self._request(_Call("POST", where, body, body), deadline)

    async def apply(self, body: Object, deadline: Deadline) -> Object:
        """Server-side apply, without taking fields from other managers (409). Raises KubernetesError."""
        where = f"{path(body)}?fieldManager={MANAGER}"
        return await self._request(_Call("PATCH", where, body, body, {"Content-Type": APPLY}), deadline)

    async def patch(self, what: Object, patch: list[Object], deadline: Deadline) -> Object:
        """JSON Patch; the answer is the metadata only. Raises KubernetesError, 422 for a test that failed."""
        headers = {"Content-Type": _JSON_PATCH, "Accept": _METADATA}
        where = f"{path(what)}?fieldManager={MANAGER}"
        return await self._request(_Call("PATCH", where, what, patch, headers), deadline)

    async def get(self, what: Object, deadline: Deadline, *, metadata_only: bool = False) -> Object | None:
        """None if it isn't there. Raises KubernetesError."""
        headers = {"Accept": _METADATA} if metadata_only else {}
        try:
            return await self._request(_Call("GET", path(what), what, None, headers), deadline)
        except KubernetesError as error:
            if error.status != HTTPStatus.NOT_FOUND:
                raise
            return None

    async def list(self, what: Object, selectors: Mapping[str, str], deadline: Deadline) -> list[Object]:
        """Metadata of objects of the kind and namespace of `what`; `selectors`: ``labelSelector``, ``fieldSelector``.

        Raises KubernetesError, 410 if it took so long that the API server doesn't know any more where it was.
        """
        found: list[Object] = []
        after = ""
        while True:
            where = f"{_collection(what)}?{urlencode({**selectors, 'limit': _PAGE, 'continue': after})}"
            page = await self._request(_Call("GET", where, what, headers={"Accept": _METADATA_LIST}), deadline)
            found += page.get("items") or []
            after = page["metadata"].get("continue", "")
            if not after:
                return found

    async def delete(self, what: Object, uid: str, deadline: Deadline, grace_seconds: int | None = None) -> None:
        """Delete the object that has this uid; nothing if it is gone already, or another has its name by now."""
        options: Object = {"preconditions": {"uid": uid}}
        if grace_seconds is not None:
            options["gracePeriodSeconds"] = grace_seconds
        try:
            await self._request(_Call("DELETE", path(what), what, options), deadline)
        except KubernetesError as error:
            gone = error.status == HTTPStatus.NOT_FOUND
            another = error.status == HTTPStatus.CONFLICT and not error.transient and not error.unclear
            if not gone and not another:
                raise

    async def close(self) -> None:
        if self._client is not None:
            await self._client.close()
            self._client = None

    async def _request(self, call: _Call, deadline: Deadline) -> Object:
        pause, unclear = _FIRST_PAUSE, 0
        while True:
            try:
                return await self._once(call, min(self._request_timeout, deadline.left))
            except KubernetesError as error:
                wait = max(error.retry_after, pause * random.uniform(0.5, 1))  # noqa: S311 - not all come at once
                unclear += error.unclear
                again = error.transient or (error.unclear and unclear <= _UNCLEAR)
                if not again or wait + _LEAST >= deadline.left:
                    raise
            await asyncio.sleep(wait)
            pause = min(pause * 2, _LONGEST_PAUSE)

    async def _once(self, call: _Call, seconds: float) -> Object:
        headers = {"Accept": "application/json", "Content-Type": "application/json", **call.headers}
        try:
            if self._client is None:
                self._client = _without_look_ups(self.connect())
            async with asyncio.timeout(seconds):
                answer, content = await exchange(self._client, call.method, call.where, call.body, headers)
        except TimeoutError:
            raise _no_answer(call.what, f"no answer within {seconds:.1f} s") from None
        except (aiohttp.ClientError, OSError, ConfigException) as error:
            raise _no_answer(call.what, f"no answer ({type(error).__name__})") from error
        try:
            document = json.loads(content)
        except ValueError:
            document = None
        if HTTPStatus.OK <= answer.status < HTTPStatus.MULTIPLE_CHOICES:
            if not isinstance(document, dict) or "metadata" not in document:
                raise _no_answer(call.what, "an answer that is none of Kubernetes'")
            return document
        raise _refused(call, answer.status, document, answer.headers.get("Retry-After", ""))


async def exchange(
    client: ApiClient, method: str, where: str, body: Any, headers: dict[str, str]
) -> tuple[aiohttp.ClientResponse, bytes]:
    """One request to the API server, and its answer of any status with the body."""
    await client.update_params_for_auth(headers, [], ["BearerToken"])
    # Not preloaded: the client writes what it preloads to its log, and it may be a Secret.
    answer = await client.rest_client.request(
        method, f"{client.configuration.host}{where}", headers=headers, body=body, _preload_content=False
    )
    return answer, await answer.read()


def _without_look_ups(client: ApiClient) -> ApiClient:
    """Let a client look for a proxy in the environment once, and not before each request.

    Its aiohttp session does that, and reads ``~/.netrc``, in two other threads. In a busy hub each change of threads
    waits for the interpreter's lock, and the two take half of a request's CPU.
    """
    rest = client.rest_client
    where = urlsplit(str(client.configuration.host))
    if not rest.proxy and not proxy_bypass(where.hostname or ""):
        rest.proxy = getproxies().get(where.scheme, "")
    connector = rest.pool_manager.connector
    rest.pool_manager.detach()
    rest.pool_manager = aiohttp.ClientSession(connector=connector)
    return client


def described(what: Object) -> str:
    """``Secret casa-hub/casa-alice-1f2e3d4c``."""
    metadata = what["metadata"]
    name = metadata.get("name", "")
    if name:
        return f"{what['kind']} {metadata['namespace']}/{name}"
    return f"{what['kind']}s in {metadata['namespace'] or 'all namespaces'}"


def _no_answer(what: Object, problem: str) -> KubernetesError:
    return KubernetesError(
        described(what),
        f"the Kubernetes API server gave {problem}",
        "Try again in a minute; if it goes on, tell the operator that the API server can't be reached.",
    )


def _refused(call: _Call, status: int, document: Any, retry_after: str) -> KubernetesError:
    """An answer that isn't a success, for people. The server's message is kept: it quotes no data of a Secret."""
    message = str(document.get("message", "")) if isinstance(document, dict) else ""
    what = call.what
    denied = _CANNOT.search(message)
    verb = denied[1] if denied else _VERBS[call.method]
    thing = described(what)
    said = f" ({message})" if message else ""
    unclear = _is_unclear(call.method, status, message)
    match status:
        case 401:
            problem, remedy = "the API server doesn't know this hub", "The hub's ServiceAccount token must be mounted."
        case 403 if "exceeded quota" in message:
            problem, remedy = f"a quota of the namespace is used up{said}", "Stop something, or ask for a larger quota."
        case 403 if message and "cannot" not in message:
            problem = f"an admission policy of the cluster refuses it{said}"
            remedy = "A setting of this hub's spawner must be corrected, or the policy."
        case 403:
            kind = _collection(what).rsplit("/", 1)[-1]
            problem = f"the hub's ServiceAccount may not {verb} {kind} there{said}"
            remedy = f"Its Role needs the verb {verb} on {kind}; apply casa_hub's helm-values/role.yaml."
        case 404:
            problem = f"the API server doesn't know it{said}"
            remedy = f"Its namespace must exist, and {what['apiVersion']} {what['kind']} must be installed."
        case 409:
            problem, remedy = _CONFLICTS[unclear]
            problem += said
        case 500 if _MISTYPED in message:  # it would fail in the same way again
            return _refused(call, 422, document, retry_after)
        case 400 | 422:
            problem = f"the API server finds it invalid{said}"
            remedy = "A setting of this hub's spawner, or of casa_hub, must be corrected."
        case 429:
            problem, remedy = f"the API server has too much to do{said}", "Try again in a minute."
        case _:
            problem, remedy = f"the API server failed with status {status}{said}", "Try again in a minute."
    # A date instead of seconds (RFC 9110) isn't what the API server sends.
    seconds = float(retry_after) if retry_after.isdigit() else 0.0
    return KubernetesError(thing, problem, remedy, status, seconds, unclear=unclear)


def _is_unclear(method: str, status: int, message: str) -> bool:
    """Whether it is a 409 that neither says that it passes nor what stays in the way."""
    if status != HTTPStatus.CONFLICT:
        return False
    match method:
        case "POST":  # there is an object of that name, which the caller looks at
            return False
        case "DELETE":
            return _TRY_AGAIN not in message and not _ANOTHER.search(message)
        case _:
            return _TRY_AGAIN not in message and not _OWNED.search(message)


def _collection(what: Object) -> str:
    return path(what).rsplit("/", 1)[0]
