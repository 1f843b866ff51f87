"""Delivery to pods: a Secret, a Service and a route for each start of a server, owned by its pod.

The pod is created first, and its objects name it as their owner by uid. So Kubernetes' garbage collector removes them
whatever ends the pod, and however the hub ends. The pod waits for its Secret, and kubelet looks for it at once. So only
few launches run at the same time, and each makes all its requests without waiting for others.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import cache, wraps
from http import HTTPStatus
from pathlib import Path, PurePosixPath
from typing import Any, Concatenate, ParamSpec, TypeVar

from kubernetes_asyncio.client import ApiClient, V1Pod
from kubespawner.clients import load_config
from traitlets import Dict, Enum, Integer, TraitError, Unicode, validate
from traitlets.config import Config, LoggingConfigurable

from casa_hub.credentials.base import Route
from casa_hub.delivery.deadline import Deadline
from casa_hub.delivery.kubernetes import manifests, ownership
from casa_hub.delivery.kubernetes.api import KubernetesAPI, KubernetesError, OwnLoop
from casa_hub.delivery.kubernetes.leftovers import Leftovers
from casa_hub.delivery.kubernetes.manifests import HubMark, Object, Pod, Start, instance_of
from casa_hub.delivery.kubernetes.pod import RESOURCES, Outfit, Sidecar, patch
from casa_hub.delivery.kubernetes.presence import Presence
from casa_hub.delivery.kubernetes.routes import route_objects
from casa_hub.delivery.removals import Removal
from casa_hub.delivery.traefik import TraefikRoutes
from casa_hub.errors import Problem
from casa_hub.facility import Facility, Minted
from casa_hub.jupyterhub import HubApp
from casa_hub.record import AnyRecord, ServerRecord
from casa_hub.tasks import Background
from casa_hub.unknown_keys import value_of

#: Launches that run at the same time. With more, they slow down the API server and each other, so that each pod waits
#: longer for its Secret, and no server is ready sooner (`bench/storm.py`).
_AT_ONCE = 3
#: Seconds after which a launch frees its place, though unfinished: it waits for the API server, not for the processor.
_PACE = 0.1
#: Seconds between two looks at a pod that is being deleted.
_LOOK_AGAIN = 0.1
#: Leaves out pods whose containers have ended: an operator may want to look at them (`delete_stopped_pods`).
_NOT_ENDED = "status.phase!=Succeeded,status.phase!=Failed"

P = ParamSpec("P")
T = TypeVar("T")


class OvertakenError(KubernetesError):
    """Another request has renewed the Secret: an earlier one of this hub that seemed to have failed, or another's."""


