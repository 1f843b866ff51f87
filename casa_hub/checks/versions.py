"""Pure: the least safe versions of the neighbours, the faults of older ones, and the remedy.

docs/operators.md has the same table ("The least versions"); a test compares them. An older version is only a warning:
its packager may have corrected the fault without changing the version.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from casa_hub.checks.findings import Finding, ok, warning

Version = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A program that a facility runs beside this package."""

    name: str
    #: The least safe version of each major version, the oldest first.
    least: tuple[Version, ...]
    #: The fault of older versions.
    fault: str
    #: What to do until the upgrade, as a sentence; "" if nothing helps.
    meanwhile: str = ""


JUPYTERHUB = Neighbour(
    "JupyterHub",
    ((5, 5, 1), (6, 1, 0)),
    "sharing: unescaped next URL (GHSA-c4gm-pwx9-9w8j); filtered admin roles (GHSA-69wv-m5fw-2fhp); before 5.5 also "
    "CVE-2026-54338, CVE-2026-40864 and CVE-2026-33709",
)
TRAEFIK = Neighbour(
    "Traefik",
    ((2, 11, 41), (3, 6, 11)),
    "the TCP router clears deadlines: slow loris on the Dask entry point (CVE-2026-26999); fragmented ClientHello: "
    "empty SNI (CVE-2026-32305)",
)
TRAEFIK_GATEWAY = Neighbour("Traefik with the Gateway API", ((3, 7, 1),), "users of the Gateway API need 3.7.1")
XROOTD = Neighbour(
    "XRootD",
    ((5, 9, 6), (6, 1, 0)),
    "a failed macaroon falls through to the chained authorisation",
    "Until then have no acc.authdb and no other library in ofs.authlib after libXrdMacaroons.so.",
)


def read(neighbour: Neighbour, thing: str, text: str) -> Finding | None:
    """Whether a version (`text`, such as ``v5.8.1``) is safe; None for another text. `thing`: where it was seen."""
    version = parse(text)
    if version is None:
        return None
    said = f"{neighbour.name} {shown(version)}"
    if is_safe(neighbour, version):
        return ok(thing, said)
    wanted = " or ".join(map(shown, neighbour.least))
    remedy = f"Upgrade to {wanted}, unless its packager has corrected this version. {neighbour.meanwhile}".rstrip()
    return warning(thing, f"{said} is older than is safe: {neighbour.fault}", remedy)


def is_safe(neighbour: Neighbour, version: Version) -> bool:
    """Whether the version is at least the safe one of its major version. Later major versions than listed are safe."""
    least = next((safe for safe in neighbour.least if safe[0] >= version[0]), None)
    return least is None or version >= least


def parse(text: str) -> Version | None:
    """The version that a text begins with. All three numbers must be there: a tag ``v3.6`` stands for several."""
    found = re.match(r"v?(\d{1,9})\.(\d{1,9})\.(\d{1,9})(?![\d.])", text, re.ASCII)
    return None if found is None else (int(found[1]), int(found[2]), int(found[3]))


def shown(version: Version) -> str:
    return ".".join(map(str, version))


def of_server_header(headers: Mapping[str, str]) -> str:
    """The version in an HTTP answer of XRootD (``Server: XrootD/v5.8.1``); "" if there is none."""
    server = next((value for name, value in headers.items() if name.lower() == "server"), "")
    name, _, version = server.partition("/")
    return version if name.lower() == "xrootd" else ""


def of_pods(pods: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Tag of each Traefik image in these pods -> one of its pods, ``namespace/name``."""
    found: dict[str, str] = {}
    for pod in pods:
        for container in (pod.get("spec") or {}).get("containers") or []:
            image = str(container.get("image", "")).partition("@")[0].rpartition("/")[2]
            name, _, tag = image.partition(":")
            if name == "traefik" and tag:
                found.setdefault(tag, f"{pod['metadata'].get('namespace')}/{pod['metadata'].get('name')}")
    return found
