"""The server of one KubeSpawner object: its credentials and objects, from its start to its end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from kubernetes_asyncio.client import V1Pod
from sqlalchemy.exc import SQLAlchemyError

from casa_hub.credentials.fetching import Outcomes
from casa_hub.database import committed
from casa_hub.delivery.deadline import Deadline
from casa_hub.delivery.kubernetes import manifests, ownership
from casa_hub.delivery.kubernetes.api import KubernetesError, described
from casa_hub.delivery.kubernetes.delivery import KubernetesDelivery, OvertakenError, wants_secret
from casa_hub.delivery.kubernetes.manifests import Object, Pod, Start, record_text
from casa_hub.errors import CasaError, DeliveryError
from casa_hub.facility import Minted
from casa_hub.jupyterhub import PodSpawner
from casa_hub.naming import Server
from casa_hub.record import AnyRecord, ServerRecord, parse_text, under_another_name
from casa_hub.server_credentials import ServerCredentials
from casa_hub.servers.running import Holding

#: Seconds for cleaning up when a start has failed or a server has ended.
_CLEAN_UP = 15.0
#: Key in a spawner's state: the start whose credentials were withdrawn.
_WITHDRAWN = "casa_withdrawn"
#: How often a renewal is tried that loses a race on the Secret. The only rival is an earlier request of this hub whose
#: answer was lost.
_RENEWAL_TRIES = 3
#: Keys in a spawner's state: the id of the running start, and the server's identity at that start.
_START_ID, _IDENTITY = "casa_start_id", "casa_server"


@dataclass(frozen=True, slots=True)
class DeliveredStart:
    """A start and its record."""

    start: Start
    #: The record as the text of the annotation. It takes a tenth of the parsed record's memory, and a renewal needs it.
    text: str
    #: Whether the Secret certainly has this record. Not during a renewal, nor after one without an answer.
    sure: bool = True

    @property
    def server(self) -> Server:
        return self.start.server


@dataclass(slots=True)
class _Starting:
    """A start under way."""

    #: None after the delivery: secrets stay in the hub's memory no longer than needed.
    minted: Minted | None
    #: None until the pod is dressed.
    delivered: DeliveredStart | None = None
    launch: asyncio.Task[Mapping[str, KubernetesError]] | None = None
    #: Kind of an object that could not be created -> why.
    missing: Mapping[str, str] = field(default_factory=dict)
    #: Whether the watch has shown its pod.
    seen: bool = False


class PodServer(ServerCredentials[DeliveredStart]):
    """The server of one KubeSpawner object."""

    _spawner: PodSpawner

    def __init__(self, spawner: PodSpawner) -> None:
        super().__init__(spawner)
        #: Name of a pod that an earlier hub process started without this package; "" if there is none.
        self._foreign_pod = ""
        self._starting: _Starting | None = None
        #: The last known content of a start's Secret.
        self._known: DeliveredStart | None = None
        #: Id of the start whose credentials were withdrawn while it runs, perhaps by an earlier hub process.
        self._withdrawn = str((spawner.orm_spawner.state or {}).get(_WITHDRAWN, ""))

    @property
    def delivery(self) -> KubernetesDelivery:
        return self.hub.delivery(KubernetesDelivery)

    # -- the spawner's state, which JupyterHub saves: a user may be renamed while the hub is down

    @property
    def state(self) -> dict[str, str]:
        """For the spawner's state."""
        identity = self._identity.identity if self._identity is not None else ""
        return {_START_ID: self.start_id, _IDENTITY: identity, _WITHDRAWN: self._withdrawn}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take over a start of the previous hub process."""
        self.start_id = state.get(_START_ID, "")
        self._identity = Server.of_identity(state.get(_IDENTITY)) if self.start_id else None
        self._foreign_pod = state.get("pod_name", "") if not self.start_id else ""

    def clear_state(self) -> None:
        """Forget the last start: the server has ended, or a new start begins."""
        self.start_id, self._identity, self._foreign_pod = "", None, ""

    # -- a start: mint, dress, launch

    async def mint(self, say: Callable[[str], None] = lambda _: None) -> list[str]:
        """Mint the credentials of a new start. Returns a sentence for each; `say`, and what is raised: as `_mint`."""
        self._starting = self._known = self._identity = None
        minted, sentences = await self._mint(say)
        self._starting = _Starting(minted)
        return sentences

    def dress(self, pod: V1Pod) -> None:
        """Add to the start's pod all that it needs.
        Raises DeliveryError if a container mounts something else at our path.
        """
        assert self._starting is not None  # noqa: S101 - minted before the pod is made
        minted = self._starting.minted
        assert minted is not None  # noqa: S101 - and not delivered yet
        # Not earlier, because a profile may have chosen another namespace.
        start = self._start(minted.start_id, minted.server)
        self.delivery.dress(pod, start, minted)
        self._starting.delivered = DeliveredStart(start, record_text(minted.record))
        self.start_id, self._identity, self._foreign_pod = start.start_id, start.server, ""

    async def launch(self, body: Object) -> Mapping[str, str]:
        """Create the dressed pod, and at once the objects that it owns. As `KubernetesDelivery.launch`."""
        starting = self._starting
        assert starting is not None  # noqa: S101 - see dress
        assert starting.minted is not None  # noqa: S101
        assert starting.delivered is not None  # noqa: S101
        seconds = self._spawner.k8s_api_request_retry_timeout
        launch = self.delivery.launch(body, starting.delivered.start, starting.minted, seconds=seconds)
        # Not cancelled with the start: `take_down` must know whether the pod was created.
        starting.launch = asyncio.create_task(launch)
        missing = await asyncio.shield(starting.launch)
        starting.minted, starting.missing = None, {kind: str(error) for kind, error in missing.items()}
        return starting.missing

    def may_run(self, pod: Object | None) -> bool:
        """Whether the pod that the watch shows belongs to the start under way. The watch may be late.
        Raises DeliveryError if the start's pod was removed before the server was ready.
        """
        starting = self._starting
        if starting is None or starting.delivered is None:
            return True
        start = starting.delivered.start
        if pod is not None and ownership.start_id_of(pod) == start.start_id:
            starting.seen = True
        elif starting.seen:
            raise DeliveryError(
                f"Pod {start.namespace}/{self._spawner.pod_name}",
                "it was removed while the server was starting",
                "Start it again. If that happens again, ask the operator what removes it.",
            )
        return starting.seen

    def started(self) -> None:
        """Note that the start has succeeded."""
        starting, self._starting = self._starting, None
        assert starting is not None  # noqa: S101 - see dress
        self._known = starting.delivered
        self.hub.started(self._spawner, starting.missing)

    async def take_down(self) -> None:
        """Remove the pod of a failed start, if it was created, and with it the objects that it owns."""
        starting, self._starting, self._known = self._starting, None, None
        if starting is None or starting.launch is None or starting.delivered is None:
            return
        start = starting.delivered.start
        await asyncio.wait([starting.launch])  # it has a deadline
        try:
            await self.delivery.take_down(start, self._spawner.pod_name, Deadline(_CLEAN_UP))
        except CasaError as error:
            self._spawner.log.warning("The pod of a failed start stays until the API server answers: %s", error)
        # A creation that got no answer may still succeed.
        self.delivery.suspect(start)

    # -- while it runs: what `RunningServer` says

    @property
    def running_start(self) -> str | None:
        pod = self._running_pod()
        start_id = None if pod is None or not self._is_ours(pod) else ownership.start_id_of(pod)
        return None if start_id and start_id == self._withdrawn else start_id

    def known_holding(self) -> Holding | None:
        found = self._live_start()
        if found is None:
            return None
        start, pod = found
        text = ownership.record_text_of(pod, start.server) or ""  # the record of the start
        return self._holding(self._certain(start) or DeliveredStart(start, text))

    async def _renew(
        self, names: Collection[str], force: bool, fetched: Outcomes | None, deadline: Deadline
    ) -> Holding | None:
        for tries_left in reversed(range(_RENEWAL_TRIES)):
            try:
                return await super()._renew(names, force, fetched, deadline)
            except OvertakenError:
                if not tries_left:
                    raise
        raise AssertionError  # for mypy

    async def _replace(self, running: DeliveredStart, minted: Minted, deadline: Deadline) -> None:
        # If this fails, the Secret's content is unknown: the request may still be on its way.
        self._doubt()
        text = await self.delivery.renew(running.start, minted, running.text, deadline)
        self._known = DeliveredStart(running.start, text)

    async def lacks(self, since: float) -> Collection[str] | None:
        found = self._live_start()
        if found is None:
            return None
        start, pod = found
        record = self._record(start, pod)
        # `lacks` looks only for objects of this installation, so it would never find those of another one.
        if not isinstance(record, ServerRecord) or not ownership.is_by(pod, self.delivery.hub.instance):
            return None
        return await self.delivery.lacks(start, self.delivery.owned(start, Pod.from_object(pod), record), since)

    async def bring_back(self, things: Collection[str]) -> Mapping[str, str]:
        async with self._renewing:
            found = self._live_start()
            record = None if found is None else self._record(*found)
            if found is None or not isinstance(record, ServerRecord):
                return {}
            start, pod = found
            deadline = self._deadline()
            owner = Pod.from_object(pod)
            owned = self.delivery.owned(start, owner, record)
            objects = [each for each in owned if each["kind"] in things]
            lost = [each for each in objects if each["kind"] == "Secret"]
            if lost and await self.delivery.record(start, deadline) is not None:  # the Secret exists after all
                objects.remove(lost.pop())
            if lost:
                now = datetime.now(UTC)
                request = await self.facility.request_of(self._spawner, start.server, start.start_id, now)
                minted = self.facility.mint_lost(request, record, username=self._spawner.user.name)
                if minted.missing and not minted.credentials:
                    raise DeliveryError(described(lost[0]), "no file of it can be made anew", _reasons(minted.missing))
                objects[objects.index(lost[0])] = manifests.secret(start, owner, minted.files, minted.record)
                self._doubt()
            if self._withdrawn == start.start_id:
                return {}
            try:
                failed = await self.delivery.bring_back(start, objects, deadline)
                if lost:
                    text = await self.delivery.record(start, deadline)
                    self._known = DeliveredStart(start, text) if text is not None else None
            finally:
                # A withdrawal doesn't wait for these requests: it may have looked for objects before they were created.
                if self._withdrawn == start.start_id:
                    await self.delivery.withdraw(start, self._deadline())
            return {kind: str(error) for kind, error in failed.items()}

    def _live_start(self) -> tuple[Start, Object] | None:
        """The running start and its pod; None if the credentials were withdrawn, or the pod isn't this server's."""
        pod = self._running_pod()
        start = self._start_of(pod)
        return None if pod is None or start is None or start.start_id == self._withdrawn else (start, pod)

    def _record(self, start: Start, pod: Object) -> AnyRecord:
        """The newest known record of a start: of its Secret when that was last read, else of its pod."""
        known = self._known
        if known is not None and known.start.start_id == start.start_id:
            return self._believed(start, parse_text(known.text))
        return self._believed(start, parse_text(ownership.record_text_of(pod, start.server)))

    async def withdraw(self) -> None:
        await self._spawner._start_watching_pods()  # noqa: SLF001 - see _running
        start = self._start_of(self.pod())
        if start is None:
            return
        # Deliberately without `_renewing`: a renewal that still waits for that lock finds `_withdrawn` and gives up. A
        # renewal whose request was sent can only change the Secret, never make one.
        self._note_withdrawn(start.start_id)
        await self.delivery.withdraw(start, self._deadline())

    def _note_withdrawn(self, start_id: str) -> None:
        """Note, also for the next hub process, that the objects must not be brought back."""
        if self._withdrawn == start_id:
            return
        self._withdrawn = start_id
        spawner = self._spawner.orm_spawner
        try:
            with committed(self._spawner.db):
                spawner.state = {**(spawner.state or {}), _WITHDRAWN: start_id}
        except SQLAlchemyError:  # the next hub process also knows it by the note of the revocation
            self._spawner.log.exception("Could not store that %s has no credentials any more", self.server.identity)

    async def _running(self, deadline: Deadline) -> DeliveredStart | None:
        """The running start and its record, also if an earlier hub process has started it."""
        await self._spawner._start_watching_pods()  # noqa: SLF001 - as KubeSpawner does before it reads the reflector
        found = self._live_start()
        if found is None:
            return None
        start, pod = found
        if (certain := self._certain(start)) is not None:
            return certain
        first = self._record(start, pod)
        text = await self.delivery.record(start, deadline, there=_has_secret(first))
        if text is not None:
            self._known = DeliveredStart(start, text)
            return self._known
        # The start never had a Secret, or somebody has edited the Secret.
        self._doubt()
        bare = isinstance(first, ServerRecord) and not wants_secret(first)
        return DeliveredStart(start, (ownership.record_text_of(pod, start.server) if bare else "") or "")

    def _certain(self, start: Start) -> DeliveredStart | None:
        """The record in a start's Secret; None if it isn't known for certain."""
        known = self._known
        return known if known is not None and known.sure and known.start.start_id == start.start_id else None

    def _doubt(self) -> None:
        """From now on it isn't certain what the Secret has."""
        if self._known is not None:
            self._known = replace(self._known, sure=False)

    def _running_pod(self) -> Object | None:
        pod = self.pod()
        return None if pod is None or "deletionTimestamp" in pod["metadata"] else pod

    def has_pod(self) -> bool:
        """Whether the pod with the server's name is this server's."""
        pod = self.pod()
        return pod is not None and self._is_ours(pod)

    def _is_ours(self, pod: Object) -> bool:
        """Whether a pod is this server's: by its start if that is known, because the user may have been renamed."""
        start_id = ownership.start_id_of(pod)
        if not start_id and self._foreign_pod == pod["metadata"]["name"]:
            return True
        if start_id and start_id == self.start_id:
            return True
        return ownership.is_of(pod, self._named, self.delivery.hub.instance) and not self._is_anothers(start_id)

    def _is_anothers(self, start_id: str) -> bool:
        """Whether a start belongs to another server, whose user had this name before."""
        users = list(dict.values(self._spawner.user.settings["app"].users or {}))
        spawners = [spawner for user in users for spawner in list(user.spawners.values())]
        others = (spawner.casa_server for spawner in spawners if spawner is not self._spawner and spawner.active)
        return bool(start_id) and any(other.start_id == start_id for other in others)

    def _start_of(self, pod: Object | None) -> Start | None:
        """The start of this server's pod; None without a pod, or if the pod has no marks of a start.

        Somebody who may change pods can have changed the marks. So the identity that this hub or its database knows
        wins over the one in the pod.
        """
        if pod is None or not self._is_ours(pod):
            return None
        if self._identity is not None and ownership.start_id_of(pod) == self.start_id:
            return self._start(self.start_id, self._identity, namespace=pod["metadata"].get("namespace", ""))
        return ownership.start_of(pod, self.delivery.hub, self._common_labels)

    def _holding(self, running: DeliveredStart) -> Holding:
        return Holding(running.start.start_id, self._believed(running.start, parse_text(running.text)))

    def _believed(self, start: Start, record: AnyRecord) -> AnyRecord:
        """The record, but unreadable if only the pod says whose it is: that isn't enough to mint for that name."""
        return record if start.server in {self._identity, self._named} else under_another_name(record)

    def pod(self) -> Object | None:
        """The pod with the server's name, from KubeSpawner's reflector."""
        reflector = self._spawner.pod_reflector
        if reflector is None:
            return None
        pod: Object | None = reflector.pods.get(f"{self._spawner.namespace}/{self._spawner.pod_name}")
        return pod

    # -- the end

    async def end(self, grace_seconds: int) -> None:
        """Delete the server's pod, if it has one.
        Raises DeliveryError, also if the pod with this name is another server's.
        """
        pod = self.pod()
        if pod is None:
            return
        if not self._is_ours(pod):
            thing = f"Pod {self._spawner.namespace}/{self._spawner.pod_name}"
            raise DeliveryError(thing, "it is another server's, and is left alone", "The operator must look at it.")
        try:
            start = self._start(ownership.start_id_of(pod), self.server)
            await self.delivery.end(start, Pod.from_object(pod), grace_seconds, self._deadline())
        except KubernetesError as error:  # JupyterHub would not show it
            self._spawner.log.error("Server %s could not be stopped: %s", self.server.identity, error)  # noqa: TRY400
            raise

    async def remove(self) -> None:
        """Remove the objects of the server's pod, if it still exists after its end: it needs no secrets."""
        pod = self.pod()
        start = self._start_of(pod)
        if pod is not None and start is not None:
            if not ownership.has_ended(pod):  # the stop has failed
                self.delivery.suspect(start)
            await self.delivery.remove(start, Deadline(_CLEAN_UP))

    def _start(self, start_id: str, server: Server, namespace: str = "") -> Start:
        return Start(server, start_id, namespace or self._spawner.namespace, self.delivery.hub, self._common_labels)

    @property
    def _common_labels(self) -> Mapping[str, str]:
        """The labels of KubeSpawner's own objects."""
        labels: Mapping[str, str] = self._spawner._build_common_labels({})  # noqa: SLF001
        return labels

    def _deadline(self) -> Deadline:
        return Deadline(self._spawner.k8s_api_request_retry_timeout)


def _reasons(missing: Mapping[str, str]) -> str:
    return "; ".join(f"{name}: {why}" for name, why in missing.items())


def _has_secret(record: AnyRecord) -> bool:
    """Whether a start certainly has a Secret, by its record."""
    return isinstance(record, ServerRecord) and wants_secret(record)
