"""Pure: what a server asks for, and whether its owner may have so much."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from casa_hub.policy.amounts import is_gpu, memory_of_pod, number
from casa_hub.policy.table import Entitlement, Said


@dataclass(frozen=True, slots=True)
class Asked:
    """What a server asks for: the larger one of what is guaranteed to it and of what it may use."""

    cpu: Decimal = Decimal(0)
    #: Bytes.
    memory: Decimal = Decimal(0)
    #: Resource of Kubernetes -> how many.
    devices: Mapping[str, Decimal] = field(default_factory=dict)
    #: Whether it claims devices by Kubernetes' resource claims, which say nothing of how many.
    claims: bool = False

    @classmethod
    def of_settings(cls, spawner: Any) -> Asked:
        """Of a spawner's settings, for its one container. Raises ValueError for what is no amount."""
        cpu = max(number(getattr(spawner, name) or 0) for name in ("cpu_limit", "cpu_guarantee"))
        memory = max(number(getattr(spawner, name) or 0) for name in ("mem_limit", "mem_guarantee"))
        devices: dict[str, Decimal] = {}
        for setting in ("extra_resource_limits", "extra_resource_guarantees"):
            for name, amount in _amounts(getattr(spawner, setting, {}).items()):
                devices[name] = max(devices.get(name, Decimal(0)), amount)
        return cls(cpu, memory, devices)

    @classmethod
    def of_pod(cls, pod: Mapping[str, Any]) -> Asked:
        """Of a pod's manifest, without our own container. Raises ValueError for what is no amount.

        Its containers run together; each of the others runs alone before them.
        """
        spec = pod["spec"]
        total: dict[str, Decimal] = {}
        for one in spec.get("containers") or ():
            for name, amount in _of_container(one).items():
                total[name] = total.get(name, Decimal(0)) + amount
        for one in spec.get("initContainers") or ():
            for name, amount in _of_container(one).items():
                total[name] = max(total.get(name, Decimal(0)), amount)
        devices = {name: amount for name, amount in total.items() if "/" in name and amount}
        zero = Decimal(0)
        return cls(total.get("cpu", zero), total.get("memory", zero), devices, bool(spec.get("resourceClaims")))


@dataclass(frozen=True, slots=True)
class Exceeded:
    """A limit, and what was asked for beyond it."""

    #: As in `Rule.limits`.
    name: str
    asked: Decimal
    limit: Said[Decimal]


def exceeded(asked: Asked, entitlement: Entitlement) -> Exceeded | None:
    """The first limit that is exceeded; None: somebody with this entitlement may have what is asked for."""
    limits = entitlement.limits
    amounts = {"cpu": asked.cpu, "memory": asked.memory, "gpu": Decimal(0)}
    for name, amount in asked.devices.items():
        if name not in limits and is_gpu(name):
            amounts["gpu"] += amount
        else:
            amounts[name] = amount
    if asked.claims and "gpu" in limits:
        return Exceeded("gpu", limits["gpu"].value + 1, limits["gpu"])
    for name, amount in amounts.items():
        if name in limits and amount > limits[name].value:
            return Exceeded(name, amount, limits[name])
    return None


def _of_container(container: Mapping[str, Any]) -> dict[str, Decimal]:
    resources = container.get("resources") or {}
    found: dict[str, Decimal] = {}
    for amounts in (resources.get("requests") or {}, resources.get("limits") or {}):
        for name, amount in _amounts(amounts.items()):
            found[name] = max(found.get(name, Decimal(0)), amount)
    return found


def _amounts(items: Iterable[tuple[str, Any]]) -> Iterable[tuple[str, Decimal]]:
    for name, value in items:
        yield name, Decimal(memory_of_pod(value)) if name == "memory" else number(value)
