"""The spawner of a cluster: servers are pods, each with its credentials, Service and route."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Collection
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, ClassVar

from jupyterhub.utils import maybe_future
from kubernetes_asyncio.client import ApiException, V1Preconditions
from kubespawner import KubeSpawner

from casa_hub.delivery import marks
from casa_hub.delivery.api import Deadline
from casa_hub.delivery.courier import Launched
from casa_hub.delivery.kubernetes import KubernetesDelivery, start_for
from casa_hub.delivery.manifests import Start
from casa_hub.delivery.traefik import TraefikRoutes
from casa_hub.errors import CasaError, DeliveryError, Problem
from casa_hub.facility import Facility, Minted
from casa_hub.naming import Server
from casa_hub.startup import not_the_hubs_fault, on_hub_start
from casa_hub.steps import Steps, merged, told

#: Seconds for what must still be done when a start has failed.
_CLEAN_UP = 15.0


@dataclass(frozen=True, slots=True)
class Given:
    """What this hub has given to the pod that runs."""

    start: Start
    record: Any


class CasaSpawner(KubeSpawner):  # type: ignore[misc]
    """KubeSpawner, whose servers find working credentials of their own in `Facility.secrets_path`.

    All of KubeSpawner's settings and hooks are an operator's as ever. `modify_pod_hook` sees the pod before this class
    adds its parts, so that containers which it adds get the files too; `after_pod_created_hook` is called when Secret,
    Service and route are there; variables in `environment`, of a profile too, win over ours.

    The pod's annotations tell what it was given (`casa_hub.delivery.manifests`), and are what a restarted hub goes by:
    JupyterHub saves a spawner's state only after the start.
    """

    #: Whose configuration sections this spawner uses.
    casa_classes: ClassVar = (KubernetesDelivery, TraefikRoutes)

    # -- the hub's start

    @classmethod
    def check_hub(cls, app: Any, facility: Facility) -> list[Problem]:
        """What is wrong with the hub's configuration for this spawner."""
        return KubernetesDelivery.in_settings(app.tornado_settings, app.config, cls).check(routes=facility.wants_routes)

    @classmethod
    def begin_hub(cls, app: Any, facility: Facility) -> None:
        """See to pods that an earlier hub left half made, beside the hub's own start."""
        KubernetesDelivery.in_settings(app.tornado_settings, app.config, cls).begin(app, facility, cls)

    # -- parts

    @property
    def facility(self) -> Facility:
        return Facility.of(self)

    @property
    def delivery(self) -> KubernetesDelivery:
        return KubernetesDelivery.of(self)

    @property
    def casa_server(self) -> Server:
        """The identity that this server's credentials are made for."""
        return self.facility.server(self.user.name, self.name)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._steps = Steps()
        self._minted: Minted | None = None
        self._given: Given | None = None
        self._launch: asyncio.Task[Launched] | None = None
        self._renewing = asyncio.Lock()
        super().__init__(*args, **kwargs)

    # -- start

    async def _start(self) -> str:
        """Credentials, then the pod with what it owns; the pod is taken down again if any of it fails.

        The membership has been checked by then: the authenticator's `pre_spawn_start` is asked before any spawner.
        """
        on_hub_start(self.user.settings["app"])
        try:
            now = datetime.now(UTC)
            self._minted = self.facility.mint(await self.facility.request_of(self, secrets.token_hex(16), now))
            for number, sentence in enumerate(told(self.facility, self._minted, now)):
                self._steps.say(min(5 + 3 * number, 20), sentence)
            url: str = await super()._start()
        except BaseException as error:
            await asyncio.shield(self._take_down())
            not_the_hubs_fault(error, self.user.settings)
            raise
        return url

    async def _make_create_pod_request(self, pod: Any, request_timeout: float) -> bool:  # noqa: ARG002
        """As KubeSpawner's, but what the pod owns follows in the same breath.

        The answer of the request tells the pod's uid; `after_pod_created_hook` would hear of it 0.2 s later or more.
        """
        assert self._minted is not None  # noqa: S101 - set by `_start`, which calls this
        parcel = self._minted.parcel()
        start = start_for(self, self.facility, parcel.start_id)
        self.delivery.dress(pod, start, self._minted, self.facility)
        body = self.api.api_client.sanitize_for_serialization(pod)
        self._given = Given(start, parcel.record)
        launch = self.delivery.launch(
            body,
            start,
            parcel,
            routes_required=self.facility.requires_routes,
            deadline=Deadline(self.k8s_api_request_retry_timeout),
        )
        # Not cancelled with this start, or nobody would know whether the pod was created after all.
        self._launch = asyncio.create_task(launch)
        launched = await asyncio.shield(self._launch)
        self._steps.say(25, "Pod created, credentials delivered" if parcel.files else "Pod created")
        for kind, error in launched.missing.items():
            self.log.warning("No %s for %s: %s", kind, start.server.identity, error)
            self._steps.say(26, f"Starting without {kind}, so Dask can't be reached from outside: {error}")
        return True

    async def _take_down(self) -> None:
        """Remove the pod of a start that failed, if it was created, and with it what it owns."""
        if self._launch is None or self._given is None:
            return
        await asyncio.wait([self._launch])  # it has a deadline
        try:
            await self.delivery.take_down(self._given.start, self.pod_name, Deadline(_CLEAN_UP))
        except CasaError as error:
            self.log.error("The pod of a failed start stays until the server is started or stopped: %s", error)  # noqa: TRY400
        self._given = None

    async def progress(self) -> AsyncIterator[dict[str, Any]]:
        """Our steps, and Kubernetes' events below."""
        async for event in merged(self._steps.follow(), super().progress()):
            yield event

    # -- while it runs

    async def renew_credentials(self, names: Collection[str]) -> None:
        """Mint some credentials of the running server anew and replace their files; nothing if it doesn't run.

        For who has got something newer for them, as the authenticator with a refreshed access token (`bearer`).
        """
        async with self._renewing:  # each goes on from the record that the one before left
            deadline = Deadline(self.k8s_api_request_retry_timeout)
            try:
                given = await self._running(deadline)
                if given is None:
                    return
                request = await self.facility.request_of(self, given.start.start_id, datetime.now(UTC))
                minted = self.facility.renew(request, names, given.record)
                await self.delivery.renew(given.start, minted.parcel(), deadline)
                self._given = Given(given.start, minted.record)
            except DeliveryError as error:
                self.log.warning("Credentials of %s could not be renewed: %s", self.casa_server.identity, error)

    async def _running(self, deadline: Deadline) -> Given | None:
        """What the pod that runs has been given, by this hub or one before it."""
        await self._start_watching_pods()
        pod = self.pod_reflector.pods.get(f"{self.namespace}/{self.pod_name}")
        if pod is None or "deletionTimestamp" in pod["metadata"] or not marks.is_of(pod, self.casa_server):
            return None
        if self._given is not None and self._given.start.start_id == marks.start_id_of(pod):
            return self._given
        start = marks.start_of(pod, start_for(self, self.facility, ""))
        if start is None:  # started without us
            return None
        record = await self.delivery.record(start, deadline)
        return Given(start, record) if record is not None else None

    # -- the end

    async def _make_delete_pod_request(
        self, pod_name: str, delete_options: Any, grace_seconds: int, request_timeout: float
    ) -> bool:
        """As KubeSpawner's, but only the very pod that is known: a late stop must not end the next start's."""
        pod = self.pod_reflector.pods.get(f"{self.namespace}/{pod_name}")
        if pod is not None:
            if not marks.is_of(pod, self.casa_server):
                self.log.error("Pod %s/%s is another server's, and is left alone", self.namespace, pod_name)
                return True
            delete_options.preconditions = V1Preconditions(uid=pod["metadata"]["uid"])
        try:
            done: bool = await super()._make_delete_pod_request(
                pod_name, delete_options, grace_seconds, request_timeout
            )
        except ApiException as error:
            if error.status != 409:  # noqa: PLR2004
                raise
            self.log.info("Pod %s/%s is another one by now", self.namespace, pod_name)
            return True
        return done

    async def run_post_stop_hook(self) -> None:
        """As in the base class. A pod that stays after its end (`delete_stopped_pods`) keeps no secret."""
        pod = self.pod_reflector.pods.get(f"{self.namespace}/{self.pod_name}") if self.pod_reflector else None
        start = marks.start_of(pod, start_for(self, self.facility, "")) if pod is not None else None
        if start is not None:
            await self.delivery.withdraw_ended(start, self.facility.routes(start.server), Deadline(_CLEAN_UP))
        await maybe_future(super().run_post_stop_hook())
