"""Routes by Traefik's file provider: one document a server, in a directory that Traefik watches."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml

from casa_hub.delivery.base import Route
from casa_hub.delivery.layout import is_on_its_way, replace_file
from casa_hub.delivery.traefik import TraefikRoutes, checked, rule
from casa_hub.errors import DeliveryError, Problem, Severity
from casa_hub.naming import Server

#: The first line of each document says whose it is, so that nobody else's file is ever touched.
_MARK = "# casa_hub: "


def document(settings: TraefikRoutes, routes: Iterable[Route], address: str) -> dict[str, Any]:
    """Traefik's dynamic configuration (``tcp``) for routes of one server to its IPv4 address.

    Raises:
        DeliveryError: a host is no DNS name, or comes twice.
    """
    routers: dict[str, Any] = {}
    services: dict[str, Any] = {}
    for route in checked(routes):
        routers[route.host] = {
            "entryPoints": [settings.entry_point(route)],
            "rule": rule(route),
            "service": route.host,
            "tls": {"passthrough": True},
        }
        services[route.host] = {"loadBalancer": {"servers": [{"address": f"{address}:{route.port}"}]}}
    return {"tcp": {"routers": routers, "services": services}}


class RouteFiles:
    """Hands routes to a Traefik proxy on this machine."""

    def __init__(self, settings: TraefikRoutes) -> None:
        self._settings = settings
        self._directory = Path(settings.directory)
        #: Whether there is anything to do.
        self._in_use = settings.kind != "none" and bool(settings.directory)

    def check(self, *, wanted: bool) -> list[Problem]:
        """What is wrong with the settings, if any credential wants routes (`wanted`)."""
        problems = self._settings.check(wanted=wanted, local=True)
        if wanted and self._in_use and not self._directory.is_dir():
            problem = f"there is no directory {self._directory}"
            remedy = "Make it, writable by the hub, before the hub starts."
            problems.append(Problem(Severity.ERROR, "TraefikRoutes.directory", problem, remedy))
        return problems

    def publish(self, server: Server, start_id: str, routes: Sequence[Route], address: str) -> None:
        """Make the server's routes these ones. Blocks for a few file operations.

        Raises:
            DeliveryError: another server's document is in the place, or a host can't be a route.
            OSError: the directory can't be written.
        """
        if not self._in_use or not routes:
            return
        path = self._path(server)
        owner = _owner(path)
        if os.path.lexists(path) and (owner is None or owner[0] != server.identity):
            raise DeliveryError(str(path), "it belongs to another server", "Tell the operator of this hub.")
        mark = json.dumps({"server": server.identity, "start_id": start_id})  # ASCII: stays one line
        content = yaml.safe_dump(document(self._settings, routes, address), sort_keys=True)
        # Traefik may run as another user; nothing here is secret.
        replace_file(path, f"{_MARK}{mark}\n{content}".encode(), 0o644)

    def has(self, server: Server, start_id: str, routes: Sequence[Route]) -> bool:
        """Whether the routes of this start are there, as far as there is anything to do. Raises OSError."""
        return not self._in_use or not routes or _owner(self._path(server)) == (server.identity, start_id)

    def retract(self, server: Server, start_id: str) -> None:
        """Take the routes of this start away; another's stay."""
        if not self._in_use:
            return
        path = self._path(server)
        if _owner(path) == (server.identity, start_id):
            path.unlink(missing_ok=True)

    def left(
        self, hub_id: str, living: Callable[[], Collection[tuple[str, str]]]
    ) -> list[tuple[Path, tuple[str, str]]]:
        """Documents of this hub's servers that aren't `living` (identity, start id; asked for last), with their owners.

        Raises:
            OSError: the directory can't be read.
        """
        there = [(path, _owner(path)) for path in self._directory.glob("*.yml")] if self._in_use else []
        keys = living()
        return [(path, one) for path, one in there if one is not None and one not in keys and _is_of(one, hub_id)]

    def remove(self, path: Path, owner: tuple[str, str]) -> None:
        """Take away a document that `left` has found, if it still is its owner's. Raises OSError."""
        if _owner(path) == owner:
            path.unlink(missing_ok=True)

    def sweep(self, hub_id: str, living: Collection[tuple[str, str]]) -> None:
        """Take away what this hub left of servers other than the `living` (identity, start id); while nobody writes."""
        for path, owner in self.left(hub_id, lambda: living):
            self.remove(path, owner)
        # What a hub that was killed had written, but not named yet.
        for path in self._directory.glob(".*.new") if self._in_use else ():
            one = _owner(path) if is_on_its_way(path.name) else None
            if one is not None and _is_of(one, hub_id):
                self.remove(path, one)

    def _path(self, server: Server) -> Path:
        return self._directory / f"{server.slug}.yml"


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
        case {"server": str(identity), "start_id": str(start_id)} if Server.of_identity(identity):
            return identity, start_id
    return None


def _is_of(owner: tuple[str, str], hub_id: str) -> bool:
    server = Server.of_identity(owner[0])
    return server is not None and server.hub_id == hub_id
