"""A Kubernetes API of a few verbs, in memory: for tests of what is asked of it, and in which order, without a cluster.

It knows names, uids, owners, labels and the tests of a JSON Patch, and nothing of schemas, rights or admission: that
a real API server takes what this package asks for is for `tests/kubernetes`.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from casa_hub.delivery.kubernetes.api import Deadline, KubernetesError
from casa_hub.delivery.kubernetes.manifests import Object

Key = tuple[str, str, str]
#: What happens before a verb is done: it may raise, or take its time.
Before = Callable[[Object], Awaitable[None]]


def refusal(status: int | None) -> KubernetesError:
    """An answer of the API server; None: none came in time."""
    return KubernetesError("Pod jupyter/x", "a problem", "a remedy", status)


class MemoryAPI:
    """As `casa_hub.delivery.kubernetes.api.KubernetesAPI`."""

    def __init__(self) -> None:
        self.there: dict[Key, Object] = {}
        #: Each verb with the kind that it was asked for, in order.
        self.asked: list[tuple[str, str]] = []
        #: Verb and kind -> what goes wrong with it.
        self.before: dict[tuple[str, str], Before] = {}
        self._uids = itertools.count(1)

    def kinds(self) -> list[str]:
        """Of all that is there but pods."""
        return sorted(kind for kind, _, _ in self.there if kind != "Pod")

    def one(self, kind: str) -> Object:
        """The only one of its kind."""
        [found] = [one for (this, _, _), one in self.there.items() if this == kind]
        return found

    def remove(self, kind: str) -> None:
        """Somebody deletes all of a kind."""
        for key in [key for key in self.there if key[0] == kind]:
            del self.there[key]

    async def create(self, body: Object, deadline: Deadline, *, manager: str = "") -> Object:
        await self._asked("create", body)
        if _key(body) in self.there:
            raise refusal(409)
        return self._put(body)

    async def apply(self, body: Object, deadline: Deadline) -> Object:
        await self._asked("apply", body)
        return self._put(body)

    async def patch(self, what: Object, patch: list[Object], deadline: Deadline) -> Object:
        await self._asked("patch", what)
        if _key(what) not in self.there:
            raise refusal(404)
        changed = copy.deepcopy(self.there[_key(what)])
        for step in patch:
            *path, last = [part.replace("~1", "/").replace("~0", "~") for part in step["path"].split("/")[1:]]
            place = changed
            for part in path:
                place = place[part]
            if step["op"] == "test" and place.get(last) != step["value"]:
                raise refusal(422)
            place[last] = step["value"]
        self.there[_key(what)] = changed
        return {"metadata": changed["metadata"]}

    async def get(self, what: Object, deadline: Deadline, *, metadata_only: bool = False) -> Object | None:
        await self._asked("get", what)
        return copy.deepcopy(self.there.get(_key(what)))

    async def list(self, what: Object, selectors: Mapping[str, str], deadline: Deadline) -> list[Object]:
        await self._asked("list", what)
        namespace = what["metadata"]["namespace"]
        wanted = [part.partition("=")[::2] for part in selectors.get("labelSelector", "").split(",")]
        return [
            {"metadata": copy.deepcopy(one["metadata"])}
            for (kind, where, _), one in self.there.items()
            if kind == what["kind"] and namespace in {"", where}
            if all(name in one["metadata"]["labels"] for name, _ in wanted)
            if all(one["metadata"]["labels"][name] == value for name, value in wanted if value)
        ]

    async def delete(self, what: Object, uid: str, deadline: Deadline, grace_seconds: int | None = None) -> None:
        await self._asked("delete", what)
        if self.there.get(_key(what), {"metadata": {"uid": ""}})["metadata"]["uid"] == uid:
            del self.there[_key(what)]
            for key, one in list(self.there.items()):  # as Kubernetes' garbage collector
                if uid in {owner["uid"] for owner in one["metadata"].get("ownerReferences", ())}:
                    del self.there[key]

    async def close(self) -> None:
        pass

    async def _asked(self, verb: str, what: Object) -> None:
        self.asked.append((verb, what["kind"]))
        if (verb, what["kind"]) in self.before:
            await self.before[verb, what["kind"]](what)

    def _put(self, body: Object) -> Object:
        made = copy.deepcopy(body)
        before = self.there.get(_key(body), {"metadata": {}})["metadata"]
        made["metadata"]["uid"] = before.get("uid") or f"uid-{next(self._uids)}"
        made["metadata"]["creationTimestamp"] = "2026-11-21T15:00:00Z"
        if made["kind"] == "Pod":
            made["status"] = {"phase": "Running", "podIP": "127.0.0.1", "containerStatuses": []}
        self.there[_key(body)] = made
        return copy.deepcopy(made)


class SameLoop:
    """In place of `OwnLoop`, for tests whose scripts have events of their own loop."""

    async def run(self, work: Awaitable[Any]) -> Any:
        return await work


def _key(what: Object) -> Key:
    return what["kind"], what["metadata"]["namespace"], what["metadata"]["name"]
