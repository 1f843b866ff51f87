"""Brings pods and what they own to the API server, and takes them away: the order of requests, and what a 409 means.

The pod comes first and its objects name it as their owner by uid, so that whatever ends the pod, and however the hub
ends, Kubernetes' own garbage collector removes them. A pod waits for its Secret, and kubelet looks for it at once;
therefore few launches are under way at a time: each goes through in one piece.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from http import HTTPStatus
from typing import TypeAlias

from casa_hub.delivery.kubernetes import manifests, marks
from casa_hub.delivery.kubernetes.api import Deadline, KubernetesAPI, KubernetesError
from casa_hub.delivery.kubernetes.manifests import Object, Pod, Start

#: Launches under way at once. More keep the API server and each other busy, so that each pod waits longer for its
#: Secret, and not one server is ready sooner (`bench/storm.py`).
_AT_ONCE = 3
#: Seconds after which a launch counts no longer: the API server is far away or slow then, and waits for no processor.
_PACE = 0.1

#: Seconds between two looks at a pod that is about to go.
_LOOK_AGAIN = 0.1

#: Pods whose containers have ended stay where an operator wants to look at them (`delete_stopped_pods`).
_NOT_ENDED = "status.phase!=Succeeded,status.phase!=Failed"

#: The objects of a pod: those that it can't do without, and those that it can.
Load: TypeAlias = Callable[[Pod], tuple[list[Object], list[Object]]]


class OvertakenError(KubernetesError):
    """A renewal that was thought to have failed had come through after all, or was another's."""


@dataclass(frozen=True, slots=True)
class Launched:
    """A pod that was created with what it owns."""

    pod: Pod
    #: Kind of an object that could not be applied, though nothing required needs it -> why.
    missing: Mapping[str, KubernetesError]


