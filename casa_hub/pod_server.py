"""What a server in a pod is given, from its start to its end."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from kubernetes_asyncio.client import V1Pod
from sqlalchemy.exc import SQLAlchemyError

from casa_hub.database import mended, roll_back
from casa_hub.delivery.deadline import Deadline
from casa_hub.delivery.kubernetes import manifests, marks
from casa_hub.delivery.kubernetes.api import KubernetesError, described
from casa_hub.delivery.kubernetes.delivery import KubernetesDelivery, OvertakenError, wants_secret
from casa_hub.delivery.kubernetes.manifests import Object, Pod, Start, record_text
from casa_hub.errors import CasaError, DeliveryError
from casa_hub.facility import Minted
from casa_hub.jupyterhub import PodSpawner
from casa_hub.keeper.kept import Holding
from casa_hub.naming import Server
from casa_hub.record import AnyRecord, ServerRecord, parse_text, under_another_name
from casa_hub.server_credentials import ServerCredentials

#: Seconds for what must still be done when a start has failed or a server has ended.
_CLEAN_UP = 15.0
#: Key of JupyterHub's state of a spawner: the start whose credentials were withdrawn.
_WITHDRAWN = "casa_withdrawn"
#: Renewals that may come between a look at the Secret and ours: none but our own, which nobody got an answer to.
_MOST_OVERTAKEN = 3
#: In a spawner's state: the start that runs, and the identity that it was made for.
_START_ID, _IDENTITY = "casa_start_id", "casa_server"


@dataclass(frozen=True, slots=True)
class Given:
    """What a pod was given."""

    start: Start
    #: The record, as it stands in the annotation: a tenth of the memory, and what a renewal is compared with.
    text: str
    #: Whether the Secret has just this: not while a renewal is on its way, or after one that got no answer.
    sure: bool = True

    @property
    def server(self) -> Server:
        return self.start.server


@dataclass(slots=True)
class _Starting:
    """A start under way."""

    #: None once it was delivered: secrets stay in the hub no longer than they are needed.
    minted: Minted | None
    #: None until the pod is dressed.
    given: Given | None = None
    launch: asyncio.Task[Mapping[str, KubernetesError]] | None = None
    #: Kind of an object that it could not have -> why.
    missing: Mapping[str, str] = field(default_factory=dict)
    #: Whether the watch has shown its pod.
    seen: bool = False


class PodServer(ServerCredentials[Given]):
    """The server of one KubeSpawner object."""

    _spawner: PodSpawner

    def __init__(self, spawner: PodSpawner) -> None:
        super().__init__(spawner)
        #: A pod that an earlier hub has started without this package; "" if there is none.
        self._strange_pod = ""
        self._starting: _Starting | None = None
        #: What the Secret of a start had when that was known last.
        self._known: Given | None = None
        #: The start that was withdrawn before its end, by this hub or one before it.
        self._withdrawn = str((spawner.orm_spawner.state or {}).get(_WITHDRAWN, ""))

    @property
    def delivery(self) -> KubernetesDelivery:
        return self.hub.delivery(KubernetesDelivery)

    # -- what JupyterHub keeps with the spawner's state: a user may be renamed while the hub is away

    @property
    def state(self) -> dict[str, str]:
        """For the spawner's state."""
        identity = self._identity.identity if self._identity is not None else ""
        return {_START_ID: self.start_id, _IDENTITY: identity, _WITHDRAWN: self._withdrawn}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take over what an earlier hub had started."""
        self.start_id = state.get(_START_ID, "")
        self._identity = Server.of_identity(state.get(_IDENTITY)) if self.start_id else None
        self._strange_pod = state.get("pod_name", "") if not self.start_id else ""

    def clear_state(self) -> None:
        """The server has ended, or is about to be started."""
        self.start_id, self._identity, self._strange_pod = "", None, ""

    # -- a start: mint, dress, launch

    async def mint(self) -> list[str]:
        """Credentials for a new start. No request to Kubernetes. Returns a sentence for each; raises as `_mint`."""
        self._starting = self._known = self._identity = None
        minted, sentences = await self._mint()
        self._starting = _Starting(minted)
        return sentences

    def dress(self, pod: V1Pod) -> None:
        """Add to the pod of the start that was minted for what it needs.

        Raises:
            DeliveryError: something of the operator's is in the place of ours.
        """
        assert self._starting is not None  # noqa: S101 - minted before there is a pod
        minted = self._starting.minted
        assert minted is not None  # noqa: S101 - and not delivered yet
        # Not before: a profile may have chosen another namespace.
        start = self._start(minted.start_id, minted.server)
        self.delivery.dress(pod, start, minted)
        self._starting.given = Given(start, record_text(minted.record))
        self.start_id, self._identity, self._strange_pod = start.start_id, start.server, ""

    async def launch(self, body: Object) -> Mapping[str, str]:
        """Create the (dressed) pod, and at once what it owns. As `KubernetesDelivery.launch`."""
        starting = self._starting
        assert starting is not None  # noqa: S101 - see dress
        assert starting.minted is not None  # noqa: S101
        assert starting.given is not None  # noqa: S101
        seconds = self._spawner.k8s_api_request_retry_timeout
        launch = self.delivery.launch(body, starting.given.start, starting.minted, seconds=seconds)
        # Not cancelled with the start, or nobody would know whether the pod was created after all.
        starting.launch = asyncio.create_task(launch)
        missing = await asyncio.shield(starting.launch)
        starting.minted, starting.missing = None, {kind: str(error) for kind, error in missing.items()}
        return starting.missing

    def may_run(self, pod: Object | None) -> bool:
        """Whether a pod that the watch shows may be the one that is waited for: the watch may be late.

        Raises:
            DeliveryError: it was there, and is gone before the server was.
        """
        starting = self._starting
        if starting is None or starting.given is None:
            return True
        start = starting.given.start
        if pod is not None and marks.start_id_of(pod) == start.start_id:
            starting.seen = True
        elif starting.seen:
            raise DeliveryError(
                f"Pod {start.namespace}/{self._spawner.pod_name}",
                "it was removed while the server was starting",
                "Start it again; if that happens again, ask the operator what removes it.",
            )
        return starting.seen

    def started(self) -> None:
        """The start has succeeded."""
        starting, self._starting = self._starting, None
        assert starting is not None  # noqa: S101 - see dress
        self._known = starting.given
        self.hub.started(self._spawner, starting.missing)

    async def take_down(self) -> None:
        """Remove the pod of a start that failed, if it was created, and with it what it owns."""
        starting, self._starting, self._known = self._starting, None, None
        if starting is None or starting.launch is None or starting.given is None:
            return
        start = starting.given.start
        await asyncio.wait([starting.launch])  # it has a deadline
        try:
            await self.delivery.take_down(start, self._spawner.pod_name, Deadline(_CLEAN_UP))
        except CasaError as error:
            self._spawner.log.warning("The pod of a failed start stays until the API server answers: %s", error)
        # A creation that nobody got an answer to may still come.
        self.delivery.owe(start)

    # -- while it runs

    @property
    def running_start(self) -> str | None:
        """See `Kept`."""
        pod = self._running_pod()
        start_id = None if pod is None or not self._is_ours(pod) else marks.start_id_of(pod)
        return None if start_id and start_id == self._withdrawn else start_id

    def first_holding(self) -> Holding | None:
        """See `Kept`. The pod's annotations say what it was given at its start."""
        pod = self._running_pod()
        start = self._start_of(pod)
        if pod is None or start is None or start.start_id == self._withdrawn:
            return None
        return self._holding(self._surely(start) or Given(start, marks.record_text_of(pod, start.server) or ""))

    async def _renew(self, names: Collection[str], anyhow: bool, deadline: Deadline) -> Holding | None:
        for left in reversed(range(_MOST_OVERTAKEN)):
            try:
                return await super()._renew(names, anyhow, deadline)
            except OvertakenError:
                if not left:
                    raise
        raise AssertionError  # for mypy

    async def _replace(self, given: Given, minted: Minted, deadline: Deadline) -> None:
        # Unless this goes well, nobody knows what the Secret has: the request may still be on its way.
        self._forget()
        text = await self.delivery.renew(given.start, minted, given.text, deadline)
        self._known = Given(given.start, text)

    async def lacks(self, since: float) -> Collection[str] | None:
        """See `Kept`."""
        found = self._standing()
        if found is None:
            return None
        start, pod = found
        record = self._record(start, pod)
        # Objects are looked for by the installation that made them: another one's would never be found.
        if not isinstance(record, ServerRecord) or not marks.is_by(pod, self.delivery.hub.instance):
            return None
        return await self.delivery.lacks(start, self.delivery.owned(start, Pod.of(pod), record), since)

    async def bring_back(self, things: Collection[str]) -> Mapping[str, str]:
        """See `Kept`."""
        async with self._renewing:
            found = self._standing()
            record = None if found is None else self._record(*found)
            if found is None or not isinstance(record, ServerRecord):
                return {}
            start, pod = found
            deadline = self._deadline()
            owned = self.delivery.owned(start, Pod.of(pod), record)
            objects = [one for one in owned if one["kind"] in things]
            lost = [one for one in objects if one["kind"] == "Secret"]
            if lost and await self.delivery.record(start, deadline) is not None:  # it is there after all
                objects.remove(lost.pop())
            if lost:
                now = datetime.now(UTC)
                request = await self.facility.request_of(self._spawner, start.server, start.start_id, now)
                minted = self.facility.mint_lost(request, record, username=self._spawner.user.name)
                if minted.missing and not minted.credentials:
                    raise DeliveryError(described(lost[0]), "no file of it can be made anew", _reasons(minted.missing))
                objects[objects.index(lost[0])] = manifests.secret(start, Pod.of(pod), minted.files, minted.record)
                self._forget()
            if self._withdrawn == start.start_id:
                return {}
            try:
                failed = await self.delivery.bring_back(start, objects, deadline)
                if lost:
                    text = await self.delivery.record(start, deadline)
                    self._known = Given(start, text) if text is not None else None
            finally:
                # The withdrawal didn't wait for these requests, and may have looked before they came through.
                if self._withdrawn == start.start_id:
                    await self.delivery.withdraw(start, self._deadline())
            return {kind: str(error) for kind, error in failed.items()}

    def _standing(self) -> tuple[Start, Object] | None:
        """The start that runs, with its pod; None if its credentials were withdrawn, or it isn't this server's."""
        pod = self._running_pod()
        start = self._start_of(pod)
        return None if pod is None or start is None or start.start_id == self._withdrawn else (start, pod)

    def _record(self, start: Start, pod: Object) -> AnyRecord:
        """What a start holds or held, as far as this hub knows: by its Secret when it was seen last, or by its pod."""
        known = self._known
        if known is not None and known.start.start_id == start.start_id:
            return self._believed(start, parse_text(known.text))
        return self._believed(start, parse_text(marks.record_text_of(pod, start.server)))

    async def withdraw(self) -> None:
        """See `Kept`."""
        await self._spawner._start_watching_pods()  # noqa: SLF001 - see _running
        start = self._start_of(self.pod())
        if start is None:
            return
        # Not in turn: a renewal that waits for its own is none any more, and one whose request is on its way changes a
        # Secret, but never makes one.
        self._note_withdrawn(start.start_id)
        await self.delivery.withdraw(start, self._deadline())

    def _note_withdrawn(self, start_id: str) -> None:
        """For this hub and the next one: what is gone then was not deleted by mistake, and must not be brought back."""
        if self._withdrawn == start_id:
            return
        self._withdrawn = start_id
        database, spawner = self._spawner.db, self._spawner.orm_spawner
        try:
            mended(database)
            spawner.state = {**(spawner.state or {}), _WITHDRAWN: start_id}
            database.commit()
        except SQLAlchemyError:  # the note of the revocation, which was made before, keeps the next hub from it, too
            roll_back(database)
            self._spawner.log.exception("The withdrawal of %s can't be noted", self.server.identity)

    async def _running(self, deadline: Deadline) -> Given | None:
        """What the pod that runs was given, by this hub or one before it: the pod's own marks tell the start."""
        await self._spawner._start_watching_pods()  # noqa: SLF001 - as KubeSpawner does before it looks
        found = self._standing()
        if found is None:
            return None
        start, pod = found
        if (given := self._surely(start)) is not None:
            return given
        first = self._record(start, pod)
        text = await self.delivery.record(start, deadline, there=_has_secret(first))
        if text is not None:
            self._known = Given(start, text)
            return self._known
        # Without a Secret as it began, or somebody has edited that.
        self._forget()
        bare = isinstance(first, ServerRecord) and not wants_secret(first)
        return Given(start, (marks.record_text_of(pod, start.server) if bare else "") or "")

    def _surely(self, start: Start) -> Given | None:
        """What the Secret of a start has; None if that isn't known for sure."""
        given = self._known
        return given if given is not None and given.sure and given.start.start_id == start.start_id else None

    def _forget(self) -> None:
        """What the Secret has isn't known for sure any more, only what it had."""
        if self._known is not None:
            self._known = replace(self._known, sure=False)

    def _running_pod(self) -> Object | None:
        pod = self.pod()
        return None if pod is None or "deletionTimestamp" in pod["metadata"] else pod

    def has_pod(self) -> bool:
        """Whether the pod that has the server's name is this server's."""
        pod = self.pod()
        return pod is not None and self._is_ours(pod)

    def _is_ours(self, pod: Object) -> bool:
        """By its start, if we know that: a user may have got another name since."""
        start_id = marks.start_id_of(pod)
        if not start_id and self._strange_pod == pod["metadata"]["name"]:
            return True
        if start_id and start_id == self.start_id:
            return True
        return marks.is_of(pod, self._named, self.delivery.hub.instance) and not self._is_anothers(start_id)

    def _is_anothers(self, start_id: str) -> bool:
        """Whether a start is that of another user's server, who had this name before."""
        users = list(dict.values(self._spawner.user.settings["app"].users or {}))
        spawners = [spawner for user in users for spawner in list(user.spawners.values())]
        others = (one.casa_kept for one in spawners if one is not self._spawner and one.active)
        return bool(start_id) and any(other.start_id == start_id for other in others)

    def _start_of(self, pod: Object | None) -> Start | None:
        """The start that our pod is; None if there is none, or it has no marks of a start.

        Whoever may change a pod may have changed its marks. So where this hub, or its database, has the identity that
        the start was made for, that is believed and not the pod.
        """
        if pod is None or not self._is_ours(pod):
            return None
        if self._identity is not None and marks.start_id_of(pod) == self.start_id:
            return self._start(self.start_id, self._identity, namespace=pod["metadata"].get("namespace", ""))
        return marks.start_of(pod, self.delivery.hub, self._common_labels)

    def _holding(self, given: Given) -> Holding:
        return Holding(given.start.start_id, self._believed(given.start, parse_text(given.text)))

    def _believed(self, start: Start, record: AnyRecord) -> AnyRecord:
        """Where only the pod says for whom it was started, that is not enough to make credentials for that name."""
        return record if start.server in {self._identity, self._named} else under_another_name(record)

    def pod(self) -> Object | None:
        """The pod that has the server's name, as KubeSpawner's reflector knows it."""
        reflector = self._spawner.pod_reflector
        if reflector is None:
            return None
        pod: Object | None = reflector.pods.get(f"{self._spawner.namespace}/{self._spawner.pod_name}")
        return pod

    # -- the end

    async def end(self, grace_seconds: int) -> None:
        """Let the server's pod end, if there is one.

        Raises:
            KubernetesError: the API server didn't take the request.
            DeliveryError: what has the pod's name is another server's.
        """
        pod = self.pod()
        if pod is None:
            return
        if not self._is_ours(pod):
            thing = f"Pod {self._spawner.namespace}/{self._spawner.pod_name}"
            raise DeliveryError(thing, "it is another server's, and is left alone", "The operator must look at it.")
        try:
            start = self._start(marks.start_id_of(pod), self.server)
            await self.delivery.end(start, Pod.of(pod), grace_seconds, self._deadline())
        except KubernetesError as error:  # JupyterHub doesn't tell it to anybody
            self._spawner.log.error("Server %s could not be stopped: %s", self.server.identity, error)  # noqa: TRY400
            raise

    async def remove(self) -> None:
        """Remove what the server's pod owns, if it is still there: one that has ended needs no secret."""
        pod = self.pod()
        start = self._start_of(pod)
        if pod is not None and start is not None:
            if not marks.has_ended(pod):  # its stop failed
                self.delivery.owe(start)
            await self.delivery.remove(start, Deadline(_CLEAN_UP))

    def _start(self, start_id: str, server: Server, namespace: str = "") -> Start:
        return Start(server, start_id, namespace or self._spawner.namespace, self.delivery.hub, self._common_labels)

    @property
    def _common_labels(self) -> Mapping[str, str]:
        """Those of KubeSpawner's own objects."""
        labels: Mapping[str, str] = self._spawner._build_common_labels({})  # noqa: SLF001
        return labels

    def _deadline(self) -> Deadline:
        return Deadline(self._spawner.k8s_api_request_retry_timeout)


def _reasons(missing: Mapping[str, str]) -> str:
    return "; ".join(f"{name}: {why}" for name, why in missing.items())


def _has_secret(record: AnyRecord) -> bool:
    """Whether a start has a Secret for sure, by its record."""
    return isinstance(record, ServerRecord) and wants_secret(record)
