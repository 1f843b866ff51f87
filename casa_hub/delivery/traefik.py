"""Routes by Traefik's file provider: one document a server, in a directory that Traefik watches.

A route leads TLS untouched, by the SNI of the ClientHello, to the server's own address: Dask ends TLS itself, with
certificates that only this server's CA signed.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml
from traitlets import Enum, List, Unicode
from traitlets.config import LoggingConfigurable

from casa_hub.delivery.base import Route
from casa_hub.delivery.layout import replace_file
from casa_hub.errors import DeliveryError, Problem, Severity
from casa_hub.naming import Server

#: ``alice.dask.example.org``: labels as DNS has them (RFC 1123), at most 253 characters in all. Nothing else gets into
#: a rule, where a back quote or "*" would mean more than one host.
_HOST = re.compile(r"(?=.{1,253}\Z)[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*\Z")

#: The first line of each document says whose it is, so that nobody else's file is ever touched.
_MARK = "# casa_hub: "


def document(routes: Iterable[Route], address: str, entry_points: Sequence[str]) -> dict[str, Any]:
    """Traefik's dynamic configuration (``tcp``) for routes to `address`.

    Args:
        routes: hosts of one server.
        address: IPv4 address of the server.
        entry_points: names of Traefik's entry points for schedulers and for workers.

    Raises:
        DeliveryError: a host is no DNS name, or comes twice.
    """
    entry_point = dict(zip(("scheduler", "worker"), entry_points, strict=True))
    routers: dict[str, Any] = {}
    services: dict[str, Any] = {}
    for route in routes:
        if not _HOST.match(route.host):
            raise DeliveryError(repr(route.host), "it is no DNS name, so no route can lead to it", "Check the domain.")
        if route.host in routers:
            raise DeliveryError(route.host, "two routes lead to it", "Enable one of the credentials that want it.")
        routers[route.host] = {
            "entryPoints": [entry_point[route.purpose]],
            "rule": f"HostSNI(`{route.host}`)",
            "service": route.host,
            "tls": {"passthrough": True},
        }
        services[route.host] = {"loadBalancer": {"servers": [{"address": f"{address}:{route.port}"}]}}
    return {"tcp": {"routers": routers, "services": services}}


class TraefikRoutes(LoggingConfigurable):
    """Hands routes to a Traefik proxy."""

    kind = Enum(
        ["traefik", "none"],
        default_value="traefik",
        help="""How servers become reachable from outside for Dask: `traefik` (default; Traefik 3, here by its file
        provider in `TraefikRoutes.directory`), or `none`: no routes, a scheduler is reached on this machine only.""",
    ).tag(config=True)

    entry_points = List(
        Unicode(),
        default_value=["dask", "daskworker"],
        minlen=2,
        maxlen=2,
        help="""Names of the two entry points in Traefik's own configuration: the one for Dask schedulers, then the one
        for Dask workers. Default: `[dask, daskworker]`.""",
    ).tag(config=True)

    directory = Unicode(
        "",
        help="""Directory of Traefik's file provider (`providers.file.directory`, with `watch: true`), which must exist
        and be writable by the hub. Each running server has one file there. No default: needed as soon as a credential
        wants routes. Example: `/etc/traefik/casa-hub`.""",
    ).tag(config=True)

    def check(self, *, wanted: bool) -> list[Problem]:
        """What is wrong with the settings, if any credential wants routes (`wanted`)."""
        thing = "TraefikRoutes.directory"
        if self.kind == "none" or not wanted:
            return []
        if not self.directory:
            remedy = "Set it to the directory of Traefik's file provider, or set TraefikRoutes.kind to none."
            return [Problem(Severity.ERROR, thing, "it is not set", remedy)]
        if not Path(self.directory).is_dir():
            problem = f"there is no directory {self.directory}"
            return [Problem(Severity.ERROR, thing, problem, "Make it, writable by the hub, before the hub starts.")]
        return []

    def publish(self, server: Server, start_id: str, routes: Sequence[Route], address: str) -> None:
        """Make the server's routes these ones. Blocks for a few file operations.

        Raises:
            DeliveryError: another server's document is in the place, or a host can't be a route.
            OSError: the directory can't be written.
        """
        if self.kind == "none" or not routes:
            return
        path = self._path(server)
        owner = _owner(path)
        if os.path.lexists(path) and (owner is None or owner[0] != server.identity):
            raise DeliveryError(str(path), "it belongs to another server", "Tell the operator of this hub.")
        mark = json.dumps({"server": server.identity, "start_id": start_id})  # ASCII: stays one line
        content = yaml.safe_dump(document(routes, address, self.entry_points), sort_keys=True)
        # Traefik may run as another user; nothing here is secret.
        replace_file(path, f"{_MARK}{mark}\n{content}".encode(), 0o644)

    def retract(self, server: Server, start_id: str) -> None:
        """Take the routes of this start away; another's stay."""
        if self.kind == "none" or not self.directory:
            return
        path = self._path(server)
        if _owner(path) == (server.identity, start_id):
            path.unlink(missing_ok=True)

    def sweep(self, hub_id: str, living: Collection[tuple[str, str]]) -> None:
        """Take away what this hub left of servers other than the `living` (identity, start id)."""
        if self.kind == "none" or not self.directory:
            return
        for path in Path(self.directory).glob("*.yml"):
            owner = _owner(path)
            if owner is not None and owner not in living and _hub(owner[0]) == hub_id:
                path.unlink(missing_ok=True)

    def _path(self, server: Server) -> Path:
        return Path(self.directory) / f"{server.slug}.yml"


def _owner(path: Path) -> tuple[str, str] | None:
    """(identity, start id) by the document's first line; None if it isn't one of ours.

    Raises:
        OSError: it may be ours, but can't be read.
    """
    # We write plain files only. A link may lead anywhere, and opening a named pipe would never end.
    if path.is_symlink() or not path.is_file():
        return None
    try:
        with path.open(encoding="utf-8") as file:
            line = file.readline()
        mark = json.loads(line.removeprefix(_MARK)) if line.startswith(_MARK) else None
    except (FileNotFoundError, PermissionError, ValueError, RecursionError):
        return None
    match mark:
        case {"server": str(identity), "start_id": str(start_id)} if _hub(identity) is not None:
            return identity, start_id
    return None


def _hub(identity: str) -> str | None:
    """The hub in a server's identity (`casa_hub.naming`); None if this is no identity."""
    try:
        parts = json.loads(identity)
    except (ValueError, RecursionError):
        return None
    match parts:
        case [str(hub_id), str(), str()]:
            return hub_id
    return None