class Courier:
    """All coroutines are for one and the same event loop."""

    def __init__(self, api: KubernetesAPI, log: logging.Logger | logging.LoggerAdapter[logging.Logger]) -> None:
        self._api = api
        self._log = log
        self._room = asyncio.Semaphore(_AT_ONCE)

    async def launch(self, body: Object, start: Start, load: Load, seconds: float) -> Launched:
        """Create the pod `body`, and at once what it owns.

        A pod of an earlier start of the same server that is in the way is removed; another server's is not. A creation
        whose answer got lost is recognised by its start id. After an error the pod may be there (`take_down`).

        `seconds` begin when it is this launch's turn.

        Raises:
            KubernetesError: the pod, or something that it can't do without, is refused.
        """
        deadline = None
        while True:
            async with self._in_turn():
                deadline = deadline or Deadline(seconds)
                made = await self._create(body, deadline)
                if marks.start_id_of(made) == start.start_id:
                    pod = Pod.of(made)
                    return Launched(pod, await self._apply_all(pod, load, deadline))
            # It may take long, and others needn't wait for it.
            await self._make_room(made, body, start, deadline)

    async def _apply_all(self, pod: Pod, load: Load, deadline: Deadline) -> Mapping[str, KubernetesError]:
        """Apply what the pod owns, all at the same time. Returns `Launched.missing`, raises as `launch`."""
        needed, wished = load(pod)
        answers = await asyncio.gather(*(self._apply(one, deadline) for one in needed + wished))
        for error in answers[: len(needed)]:
            if error is not None:
                raise error
        failed = zip(wished, answers[len(needed) :], strict=True)
        return {one["kind"]: error for one, error in failed if error is not None}

    async def bring_back(
        self, objects: Iterable[Object], start: Start, deadline: Deadline
    ) -> Mapping[str, KubernetesError]:
        """Create objects of a start that runs, and that has lost them or never had them.

        Not applied: a request that was given up, but is still on its way, must not change what a later one has made.
        One that is there as this start's is left as it is. Returns kind -> why, of those that could not be had.
        """
        objects = list(objects)
        answers = await asyncio.gather(*(self._bring_back(one, start, deadline) for one in objects))
        failed = zip(objects, answers, strict=True)
        return {one["kind"]: error for one, error in failed if error is not None}

    async def _bring_back(self, one: Object, start: Start, deadline: Deadline) -> KubernetesError | None:
        try:
            try:
                await self._api.create(one, deadline, manager=manifests.MANAGER)
            except KubernetesError as error:
                if error.status != HTTPStatus.CONFLICT:
                    raise
                there = await self._api.get(one, deadline, metadata_only=True)
                if there is None or marks.start_id_of(there) != start.start_id:
                    raise
        except KubernetesError as error:
            return error
        return None

    async def renew(self, start: Start, changes: list[Object], before: str, after: str, deadline: Deadline) -> None:
        """Apply a JSON Patch to the start's Secret, that takes the record (as text) from `before` to `after`.

        Raises:
            OvertakenError: the Secret has neither.
            KubernetesError: it is not known to be applied; it may still be, as long as the Secret has `before`.
        """
        try:
            await self._api.patch(manifests.reference("Secret", start), changes, deadline)
        except KubernetesError as error:
            if error.status != HTTPStatus.UNPROCESSABLE_ENTITY:
                raise
            there = await self.secret(start, deadline)
            ours = there is not None and marks.start_id_of(there) == start.start_id
            found = marks.record_text_of(there, start.server) if there is not None and ours else None
            if found == after:  # by a try whose answer got lost
                return
            if found is not None and found != before:
                raise OvertakenError(
                    error.thing, "was renewed by another request", "Try again.", HTTPStatus.CONFLICT
                ) from None
            raise

    async def secret(self, start: Start, deadline: Deadline) -> Object | None:
        """The start's Secret, without its data. Raises KubernetesError."""
        return await self._api.get(manifests.reference("Secret", start), deadline, metadata_only=True)

    async def take_down(self, start: Start, pod_name: str, deadline: Deadline) -> None:
        """Remove this start's pod if it is there. Raises KubernetesError."""
        await self._remove(manifests.reference("Pod", start, pod_name), start, deadline)

    async def end(self, start: Start, pod: Pod, grace_seconds: int, deadline: Deadline) -> None:
        """Let a server's pod end; another one that has its name by now is left alone. Raises KubernetesError."""
        await self._api.delete(manifests.reference("Pod", start, pod.name), pod.uid, deadline, grace_seconds)

    async def withdraw(self, objects: Iterable[Object], start: Start, deadline: Deadline) -> None:
        """Remove those of the objects that are this start's. Raises KubernetesError."""
        await asyncio.gather(*(self._remove(one, start, deadline) for one in objects))

    async def pods(self, hub: Start, deadline: Deadline) -> list[tuple[tuple[str, str], Object]]:
        """This hub's pods that have not ended: `marks.whose` and metadata of each. `hub`: any start of it.

        Raises:
            KubernetesError: the API server can't say.
        """
        selectors = {"labelSelector": marks.hub_selector(hub), "fieldSelector": _NOT_ENDED}
        pods = await self._api.list(manifests.reference("Pod", hub, ""), selectors, deadline)
        return [(marks.whose(pod), pod) for pod in pods]

    async def objects(self, kinds: Iterable[Object], hub: Start, deadline: Deadline) -> list[Object]:
        """Metadata of this hub's objects of these kinds, each with its kind; `hub` as in `pods`.

        Raises:
            KubernetesError: the API server can't say.
        """
        found = []
        for kind in kinds:
            what = {"apiVersion": kind["apiVersion"], "kind": kind["kind"]}
            everything = {**what, "metadata": {"name": "", "namespace": hub.namespace}}
            some = await self._api.list(everything, {"labelSelector": marks.hub_selector(hub)}, deadline)
            found += [{**what, "metadata": one["metadata"]} for one in some]
        return found

    async def delete(self, there: Object, deadline: Deadline) -> None:
        """Delete just this object, whoever has its name by now; its pod may take its time. Raises KubernetesError."""
        await self._api.delete(there, there["metadata"]["uid"], deadline)

    async def is_complete(self, objects: Iterable[Object], start: Start, deadline: Deadline) -> bool:
        """Whether all of the objects are there, as this start's. Raises KubernetesError."""
        there = await asyncio.gather(*(self._api.get(one, deadline, metadata_only=True) for one in objects))
        return all(one is not None and marks.start_id_of(one) == start.start_id for one in there)

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
        """The pod of that name: the new one, perhaps by a try whose answer got lost; or the one in its place."""
        while True:
            try:
                return await self._api.create(body, deadline)
            except KubernetesError as error:
                if error.status != HTTPStatus.CONFLICT or error.transient:
                    raise
                there = await self._api.get(body, deadline)
                if there is not None:
                    return there
                if deadline.left < _LOOK_AGAIN:
                    raise
            await asyncio.sleep(_LOOK_AGAIN)  # it went while we looked

    async def _make_room(self, there: Object, body: Object, start: Start, deadline: Deadline) -> None:
        """Remove the pod of an earlier start of the same server, and wait until it is gone."""
        name, uid = there["metadata"]["name"], there["metadata"]["uid"]
        thing = f"Pod {start.namespace}/{name}"
        if not marks.is_of(there, start.server, start.instance):
            raise KubernetesError(
                thing,
                "it is another server's, or not a server of this hub",
                "Choose another name for this server; if that doesn't help, the operator must look at that pod.",
                HTTPStatus.CONFLICT,
            )
        self._log.info("Removing pod %s/%s, of an earlier start", start.namespace, name)
        await self._api.delete(body, uid, deadline, grace_seconds=0)
        while True:
            now = await self._api.get(body, deadline, metadata_only=True)
            if now is None or now["metadata"]["uid"] != uid:
                return
            if deadline.left < _LOOK_AGAIN:
                raise KubernetesError(
                    thing,
                    "an earlier one of this server does not go away",
                    "Try again in a minute; if it stays, its node may be down: tell the operator.",
                    HTTPStatus.CONFLICT,
                )
            await asyncio.sleep(_LOOK_AGAIN)

    async def _apply(self, one: Object, deadline: Deadline) -> KubernetesError | None:
        """The error instead of raising it: the others go on."""
        try:
            await self._api.apply(one, deadline)
        except KubernetesError as error:
            return error
        return None

    async def _remove(self, what: Object, start: Start, deadline: Deadline) -> None:
        there = await self._api.get(what, deadline, metadata_only=True)
        if there is not None and marks.start_id_of(there) == start.start_id:
            await self._api.delete(what, there["metadata"]["uid"], deadline, grace_seconds=0)
