"""What a server in a pod is given, from its start to its end."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from kubernetes_asyncio.client import V1Pod
from sqlalchemy.exc import SQLAlchemyError

from casa_hub.database import mended, roll_back
from casa_hub.delivery.base import Minted
from casa_hub.delivery.kubernetes import manifests, marks
from casa_hub.delivery.kubernetes.api import Deadline, KubernetesError, described
from casa_hub.delivery.kubernetes.delivery import KubernetesDelivery, OvertakenError, wants_secret
from casa_hub.delivery.kubernetes.manifests import Object, Pod, Start, record_text
from casa_hub.errors import CasaError, DeliveryError
from casa_hub.facility import Facility
from casa_hub.keeper.kept import Holding, check_name
from casa_hub.keeper.upkeep import Upkeep
from casa_hub.naming import Server
from casa_hub.record import AnyRecord, ServerRecord, parse_text, under_another_name
from casa_hub.startup import on_hub_start
from casa_hub.steps import told

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


class PodServer:
    """The server of one KubeSpawner object. Once it runs, the Keeper's (`casa_hub.keeper.kept.Kept`)."""

    def __init__(self, spawner: Any) -> None:
        self._spawner = spawner
        #: The last start, also an earlier hub's (JupyterHub keeps it with the spawner's state); "" if none is known.
        self.start_id = ""
        #: What that start was made for: its user, or the hub, may have got another name since. None: it isn't known.
        self._identity: Server | None = None
        #: A pod that an earlier hub has started without this package; "" if there is none.
        self._strange_pod = ""
        self._minted: Minted | None = None
        #: The last start of this hub.
        self._given: Given | None = None
        #: What the Secret of a start that runs has, as far as that is known for sure; and what it had when it was.
        self._held: Given | None = None
        self._last: Given | None = None
        #: The start that was withdrawn before its end, by this hub or one before it.
        self._withdrawn = str((spawner.orm_spawner.state or {}).get(_WITHDRAWN, ""))
        #: Kind of an object that the last start could not have -> why.
        self._missing: Mapping[str, str] = {}
        self._launch: asyncio.Task[Mapping[str, KubernetesError]] | None = None
        #: While it starts: whether the watch has shown the pod of this start.
        self._seen: bool | None = None
        self._renewing = asyncio.Lock()

    @property
    def facility(self) -> Facility:
        return Facility.of(self._spawner)

    @property
    def delivery(self) -> KubernetesDelivery:
        return KubernetesDelivery.of(self._spawner)

    @property
    def server(self) -> Server:
        """The identity that the server's credentials are made for: that of its start, as long as it runs."""
        return self._identity or self._named

    @property
    def _named(self) -> Server:
        """The identity of a start that begins now."""
        return self.facility.server(self._spawner.user.name, self._spawner.name)

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
        """Credentials for a new start. No request to Kubernetes. Returns a sentence for each.

        Raises:
            CredentialError: a required one could not be minted.
            DeliveryError: the server of a user who was renamed still runs under this name.
            ConfigurationError: the hub's configuration can't work; or two credentials want the same file.
        """
        on_hub_start(self._spawner.user.settings["app"])
        # A hundred starts come here in one turn of the hub's loop, after what JupyterHub did in it: others go first.
        await asyncio.sleep(0)
        server, now = self._named, datetime.now(UTC)
        check_name(self._spawner.user.settings["app"], self._spawner, server)
        self._launch = self._given = self._held = self._identity = None
        self._seen, self._missing = False, {}
        request = await self.facility.request_of(self._spawner, server, secrets.token_hex(16), now)
        self._minted = self.facility.mint(request)
        return told(self.facility, self._minted, now)

    def dress(self, pod: V1Pod) -> None:
        """Add to the pod of the start that was minted for what it needs.

        Raises:
            DeliveryError: something of the operator's is in the place of ours.
        """
        assert self._minted is not None  # noqa: S101 - minted before there is a pod
        # Not before: a profile may have chosen another namespace.
        start = self._start(self._minted.start_id, self._minted.server)
        self.delivery.dress(pod, start, self._minted)
        self._given = Given(start, record_text(self._minted.record))
        self.start_id, self._identity, self._strange_pod = start.start_id, start.server, ""

    async def launch(self, body: Object) -> Mapping[str, str]:
        """Create the (dressed) pod, and at once what it owns. As `KubernetesDelivery.launch`."""
        assert self._minted is not None  # noqa: S101 - see dress
        assert self._given is not None  # noqa: S101
        seconds = self._spawner.k8s_api_request_retry_timeout
        launch = self.delivery.launch(body, self._given.start, self._minted, seconds=seconds)
        # Not cancelled with the start, or nobody would know whether the pod was created after all.
        self._launch = asyncio.create_task(launch)
        missing = await asyncio.shield(self._launch)
        self._missing = {kind: str(error) for kind, error in missing.items()}
        self._minted = None  # secrets stay in the hub no longer than they are needed
        return self._missing

    def may_run(self, pod: Object | None) -> bool:
        """Whether a pod that the watch shows may be the one that is waited for: the watch may be late.

        Raises:
            DeliveryError: it was there, and is gone before the server was.
        """
        if self._seen is None or self._given is None:
            return True
        if pod is not None and marks.start_id_of(pod) == self._given.start.start_id:
            self._seen = True
        elif self._seen:
            raise DeliveryError(
                f"Pod {self._given.start.namespace}/{self._spawner.pod_name}",
                "it was removed while the server was starting",
                "Start it again; if that happens again, ask the operator what removes it.",
            )
        return self._seen

    def started(self) -> None:
        """The start has succeeded."""
        self._seen = self._minted = None
        self._held = self._last = self._given
        Upkeep.of(self._spawner.user.settings).started(self._spawner, self._missing)

    async def take_down(self) -> None:
        """Remove the pod of a start that failed, if it was created, and with it what it owns."""
        self._seen = self._minted = self._held = None
        if self._launch is None or self._given is None:
            return
        await asyncio.wait([self._launch])  # it has a deadline
        try:
            await self.delivery.take_down(self._given.start, self._spawner.pod_name, Deadline(_CLEAN_UP))
        except CasaError as error:
            self._spawner.log.warning("The pod of a failed start stays until the API server answers: %s", error)
        # A creation that nobody got an answer to may still come.
        self.delivery.owe(self._given.start)
        self._given = None

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
        return self._holding(self._known(start) or Given(start, marks.record_text_of(pod, start.server) or ""))

    async def holding(self) -> Holding | None:
        """See `Kept`."""
        async with self._renewing:
            given = await self._running(self._deadline())
            return self._holding(given) if given is not None else None

    async def renew(self, names: Collection[str], *, anyhow: bool = False) -> Holding | None:
        """See `Kept`."""
        async with self._renewing:  # each goes on from the record that the one before left
            deadline = self._deadline()
            for left in reversed(range(_MOST_OVERTAKEN)):
                try:
                    return await self._renew(names, anyhow, deadline)
                except OvertakenError:
                    if not left:
                        raise
        raise AssertionError  # for mypy

    async def _renew(self, names: Collection[str], anyhow: bool, deadline: Deadline) -> Holding | None:
        given = await self._running(deadline)
        if given is None:
            return None
        held = self._holding(given)
        if not isinstance(held.record, ServerRecord):
            return held
        request = await self.facility.request_of(self._spawner, given.start.server, held.start_id, datetime.now(UTC))
        username = self._spawner.user.name
        minted = self.facility.renew(request, names, held.record, anyhow=anyhow, username=username)
        if not minted.credentials:
            return Holding(held.start_id, held.record, minted.missing, minted.later)
        # Unless this goes well, nobody knows what the Secret has: the request may still be on its way.
        self._held = None
        text = await self.delivery.renew(given.start, minted, given.text, deadline)
        self._held = self._last = Given(given.start, text)
        return Holding(held.start_id, minted.record, minted.missing, minted.later)

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
                self._held = None
            if self._withdrawn == start.start_id:
                return {}
            try:
                failed = await self.delivery.bring_back(start, objects, deadline)
                if lost:
                    text = await self.delivery.record(start, deadline)
                    self._held = self._last = Given(start, text) if text is not None else None
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
        last = self._held or self._last
        known = last is not None and last.start.start_id == start.start_id
        text = last.text if last is not None and known else marks.record_text_of(pod, start.server)
        return self._believed(start, parse_text(text))

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
        except SQLAlchemyError:  # the note of the departure, which was made before, keeps the next hub from it as well
            roll_back(database)
            self._spawner.log.exception("The withdrawal of %s can't be noted", self.server.identity)

    async def _running(self, deadline: Deadline) -> Given | None:
        """What the pod that runs was given, by this hub or one before it: the pod's own marks tell the start."""
        await self._spawner._start_watching_pods()  # noqa: SLF001 - as KubeSpawner does before it looks
        found = self._standing()
        if found is None:
            return None
        start, pod = found
        if self._known(start) is None:
            first = self._record(start, pod)
            text = await self.delivery.record(start, deadline, there=_has_secret(first))
            self._held = Given(start, text) if text is not None else None
            self._last = self._held or self._last
            if self._held is None:
                # Without a Secret as it began, or somebody has edited that.
                bare = isinstance(first, ServerRecord) and not wants_secret(first)
                text = marks.record_text_of(pod, start.server) if bare else ""
                return Given(start, text or "")
        return self._held

    def _known(self, start: Start) -> Given | None:
        return self._held if self._held is not None and self._held.start.start_id == start.start_id else None

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

    async def withdraw_ended(self) -> None:
        """Remove what the server's pod owns, if it is still there: one that has ended needs no secret."""
        pod = self.pod()
        start = self._start_of(pod)
        if pod is not None and start is not None:
            if not marks.has_ended(pod):  # its stop failed
                self.delivery.owe(start)
            await self.delivery.withdraw_ended(start, Deadline(_CLEAN_UP))

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
