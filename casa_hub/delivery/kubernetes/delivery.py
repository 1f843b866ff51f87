"""Delivery to pods: a Secret, a Service and a route for each start of a server, owned by its pod.

What is delivered is settled here, from the operator's settings; how it is brought there is `courier`'s.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping, Sequence
from functools import cache, partial
from http import HTTPStatus
from pathlib import Path, PurePosixPath
from typing import Any

from kubernetes_asyncio.client import ApiClient, V1Pod
from kubespawner.clients import load_config
from traitlets import Dict, Enum, Integer, TraitError, Unicode, validate
from traitlets.config import LoggingConfigurable

from casa_hub.configuration import value_of
from casa_hub.delivery.base import Parcel, Route
from casa_hub.delivery.gc import Removal
from casa_hub.delivery.kubernetes import manifests, marks
from casa_hub.delivery.kubernetes.api import Deadline, KubernetesAPI, KubernetesError, OwnLoop
from casa_hub.delivery.kubernetes.courier import Courier, Launched, Load
from casa_hub.delivery.kubernetes.leftovers import Leftovers
from casa_hub.delivery.kubernetes.manifests import Object, Pod, Start
from casa_hub.delivery.kubernetes.pod import RESOURCES, Outfit, Sidecar, patch
from casa_hub.delivery.kubernetes.presence import Presence
from casa_hub.delivery.kubernetes.routes import route_objects
from casa_hub.delivery.traefik import TraefikRoutes
from casa_hub.errors import Problem
from casa_hub.facility import Facility, Minted
from casa_hub.record import AnyRecord, ServerRecord, Unreadable


class KubernetesDelivery(LoggingConfigurable):
    """Secrets, Services and routes of a hub's servers; one instance a hub."""

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
        image that starts as root and drops to another user (`NB_UID`, else 1000) gets files of that user. Needed where
        the server's user is set nowhere but in its image, and there is root or a name instead of a number: the
        sidecar would be refused (`runAsNonRoot`).""",
    ).tag(config=True)

    routes: TraefikRoutes

    def __init__(self, connection: Mapping[str, Any], request_timeout: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.routes = TraefikRoutes(parent=self)
        self._connection = dict(connection)
        self._api = KubernetesAPI(self.connect, request_timeout)
        self._courier = Courier(self._api, self.log)
        self._leftovers: Leftovers | None = None
        self._presence: Presence | None = None
        #: See `Start.instance`.
        self.instance = ""
        self._loop = OwnLoop("casa-hub-kubernetes")

    @classmethod
    def in_settings(cls, settings: dict[str, Any], config: Any, spawner_class: type) -> KubernetesDelivery:
        """The one of the hub with these tornado settings, made when first asked for.

        It reaches the API server as KubeSpawner does, by the settings of `spawner_class`.
        """
        if "casa_kubernetes_delivery" not in settings:
            connection = {
                "host": value_of(config, spawner_class, "k8s_api_host"),
                "ssl_ca_cert": value_of(config, spawner_class, "k8s_api_ssl_ca_cert"),
                "verify_ssl": value_of(config, spawner_class, "k8s_api_verify_ssl"),
            }
            timeout = value_of(config, spawner_class, "k8s_api_request_timeout")
            settings["casa_kubernetes_delivery"] = cls(connection, timeout, config=config)
        delivery: KubernetesDelivery = settings["casa_kubernetes_delivery"]
        return delivery

    def connect(self) -> ApiClient:
        """A client of the API server, as KubeSpawner would have it."""
        load_config(**self._connection)
        return ApiClient()

    @classmethod
    def of(cls, spawner: Any) -> KubernetesDelivery:
        """The one of the hub that `spawner` belongs to."""
        settings = spawner.user.settings
        return cls.in_settings(settings, settings["config"], type(spawner))

    def begin(self, app: Any, facility: Facility, spawner_class: type) -> None:
        """Begin to look for pods that were left behind; the hub's own start doesn't wait for it."""
        self.instance = hashlib.sha256(b"casa_hub instance " + app.cookie_secret).hexdigest()[:12]
        # With a namespace for each user: everywhere.
        users = value_of(app.config, spawner_class, "enable_user_namespaces")
        namespace = "" if users else value_of(app.config, spawner_class, "namespace") or own_namespace()
        hub = Start(facility.server(""), "", namespace, own_namespace(), {}, self.instance)

        def objects_of(start: Start, record: AnyRecord) -> list[Object]:
            objects = self._objects(start, facility.routes(start.server, record))
            return objects if isinstance(record, Unreadable) or wants_secret(record) else objects[1:]

        leftovers = Leftovers(self._courier, self._loop.run, hub, database=app.db, objects_of=objects_of, log=self.log)
        self._leftovers = leftovers
        kinds = partial(self._kinds, facility)
        self._presence = Presence(self._courier, self._loop.run, hub, kinds=kinds, log=self.log)
        # Kept: the loop itself knows its tasks by weak references only.
        self._living = asyncio.get_running_loop().create_task(self._live(leftovers))

    async def _live(self, leftovers: Leftovers) -> None:
        """As long as the hub: at its end JupyterHub cancels what runs."""
        try:
            await leftovers.watch()
        except asyncio.CancelledError:
            await self._loop.end(self._api.close())
            raise

    def owe(self, start: Start) -> None:
        """A pod of this server may have been left behind: it is looked for soon."""
        if self._leftovers is not None:
            self._leftovers.owe(start)

    async def collect_garbage(self, facility: Facility, *, dry_run: bool) -> list[Removal]:
        """Remove what has no living server. See `Leftovers.collect`.

        Raises:
            KubernetesError: nothing was removed.
        """
        if self._leftovers is None:
            return []
        return await self._leftovers.collect(self._kinds(facility), dry_run=dry_run)

    async def first_look(self) -> None:
        """Wait until pods that an earlier hub left half made are gone; some seconds at most."""
        if self._leftovers is not None:
            await self._leftovers.first_look()

    def check(self, *, routes: bool) -> list[Problem]:
        """What is wrong with the settings; `routes`: whether any credential wants some."""
        return self.routes.check(wanted=routes, local=False)

    def dress(self, pod: V1Pod, start: Start, minted: Minted, facility: Facility) -> None:
        """Add to a pod that is about to be created what its start needs; once or again, to the same effect.

        Raises:
            DeliveryError: something of the operator's is in the place of ours.
        """
        if self._leftovers is not None:
            self._leftovers.begins(start)
        directory = PurePosixPath(facility.secrets_path)
        outfit = Outfit(
            secret=start.name if wants_secret(minted.record) else "",
            paths=sorted(minted.files),
            directory=directory,
            environment=facility.environment(minted, directory),
            labels=start.labels,
            annotations={
                manifests.SERVER: start.server.identity,
                manifests.RECORD: manifests.record_text(minted.record),
            },
        )
        sidecar = Sidecar(image=self.sidecar_image, uid=self.files_uid, resources=self.sidecar_resources)
        patch(pod, outfit, sidecar if self.files == "sidecar" else None)

    # -- verbs

    async def launch(
        self, body: Object, start: Start, parcel: Parcel, *, routes_required: bool, seconds: float
    ) -> Launched:
        """Create the pod (`body`, dressed), and at once what it owns. See `Courier.launch`.

        Raises:
            KubernetesError: the pod, its Secret or (`routes_required`) its Service or route is refused.
            DeliveryError: the files are too large, or a host name can't be routed; nothing was created then.
        """
        load = self._load(start, parcel, routes_required)
        body["metadata"]["namespace"] = start.namespace  # KubeSpawner leaves it to the request
        load(Pod(body["metadata"]["name"], ""))  # what is wrong with it is found before there is a pod
        return await self._loop.run(self._courier.launch(body, start, load, seconds))

    async def renew(self, start: Start, parcel: Parcel, before: str, deadline: Deadline) -> str:
        """Replace files of a running start, all at once; those that `parcel` doesn't bring stay.

        `before` is the record that this one was made from, as the Secret has it. Returns the new one's text.

        Raises:
            OvertakenError: the Secret has another record by now.
            KubernetesError: nothing is known to be replaced; what there is must be asked for before another try.
        """
        changes = manifests.renewal(start, parcel.files, parcel.record, before)
        after = manifests.record_text(parcel.record)
        await self._loop.run(self._courier.renew(start, changes, before, after, deadline))
        return after

    async def record(self, start: Start, deadline: Deadline, *, there: bool = False) -> str | None:
        """The newest record of a start, by its Secret's annotation, as it stands there; None if there is none.

        `there`: whether the start must have a Secret.

        Raises:
            KubernetesError: the API server can't say; or there is no Secret although there must be one.
        """
        found = await self._loop.run(self._courier.secret(start, deadline))
        if found is None and there:
            thing = f"Secret {start.namespace}/{start.name}"
            remedy = "It is made anew within a minute; whoever deletes Secrets there must leave it alone."
            raise KubernetesError(thing, "it was deleted", remedy, HTTPStatus.NOT_FOUND)
        if found is None or marks.start_id_of(found) != start.start_id:
            return None
        return marks.record_text_of(found, start.server)

    async def lacks(self, start: Start, objects: Sequence[Object], since: float) -> list[str] | None:
        """Kinds of those of a running start's objects that are not there; None if that can't be said yet.

        `since`: a moment (monotonic) from which on they should have been there.
        """
        seen = await self._presence.of(start.namespace, since) if self._presence is not None else None
        if seen is None:
            return None
        gone = [one for one in objects if (one["kind"], one["metadata"]["name"], start.start_id) not in seen.objects]
        return [kind for kind in dict.fromkeys(one["kind"] for one in gone) if kind in seen.kinds]

    async def bring_back(
        self, start: Start, objects: Sequence[Object], deadline: Deadline
    ) -> Mapping[str, KubernetesError]:
        """Create objects of a running start that are not there. Returns kind -> why, of those that still are not."""
        return await self._loop.run(self._courier.bring_back(objects, start, deadline))

    async def take_down(self, start: Start, pod_name: str, deadline: Deadline) -> None:
        """Remove this start's pod if it is there, and with it all that it owns.

        Raises:
            KubernetesError: it could not be removed.
        """
        await self._loop.run(self._courier.take_down(start, pod_name, deadline))

    async def end(self, start: Start, pod: Pod, grace_seconds: int, deadline: Deadline) -> None:
        """Let a server's pod end; another one that has its name by now is left alone.

        Raises:
            KubernetesError: the API server didn't take the request.
        """
        await self._loop.run(self._courier.end(start, pod, grace_seconds, deadline))

    async def withdraw(self, start: Start, routes: Sequence[Route], deadline: Deadline) -> None:
        """Remove what the pod of a server owns that still runs. Its policy stays: without, more could reach it.

        Raises:
            KubernetesError: something is still there.
        """
        objects = [one for one in self._objects(start, routes) if one["kind"] != "NetworkPolicy"]
        await self._loop.run(self._courier.withdraw(objects, start, deadline))

    async def withdraw_ended(self, start: Start, routes: Sequence[Route], deadline: Deadline) -> None:
        """Remove what a pod owns that has ended, but is still there. What can't be removed is logged."""
        try:
            await self._loop.run(self._courier.withdraw(self._objects(start, routes), start, deadline))
        except KubernetesError as error:
            self.log.error("Something of an ended server stays as long as its pod: %s", error)  # noqa: TRY400

    def owned(self, start: Start, pod: Pod, routes: Sequence[Route], record: ServerRecord) -> list[Object]:
        """All that the start's pod should own by its record. The Secret is without its files.

        Raises:
            DeliveryError: a host name can't be routed.
        """
        secret = [manifests.secret(start, pod, {}, record)] if wants_secret(record) else []
        return secret + self._route_objects(start, pod, routes)

    def secret(self, start: Start, pod: Pod, parcel: Parcel) -> Object:
        """The start's Secret. Raises DeliveryError: the files are too large for one."""
        return manifests.secret(start, pod, parcel.files, parcel.record)

    def _kinds(self, facility: Facility) -> list[Object]:
        """An object of each kind that pods of this hub own."""
        server = facility.server("anybody")
        return _one_of_each(self._objects(Start(server, "", "", "", {}), facility.routes(server)))

    def _load(self, start: Start, parcel: Parcel, routes_required: bool) -> Load:
        def load(pod: Pod) -> tuple[list[Object], list[Object]]:
            files = [manifests.secret(start, pod, parcel.files, parcel.record)] if wants_secret(parcel.record) else []
            routes = self._route_objects(start, pod, parcel.routes)
            # The Secret is first, here and so on the wire: the pod waits for nothing else.
            return (files + routes, []) if routes_required else (files, routes)

        return load

    def _objects(self, start: Start, routes: Sequence[Route]) -> list[Object]:
        """All that the start's pod may own, without contents."""
        nobody = Pod("", "")
        return [manifests.secret(start, nobody, {}), *self._route_objects(start, nobody, routes)]

    def _route_objects(self, start: Start, pod: Pod, routes: Sequence[Route]) -> list[Object]:
        if not routes:
            return []
        return [manifests.service(start, pod, routes), *route_objects(self.routes, start, pod, routes)]


@cache
def own_namespace() -> str:
    """The namespace that the hub runs in, as KubeSpawner finds it; ``default`` outside of a cluster."""
    try:
        text = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace").read_text(encoding="utf-8")
    except FileNotFoundError:
        return "default"
    return text.strip()


def _one_of_each(objects: Sequence[Object]) -> list[Object]:
    return list({(one["apiVersion"], one["kind"]): one for one in objects}.values())


def wants_secret(record: ServerRecord) -> bool:
    """Whether a server gets a Secret: also an empty one, where a credential may still come that could not be minted."""
    return bool(record.names or record.missing)
