"""Pure: amounts of CPU, memory and devices, as JupyterHub's settings and Kubernetes' manifests write them."""

from __future__ import annotations

import re
from decimal import Decimal, InvalidOperation

#: Suffix -> factor, of Kubernetes (``resource.Quantity``). JupyterHub reads K, M, G and T as powers of 1024, and
#: KubeSpawner hands them on so.
_BINARY = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40, "Pi": 2**50, "Ei": 2**60}
_DECIMAL = {"k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "P": 10**15, "E": 10**18}
_JUPYTERHUB = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}

_QUANTITY = re.compile(r"([+]?[0-9.]+(?:[eE][+-]?[0-9]+)?)([a-zA-Z]*)")


def number(value: object) -> Decimal:
    """An amount of CPU or a count, such as ``0.5``, ``"500m"`` or ``2``. Raises ValueError: it is none."""
    amount, suffix = _split(value)
    factors: dict[str, Decimal | int] = {"": 1, "m": Decimal("0.001"), **_DECIMAL}
    if suffix not in factors:
        raise ValueError(f"{value!a} is no number")
    return amount * factors[suffix]


def memory(value: object) -> int:
    """Bytes of a setting such as ``"32G"``, where JupyterHub means 2**30 by G. Raises ValueError."""
    amount, suffix = _split(value)
    factors: dict[str, int] = {"": 1, **_JUPYTERHUB, **_BINARY}
    if suffix not in factors:
        raise ValueError(f"{value!a} is no amount of memory, such as 32G")
    return int(amount * factors[suffix])


def memory_of_pod(value: object) -> int:
    """Bytes of a pod's manifest, where Kubernetes means 10**9 by G. Raises ValueError."""
    amount, suffix = _split(value)
    factors: dict[str, Decimal | int] = {"": 1, "m": Decimal("0.001"), **_DECIMAL, **_BINARY}
    if suffix not in factors:
        raise ValueError(f"{value!a} is no amount of memory")
    return -int(-(amount * factors[suffix]) // 1)  # never less than what is asked for


def shown(name: str, amount: Decimal | int) -> str:
    """An amount for people: ``8 CPUs``, ``32G of memory``, ``1 GPU``, ``1 of nvidia.com/mig-1g.16gb``."""
    if name == "memory":
        return f"{_bytes(int(amount))} of memory"
    text = f"{Decimal(amount).normalize():f}"
    units = {"cpu": "CPU", "gpu": "GPU", "servers": "server"}
    if name in units:
        return f"{text} {units[name]}" + ("" if text == "1" else "s")
    return f"{text} of {name}"


def is_gpu(resource: str) -> bool:
    """Whether a resource of Kubernetes is a GPU or a part of one.

    ``nvidia.com/gpu``, ``nvidia.com/gpu.shared``, ``nvidia.com/mig-1g.16gb``, ``amd.com/gpu``, ``gpu.intel.com/i915``.
    """
    domain, slash, name = resource.rpartition("/")
    if not slash:
        return False
    return "gpu" in re.split(r"[.-]", domain) + re.split(r"[.-]", name) or name.startswith("mig-")


def _split(value: object) -> tuple[Decimal, str]:
    if isinstance(value, bool) or not isinstance(value, int | float | str | Decimal):
        raise ValueError(f"{value!a} is no amount")  # noqa: TRY004 - of the operator's text, not of our code
    found = _QUANTITY.fullmatch(str(value).strip())
    try:
        amount = Decimal(found[1]) if found else None
    except InvalidOperation:
        amount = None
    if found is None or amount is None or not amount.is_finite():
        raise ValueError(f"{value!a} is no amount")
    return amount, found[2]


def _bytes(amount: int) -> str:
    for suffix, factor in reversed(_JUPYTERHUB.items()):
        if amount >= factor:
            return f"{(Decimal(amount) / factor).quantize(Decimal('0.01')).normalize():f}{suffix}"
    return f"{amount} bytes"
