"""Requests to the Kubernetes API: each has a deadline, and all errors are translated here.

The requests run in a thread with its own event loop (`OwnLoop`). The hub's loop can stall for a second or more when a
hundred people start their servers at once. If a pod's Secret comes 100 ms late, the user waits 0.6 s longer, because
kubelet waits before it looks again.
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

#: Statuses after which the same request may succeed in a moment: too many requests, or the server is in trouble.
_TRANSIENT = {429, 500, 502, 503, 504}
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 2.0
#: A request is not tried again with less time than this; in seconds.
_SHORTEST_TRY = 0.1

APPLY = "application/apply-patch+yaml"
_JSON_PATCH = "application/json-patch+json"
#: Asks for the metadata of an object or a list only, so that the contents of Secrets are not sent.
_METADATA = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"
_METADATA_LIST = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"

#: Objects in an answer to `list`: about 0.3 MB. Parsing that holds the interpreter's lock for some milliseconds.
_PAGE_SIZE = 100

#: In a 409: two requests changed one object at the same time, perhaps another object than the requested one (a
#: ResourceQuota). The same request succeeds when the other one is done.
_RACE = "the object has been modified"
#: In a 409 to an apply: another manager owns a field, and keeps it until it gives the field up.
_OWNED = re.compile(r"\bconflicts? with\b")
#: In a 409 to a deletion: another object has the name by now.
_REPLACED = re.compile(r"\bUID in (the )?precondition\b")
#: How often a request is tried again whose 409 says none of these: the conflict may pass, or an admission webhook
#: refuses.
_UNCLEAR_RETRIES = 4
#: In a 500: a field of an apply had a wrong type.
_MISTYPED = "failed to create typed patch object"

#: Seconds that a cancelled caller has to begin its cleaning up.
_CLEAN_UP_DELAY = 0.05

#: Whether a 409 is unclear -> problem and remedy.
_CONFLICTS = {
    False: ("something else is in its place", "Whoever made that must remove it."),
    True: ("the API server says that it conflicts with something", "Try again in a minute."),
}

#: HTTP method -> the verb of RBAC that it needs.
_VERBS = {"GET": "get", "POST": "create", "PATCH": "patch", "DELETE": "delete"}
#: The API server names the missing verb. It can differ from `_VERBS`: an apply to a new object needs `create`, too, and
#: a list is a GET.
_CANNOT = re.compile(r"\bcannot (\w+) resource\b")


class KubernetesError(DeliveryError):
    """A request to the API server failed."""

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
        #: HTTP status of the answer; None if no answer came in time.
        self.status = status
        #: Seconds after which the server allows another request.
        self.retry_after = retry_after
        #: Whether the answer is a 409 that doesn't say what is in the way; it may pass or stay.
        self.unclear = unclear

    @property
    def transient(self) -> bool:
        """Whether the same request may succeed in a moment."""
        if self.status == HTTPStatus.CONFLICT:
            return _RACE in self.problem
        return self.status is None or self.status in _TRANSIENT


class OwnLoop:
    """An event loop in its own thread, for work that must not wait for the hub's other work."""

    def __init__(self, name: str) -> None:
        self._loop = asyncio.new_event_loop()
        # A daemon thread: the hub's end doesn't wait for it.
        self._thread = threading.Thread(target=self._loop.run_forever, name=name, daemon=True)
        self._thread.start()
        #: Futures of the callers' loop.
        self._work: set[asyncio.Future[Any]] = set()

    async def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run `work` on this loop and return its result. If the caller is cancelled, so is `work`."""
        future = asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self._loop))
        self._work.add(future)
        future.add_done_callback(self._work.discard)
        return await future

    async def end(self, last: Coroutine[Any, Any, None]) -> None:
        """Run `last` after all other work, the cleaning up of cancelled callers included."""
        await asyncio.sleep(_CLEAN_UP_DELAY)
        while self._work:
            await asyncio.wait(self._work)
            await asyncio.sleep(_CLEAN_UP_DELAY)
        await self.run(last)


@dataclass(frozen=True, slots=True)
class _Call:
    method: str
    #: Path and query.
    url: str
    #: The object, for errors.
    what: Object
    body: Any = field(default=None, repr=False)
    headers: Mapping[str, str] = field(default_factory=dict)


class KubernetesAPI:
    """The few verbs that this package uses. All coroutines must run on the same event loop.

    Transient failures (time-out, reset, 429 with its ``Retry-After``, 5xx, a 409 of two requests at the same time) are
    tried again until the deadline; no verb does harm when it is repeated. A 409 that doesn't say what is in the way is
    tried again a few times. All other failures are raised at once.
    """

    def __init__(self, connect: Callable[[], ApiClient], request_timeout: float) -> None:
        """`connect` makes the client when it is first needed. A single request may take `request_timeout` seconds."""
        self.connect = connect
        self._request_timeout = request_timeout
        self._client: ApiClient | None = None

    async def create(self, body: Object, deadline: Deadline, *, manager: str = "") -> Object:
        """Create an object. `manager` of its fields: by default the client's name.

        Raises KubernetesError: 409 if the object exists, perhaps by an earlier try whose answer got lost.
        """
        url = f"{_collection(body)}?fieldManager={manager}" if manager else _collection(body)
        return await self._request(_Call("POST", url, body, body), deadline)

    async def apply(self, body: Object, deadline: Deadline) -> Object:
        """Server-side apply. Raises KubernetesError: 409 if another manager owns a field."""
        url = f"{path(body)}?fieldManager={MANAGER}"
        return await self._request(_Call("PATCH", url, body, body, {"Content-Type": APPLY}), deadline)

    async def patch(self, what: Object, patch: list[Object], deadline: Deadline) -> Object:
        """Apply a JSON Patch and return the metadata. Raises KubernetesError: 422 if a test of the patch fails."""
        headers = {"Content-Type": _JSON_PATCH, "Accept": _METADATA}
        url = f"{path(what)}?fieldManager={MANAGER}"
        return await self._request(_Call("PATCH", url, what, patch, headers), deadline)

    async def get(self, what: Object, deadline: Deadline, *, metadata_only: bool = False) -> Object | None:
        """Read an object; None if it doesn't exist. Raises KubernetesError."""
        headers = {"Accept": _METADATA} if metadata_only else {}
        try:
            return await self._request(_Call("GET", path(what), what, None, headers), deadline)
        except KubernetesError as error:
            if error.status != HTTPStatus.NOT_FOUND:
                raise
            return None

    async def list(self, what: Object, selectors: Mapping[str, str], deadline: Deadline) -> list[Object]:
        """Metadata of all objects of the kind and namespace of `what`; selectors: ``labelSelector``, ``fieldSelector``.

        Raises KubernetesError: 410 if the list took longer than the API server keeps its place.
        """
        found: list[Object] = []
        after = ""
        while True:
            url = f"{_collection(what)}?{urlencode({**selectors, 'limit': _PAGE_SIZE, 'continue': after})}"
            page = await self._request(_Call("GET", url, what, headers={"Accept": _METADATA_LIST}), deadline)
            found += page.get("items") or []
            after = page["metadata"].get("continue", "")
            if not after:
                return found

    async def delete(self, what: Object, uid: str, deadline: Deadline, grace_seconds: int | None = None) -> None:
        """Delete the object with this uid. Does nothing if it is gone, or another object has its name by now."""
        options: Object = {"preconditions": {"uid": uid}}
        if grace_seconds is not None:
            options["gracePeriodSeconds"] = grace_seconds
        try:
            await self._request(_Call("DELETE", path(what), what, options), deadline)
        except KubernetesError as error:
            gone = error.status == HTTPStatus.NOT_FOUND
            replaced = error.status == HTTPStatus.CONFLICT and not error.transient and not error.unclear
            if not gone and not replaced:
                raise

    async def close(self) -> None:
        if self._client is not None:
            await self._client.close()
            self._client = None

    async def _request(self, call: _Call, deadline: Deadline) -> Object:
        pause, unclear = _FIRST_PAUSE, 0
        while True:
            try:
                return await self._try(call, min(self._request_timeout, deadline.left))
            except KubernetesError as error:
                wait = max(error.retry_after, pause * random.uniform(0.5, 1))  # noqa: S311 - spreads the retries
                unclear += error.unclear
                retry = error.transient or (error.unclear and unclear <= _UNCLEAR_RETRIES)
                if not retry or wait + _SHORTEST_TRY >= deadline.left:
                    raise
            await asyncio.sleep(wait)
            pause = min(pause * 2, _LONGEST_PAUSE)

    async def _try(self, call: _Call, seconds: float) -> Object:
        headers = {"Accept": "application/json", "Content-Type": "application/json", **call.headers}
        try:
            if self._client is None:
                self._client = _with_fixed_proxy(self.connect())
            async with asyncio.timeout(seconds):
                answer, content = await exchange(self._client, call.method, call.url, call.body, headers)
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
                raise _no_answer(call.what, "an answer that isn't Kubernetes'")
            return document
        raise _refused(call, answer.status, document, answer.headers.get("Retry-After", ""))