def _in_own_loop(
    method: Callable[Concatenate[KubernetesDelivery, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[KubernetesDelivery, P], Coroutine[Any, Any, T]]:
    """Run a method on the delivery's own event loop (see `OwnLoop`)."""

    @wraps(method)
    async def call(self: KubernetesDelivery, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await self.loop.run(method(self, *args, **kwargs))

    return call


class KubernetesDelivery(LoggingConfigurable):
    """Pods, Secrets, Services and routes of a hub's servers; one instance for each hub.

    All methods are called on the hub's event loop. Those that make requests (`_in_own_loop`) run on another one.
    """

    files = Enum(
        ["sidecar", "mount"],
        default_value="sidecar",
        help="""How the secret files reach a server's containers. `sidecar` (default): a native sidecar (Kubernetes 1.29
        or newer) copies the Secret into a memory-backed volume, where the files belong to the server's user with mode
        0600; HTCondor and XRootD's `ztn` ignore a token that doesn't. `mount`: the Secret is mounted as it is, owned
        by root; for sites whose accounting can't count pods of several containers, and that use neither.""",
    ).tag(config=True)

    sidecar_image = Unicode(
        "",
        help="""Image of the sidecar; any that has a POSIX shell with coreutils or busybox. Default: the server's own
        image, which its node has anyway. Example: `registry.example.org/busybox:1.37`.""",
    ).tag(config=True)

    sidecar_resources = Dict(
        default_value=dict(RESOURCES),
        help="""Resources of the sidecar, as in a pod (`requests`, `limits`). It uses them for some milliseconds when
        files change; its memory holds the files. A low CPU limit makes servers start later: 100m costs half a second.
        Default: requests of 1m CPU and 8Mi, limits of 500m and 32Mi.""",
    ).tag(config=True)

    @validate("sidecar_resources")
    def _known_resources(self, proposal: dict[str, Any]) -> dict[str, Any]:
        value: dict[str, Any] = proposal["value"]
        if not value.keys() <= RESOURCES.keys():
            raise TraitError(
                f"KubernetesDelivery.sidecar_resources has {', '.join(value)!a}; there are requests and limits."
            )
        return value

    files_uid = Integer(
        None,
        allow_none=True,
        min=1,
        help="""Numeric user that the secret files belong to. Default: the one that the server's container runs as. An
        image that starts as root and drops to another user (`NB_UID`, else 1000) gets files of that user. Needed if
        only the image sets the server's user, as root or by a name without a number: Kubernetes would refuse the
        sidecar then (`runAsNonRoot`).""",
    ).tag(config=True)

    routes: TraefikRoutes

    def __init__(self, api: KubernetesAPI, loop: OwnLoop, facility: Facility, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.routes = TraefikRoutes(parent=self)
        self.api = api
        self.loop = loop
        self.facility = facility
        self.hub = HubMark(own_namespace(), facility.hub_id)
        self._room = asyncio.Semaphore(_AT_ONCE)
        self._leftovers: Leftovers | None = None
        self._presence: Presence | None = None
        self._background = Background()

    @classmethod
    def of_spawners(cls, spawner_class: type, facility: Facility, config: Config) -> KubernetesDelivery:
        """A delivery that reaches the API server as KubeSpawner does, by the settings of `spawner_class`."""
        connection = {
            "host": value_of(config, spawner_class, "k8s_api_host"),
            "ssl_ca_cert": value_of(config, spawner_class, "k8s_api_ssl_ca_cert"),
            "verify_ssl": value_of(config, spawner_class, "k8s_api_verify_ssl"),
        }

        def connect() -> ApiClient:
            load_config(**connection)
            return ApiClient()

        api = KubernetesAPI(connect, value_of(config, spawner_class, "k8s_api_request_timeout"))
        return cls(api, OwnLoop("casa-hub-kubernetes"), facility, config=config)

    def begin(self, app: HubApp, spawner_class: type) -> None:
        """Begin to look for pods that were left behind; the hub's own start doesn't wait for it."""
        self.hub = HubMark(own_namespace(), self.facility.hub_id, instance_of(app.cookie_secret))
        namespace = servers_namespace(app.config, spawner_class)
        self._leftovers = Leftovers(self, namespace, app.db, self.log)
        self._presence = Presence(self, namespace, self.log)
        self._background.start(self._live(self._leftovers), "watch for leftovers")

    async def _live(self, leftovers: Leftovers) -> None:
        """Runs until JupyterHub cancels it at the hub's end; then closes the connections."""
        try:
            await leftovers.watch()
        except asyncio.CancelledError:
            await self.loop.end(self.api.close())
            raise

    def suspect(self, start: Start) -> None:
        """Look soon for a pod that this server may have left."""
        if self._leftovers is not None:
            self._leftovers.suspect(start)

    async def collect_garbage(self, *, dry_run: bool) -> list[Removal]:
        """Remove pods and objects without a living server, as `Leftovers.collect`."""
        return [] if self._leftovers is None else await self._leftovers.collect(dry_run=dry_run)

    async def first_look(self) -> None:
        """Wait until half-made pods of the previous hub process are removed; some seconds at most."""
        if self._leftovers is not None:
            await self._leftovers.first_look()

    def check(self, *, routes: bool) -> list[Problem]:
        """What is wrong with the settings; `routes`: whether any credential wants some."""
        return self.routes.check(wanted=routes, local=False)

    def dress(self, pod: V1Pod, start: Start, minted: Minted) -> None:
        """Add to a pod that is about to be created all that its start needs. Repeating it changes nothing more.
        Raises DeliveryError if a container mounts something else at our path.
        """
        if self._leftovers is not None:
            self._leftovers.begins(start)
        directory = PurePosixPath(self.facility.secrets_path)
        outfit = Outfit(
            secret=start.name if wants_secret(minted.record) else "",
            paths=sorted(minted.files),
            directory=directory,
            environment=self.facility.environment(minted, directory),
            labels=start.labels,
            annotations={
                manifests.SERVER: start.server.identity,
                manifests.RECORD: manifests.record_text(minted.record),
            },
        )
        sidecar = Sidecar(image=self.sidecar_image, uid=self.files_uid, resources=self.sidecar_resources)
        patch(pod, outfit, sidecar if self.files == "sidecar" else None)

    # -- the objects of a start

    def owned(
        self, start: Start, pod: Pod, record: ServerRecord, files: Mapping[str, bytes] | None = None
    ) -> list[Object]:
        """All objects that the record says the start's pod should own. The pod waits for the Secret only: it is first.
        Raises DeliveryError if a host name can't be routed, or if the files are too large for a Secret.
        """
        return self._owned(start, pod, record, self.facility.routes(start.server, record), files or {})

    def _owned(
        self, start: Start, pod: Pod, record: ServerRecord, routes: Sequence[Route], files: Mapping[str, bytes]
    ) -> list[Object]:
        secret = [manifests.secret(start, pod, files, record)] if wants_secret(record) else []
        return secret + self._route_objects(start, pod, routes)

    def _route_objects(self, start: Start, pod: Pod, routes: Sequence[Route]) -> list[Object]:
        if not routes:
            return []
        return [manifests.service(start, pod, routes), *route_objects(self.routes, start, pod, routes)]

    def _all(self, start: Start) -> list[Object]:
        """All objects that the start's pod may own, without contents."""
        no_pod = Pod("", "")
        routes = self._route_objects(start, no_pod, self.facility.routes(start.server))
        return [manifests.secret(start, no_pod, {}), *routes]

    def kinds(self) -> list[Object]:
        """An object of each kind that pods of this hub own."""
        objects = self._all(Start(self.facility.server("anybody"), "", "", self.hub))
        return list({(each["apiVersion"], each["kind"]): each for each in objects}.values())

    # -- a start

    @_in_own_loop
    async def launch(
        self, body: Object, start: Start, minted: Minted, *, seconds: float
    ) -> Mapping[str, KubernetesError]:
        """Create the pod `body`, which was dressed, and at once the objects that it owns.

        If a pod of an earlier start of the same server has the name, it is removed; another server's pod is not. A
        creation whose answer got lost is recognised by its start id. After an error the pod may exist (`take_down`).

        `seconds` count from this launch's turn. Returns kind -> why of objects that could not be created and that no
        required credential needs.

        Raises:
            KubernetesError: the pod, or an object that it needs, could not be created.
            DeliveryError: the files are too large, or a host name can't be routed; nothing was created then.
        """
        body["metadata"]["namespace"] = start.namespace  # KubeSpawner leaves it to the request

        def owned(pod: Pod) -> list[Object]:
            return self._owned(start, pod, minted.record, minted.routes, minted.files)

        owned(Pod(body["metadata"]["name"], ""))  # raises its errors before the pod exists
        deadline = None
        while True:
            async with self._in_turn():
                deadline = deadline or Deadline(seconds)
                made = await self._create(body, deadline)
                if ownership.start_id_of(made) == start.start_id:
                    return await self._apply(owned(Pod.from_object(made)), deadline)
            # Not in turn: it may take long, and other launches needn't wait for it.
            await self._make_room(made, body, start, deadline)

    @asynccontextmanager
    async def _in_turn(self) -> AsyncIterator[None]:
        await self._room.acquire()
        inside = True

        def leave() -> None:
            nonlocal inside
            if inside:
                inside = False
                self._room.release()

        asyncio.get_running_loop().call_later(_PACE, leave)
        try:
            yield
        finally:
            leave()

    async def _create(self, body: Object, deadline: Deadline) -> Object:
        """Create the pod. Returns it, or the pod that has its name: of a try whose answer got lost, or another one."""
        while True:
            try:
                return await self.api.create(body, deadline)
            except KubernetesError as error:
                if error.status != HTTPStatus.CONFLICT or error.transient:
                    raise
                found = await self.api.get(body, deadline)
                if found is not None:
                    return found
                if deadline.left < _LOOK_AGAIN:
                    raise
            await asyncio.sleep(_LOOK_AGAIN)  # the pod in the way has just gone

    async def _make_room(self, old: Object, body: Object, start: Start, deadline: Deadline) -> None:
        """Remove the pod of an earlier start of the same server, and wait until it is gone."""
        name, uid = old["metadata"]["name"], old["metadata"]["uid"]
        thing = f"Pod {start.namespace}/{name}"
        if not ownership.is_of(old, start.server, start.hub.instance):
            raise KubernetesError(
                thing,
                "it is another server's, or not a server of this hub",
                "Choose another name for this server. If that doesn't help, ask the operator to look at that pod.",
                HTTPStatus.CONFLICT,
            )
        self.log.info("Removing pod %s/%s, of an earlier start", start.namespace, name)
        await self.api.delete(body, uid, deadline, grace_seconds=0)
        while True:
            now = await self.api.get(body, deadline, metadata_only=True)
            if now is None or now["metadata"]["uid"] != uid:
                return
            if deadline.left < _LOOK_AGAIN:
                raise KubernetesError(
                    thing,
                    "the server's earlier pod does not go away",
                    "Try again in a minute. If it stays, tell the operator: its node may be down.",
                    HTTPStatus.CONFLICT,
                )
            await asyncio.sleep(_LOOK_AGAIN)

    async def _apply(self, objects: Sequence[Object], deadline: Deadline) -> Mapping[str, KubernetesError]:
        """Apply the objects of a new pod, all at the same time. Returns and raises as `launch`."""
        failed = await _each(objects, lambda each: self.api.apply(each, deadline))
        for kind, error in failed.items():
            if kind == "Secret" or self.facility.requires_routes:
                raise error
        return failed

    # -- while it runs

    @_in_own_loop
    async def renew(self, start: Start, minted: Minted, before: str, deadline: Deadline) -> str:
        """Replace files of a running start, all at once. Files that `minted` doesn't have stay.

        `before` is the text of the record from which `minted` was made, as the Secret has it. Returns the text of the
        new record.

        Raises:
            OvertakenError: the Secret has another record by now.
            KubernetesError: the request failed. It may still succeed later, as long as the Secret has `before`.
        """
        changes = manifests.renewal(start, minted.files, minted.record, before)
        after = manifests.record_text(minted.record)
        try:
            await self.api.patch(manifests.reference("Secret", start), changes, deadline)
        except KubernetesError as error:
            if error.status != HTTPStatus.UNPROCESSABLE_ENTITY:
                raise
            _, found = await self._record(start, deadline)
            if found is None or found == before:
                raise
            if found != after:  # else an earlier try, whose answer got lost, has renewed it
                raise OvertakenError(
                    error.thing, "was renewed by another request", "Try again.", HTTPStatus.CONFLICT
                ) from None
        return after

    @_in_own_loop
    async def record(self, start: Start, deadline: Deadline, *, there: bool = False) -> str | None:
        """The text of a start's newest record, from its Secret's annotation; None if it has none.
        Raises KubernetesError, also if the start must have a Secret (`there`) and has none.
        """
        found, text = await self._record(start, deadline)
        if there and not found:
            thing = f"Secret {start.namespace}/{start.name}"
            remedy = "The hub makes it anew within a minute. Find out who deletes Secrets there."
            raise KubernetesError(thing, "it was deleted", remedy, HTTPStatus.NOT_FOUND)
        return text

    async def _record(self, start: Start, deadline: Deadline) -> tuple[bool, str | None]:
        """Whether a Secret of that name exists, and the text of its record if it is this start's."""
        found = await self.api.get(manifests.reference("Secret", start), deadline, metadata_only=True)
        if found is None or ownership.start_id_of(found) != start.start_id:
            return found is not None, None
        return True, ownership.record_text_of(found, start.server)

    async def lacks(self, start: Start, objects: Sequence[Object], since: float) -> list[str] | None:
        """Kinds of the running start's `objects` that don't exist; None if that is not known yet.

        All should have existed from `since` (monotonic) on.
        """
        seen = await self._presence.of(start.namespace, since) if self._presence is not None else None
        if seen is None:
            return None
        gone = [obj for obj in objects if (obj["kind"], obj["metadata"]["name"], start.start_id) not in seen.objects]
        return [kind for kind in dict.fromkeys(obj["kind"] for obj in gone) if kind in seen.kinds]

    @_in_own_loop
    async def bring_back(
        self, start: Start, objects: Sequence[Object], deadline: Deadline
    ) -> Mapping[str, KubernetesError]:
        """Create missing objects of a running start. Returns kind -> why of those that could not be created.

        Objects of this start that exist stay unchanged. They are created, not applied, because a request that was given
        up, but is still on its way, must not change what a later one has made.
        """

        async def create(thing: Object) -> None:
            try:
                await self.api.create(thing, deadline, manager=manifests.MANAGER)
            except KubernetesError as error:
                if error.status != HTTPStatus.CONFLICT or not await self._exists(thing, start, deadline):
                    raise

        return await _each(objects, create)

    async def withdraw(self, start: Start, deadline: Deadline) -> None:
        """Remove the objects of a pod that still runs. Its network policy stays, because it keeps others out.
        Raises KubernetesError.
        """
        await self._remove([each for each in self._all(start) if each["kind"] != "NetworkPolicy"], start, deadline)

    # -- the end

    @_in_own_loop
    async def end(self, start: Start, pod: Pod, grace_seconds: int, deadline: Deadline) -> None:
        """Delete a server's pod, but not another pod that has its name by now. Raises KubernetesError."""
        await self.api.delete(manifests.reference("Pod", start, pod.name), pod.uid, deadline, grace_seconds)

    async def remove(self, start: Start, deadline: Deadline) -> None:
        """Remove the objects of a pod that has ended, but still exists. A failure is logged."""
        try:
            await self._remove(self._all(start), start, deadline)
        except KubernetesError as error:
            self.log.error("An object of an ended server stays until its pod is deleted: %s", error)  # noqa: TRY400

    async def take_down(self, start: Start, pod_name: str, deadline: Deadline) -> None:
        """Remove this start's pod if it exists, and with it all objects that it owns. Raises KubernetesError."""
        await self._remove([manifests.reference("Pod", start, pod_name)], start, deadline)

    # -- all servers of this hub

    @_in_own_loop
    async def pods(self, namespace: str, deadline: Deadline) -> list[Object]:
        """Metadata of this hub's pods in a namespace ("": in all) that have not ended. Raises KubernetesError."""
        selectors = {"labelSelector": ownership.hub_selector(self.hub), "fieldSelector": _NOT_ENDED}
        return await self.api.list(_any_in(namespace, {"apiVersion": "v1", "kind": "Pod"}), selectors, deadline)

    @_in_own_loop
    async def objects(self, kinds: Iterable[Object], namespace: str, deadline: Deadline) -> list[Object]:
        """Metadata of this hub's objects of these kinds, each with its kind; `namespace` as in `pods`.
        Raises KubernetesError.
        """
        found = []
        for kind in kinds:
            what = {"apiVersion": kind["apiVersion"], "kind": kind["kind"]}
            selectors = {"labelSelector": ownership.hub_selector(self.hub)}
            listed = await self.api.list(_any_in(namespace, what), selectors, deadline)
            found += [{**what, "metadata": each["metadata"]} for each in listed]
        return found

    @_in_own_loop
    async def delete(self, found: Object, deadline: Deadline) -> None:
        """Delete exactly this object, by its uid; a pod has its usual grace period. Raises KubernetesError."""
        await self.api.delete(found, found["metadata"]["uid"], deadline)

    async def is_complete(self, start: Start, record: AnyRecord, deadline: Deadline) -> bool:
        """Whether all objects exist that a start must own according to its record. Raises KubernetesError."""
        bare = isinstance(record, ServerRecord) and not wants_secret(record)
        routes = self._route_objects(start, Pod("", ""), self.facility.routes(start.server, record))
        return await self._all_exist(
            routes if bare else [manifests.reference("Secret", start), *routes], start, deadline
        )

    @_in_own_loop
    async def _all_exist(self, objects: Iterable[Object], start: Start, deadline: Deadline) -> bool:
        return all(await asyncio.gather(*(self._exists(each, start, deadline) for each in objects)))

    async def _exists(self, thing: Object, start: Start, deadline: Deadline) -> bool:
        """Whether an object exists and is this start's."""
        found = await self.api.get(thing, deadline, metadata_only=True)
        return found is not None and ownership.start_id_of(found) == start.start_id

    @_in_own_loop
    async def _remove(self, objects: Iterable[Object], start: Start, deadline: Deadline) -> None:
        """Remove those of the objects that are this start's."""

        async def remove(thing: Object) -> None:
            found = await self.api.get(thing, deadline, metadata_only=True)
            if found is not None and ownership.start_id_of(found) == start.start_id:
                await self.api.delete(thing, found["metadata"]["uid"], deadline, grace_seconds=0)

        await asyncio.gather(*map(remove, objects))


async def _each(
    objects: Sequence[Object], do: Callable[[Object], Coroutine[Any, Any, Any]]
) -> dict[str, KubernetesError]:
    """Call `do` with all objects at the same time. Returns kind -> error of the calls that failed."""

    async def attempt(thing: Object) -> KubernetesError | None:
        try:
            await do(thing)
        except KubernetesError as error:
            return error
        return None

    errors = await asyncio.gather(*map(attempt, objects))
    return {thing["kind"]: error for thing, error in zip(objects, errors, strict=True) if error is not None}


def _any_in(namespace: str, kind: Object) -> Object:
    """What `KubernetesAPI.list` asks for."""
    return {**kind, "metadata": {"name": "", "namespace": namespace}}


@cache
def own_namespace() -> str:
    """The namespace that the hub runs in, as KubeSpawner finds it; ``default`` outside of a cluster."""
    try:
        text = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace").read_text(encoding="utf-8")
    except FileNotFoundError:
        return "default"
    return text.strip()


def servers_namespace(config: Any, spawner_class: type) -> str:
    """The namespace of all servers; "" if each user has one."""
    if value_of(config, spawner_class, "enable_user_namespaces"):
        return ""
    return value_of(config, spawner_class, "namespace") or own_namespace()


def wants_secret(record: ServerRecord) -> bool:
    """Whether a server gets a Secret. It is empty at first if no credential could be minted at the start."""
    return bool(record.names or record.missing)