async def exchange(
    client: ApiClient, method: str, url: str, body: Any, headers: dict[str, str]
) -> tuple[aiohttp.ClientResponse, bytes]:
    """Send one request to the API server. Returns its answer, of any status, and the body."""
    await client.update_params_for_auth(headers, [], ["BearerToken"])
    # Not preloaded: the client logs what it preloads, and that may be a Secret.
    answer = await client.rest_client.request(
        method, f"{client.configuration.host}{url}", headers=headers, body=body, _preload_content=False
    )
    return answer, await answer.read()


def _with_fixed_proxy(client: ApiClient) -> ApiClient:
    """Look for a proxy in the environment once, not before each request.

    The client's own aiohttp session does so for each request, and also reads ``~/.netrc``, in two other threads. In a
    busy hub each change of threads waits for the interpreter's lock, and the two take half of a request's CPU.
    """
    rest = client.rest_client
    host = urlsplit(str(client.configuration.host))
    if not rest.proxy and not proxy_bypass(host.hostname or ""):
        rest.proxy = getproxies().get(host.scheme, "")
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
    """The error for an answer that isn't a success. It quotes the server's message, which holds no data of a Secret."""
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
            remedy = "Correct a setting of this hub's spawner, or the policy."
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
        case 500 if _MISTYPED in message:  # another try would fail in the same way
            return _refused(call, 422, document, retry_after)
        case 400 | 422:
            problem = f"the API server finds it invalid{said}"
            remedy = "Correct a setting of this hub's spawner, or of casa_hub."
        case 429:
            problem, remedy = f"the API server has too much to do{said}", "Try again in a minute."
        case _:
            problem, remedy = f"the API server failed with status {status}{said}", "Try again in a minute."
    # RFC 9110 also allows a date, which the API server doesn't send.
    seconds = float(retry_after) if retry_after.isdigit() else 0.0
    return KubernetesError(thing, problem, remedy, status, seconds, unclear=unclear)


def _is_unclear(method: str, status: int, message: str) -> bool:
    """Whether a 409 says neither that it will pass nor what is in the way."""
    if status != HTTPStatus.CONFLICT:
        return False
    match method:
        case "POST":  # the name is taken; the caller looks by what
            return False
        case "DELETE":
            return _RACE not in message and not _REPLACED.search(message)
        case _:
            return _RACE not in message and not _OWNED.search(message)


def _collection(what: Object) -> str:
    return path(what).rsplit("/", 1)[0]
