"""Routes by Traefik's file provider: one file a server, in a directory that Traefik watches."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml

from casa_hub.credentials.base import Route
from casa_hub.delivery.traefik import TraefikRoutes, checked, rule
from casa_hub.errors import DeliveryError, Problem, Severity
from casa_hub.files import is_on_its_way, replace_file
from casa_hub.naming import Server

#: Begins the first line of each file, which names its server, so that files of others are never touched.
_MARK = "# casa_hub: "


def document(settings: TraefikRoutes, routes: Iterable[Route], address: str) -> dict[str, Any]:
    """Traefik's dynamic configuration (``tcp``) for the routes of one server to its IPv4 address.
    Raises as `checked`.
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
    """The route files of a Traefik on this machine."""

    def __init__(self, settings: TraefikRoutes) -> None:
        self._settings = settings
        self._directory = Path(settings.directory)
        #: Without it all methods do nothing.
        self._in_use = settings.kind != "none" and bool(settings.directory)

    def check(self, *, wanted: bool) -> list[Problem]:
        """Problems of the settings; `wanted`: whether any credential wants routes."""
        problems = self._settings.check(wanted=wanted, local=True)
        if wanted and self._in_use and not self._directory.is_dir():
            problem = f"there is no directory {self._directory}"
            remedy = "Make it before the hub starts, and writable by the hub."
            problems.append(Problem(Severity.ERROR, "TraefikRoutes.directory", problem, remedy))
        return problems

    def publish(self, server: Server, start_id: str, routes: Sequence[Route], address: str) -> None:
        """Write the server's file with these routes. Blocks for a few file operations.
        Raises OSError, or DeliveryError if the file belongs to another server or a host can't have a route.
        """
        if not self._in_use or not routes:
            return
        path = self._path(server)
        owner = _owner(path)
        if os.path.lexists(path) and (owner is None or owner[0] != server.identity):
            raise DeliveryError(str(path), "belongs to another server", "Tell the operator of this hub.")
        mark = json.dumps({"server": server.identity, "start_id": start_id})  # ASCII, so it stays one line
        content = yaml.safe_dump(document(self._settings, routes, address), sort_keys=True)
        # Traefik may run as another user; nothing here is secret.
        replace_file(path, f"{_MARK}{mark}\n{content}".encode(), 0o644)

    def has(self, server: Server, start_id: str, routes: Sequence[Route]) -> bool:
        """Whether the file of this start exists, or none is needed. Raises OSError."""
        return not self._in_use or not routes or _owner(self._path(server)) == (server.identity, start_id)

    def retract(self, server: Server, start_id: str) -> None:
        """Remove the file if it is of this start; another start's file stays."""
        if not self._in_use:
            return
        path = self._path(server)
        if _owner(path) == (server.identity, start_id):
            path.unlink(missing_ok=True)

    def left(
        self, hub_id: str, living: Callable[[], Collection[tuple[str, str]]]
    ) -> list[tuple[Path, tuple[str, str]]]:
        """Files of this hub's servers that don't live any more, each with its owner. Raises OSError.

        `living` gives (identity, start id) of all living servers. It is called after the directory was read: a server
        that starts meanwhile must count as living.
        """
        found = [(path, _owner(path)) for path in self._directory.glob("*.yml")] if self._in_use else []
        keys = living()
        return [(path, own) for path, own in found if own is not None and own not in keys and _is_of(own, hub_id)]

    def remove(self, path: Path, owner: tuple[str, str]) -> None:
        """Remove a file that `left` found, if its owner is still the same. Raises OSError."""
        if _owner(path) == owner:
            path.unlink(missing_ok=True)

    def sweep(self, hub_id: str, living: Collection[tuple[str, str]]) -> None:
        """Remove this hub's files of servers other than `living` (identity, start id). Nobody may write meanwhile."""
        for path, owner in self.left(hub_id, lambda: living):
            self.remove(path, owner)
        # Temporary files of a hub that was killed.
        for path in self._directory.glob(".*.new") if self._in_use else ():
            found = _owner(path) if is_on_its_way(path.name) else None
            if found is not None and _is_of(found, hub_id):
                self.remove(path, found)

    def _path(self, server: Server) -> Path:
        return self._directory / f"{server.slug}.yml"


def _owner(path: Path) -> tuple[str, str] | None:
    """(identity, start id) in the file's first line; None if the file isn't ours.
    Raises OSError if the file may be ours, but can't be read.
    """
    # Our files are plain files. A link may lead anywhere, and opening a named pipe would block.
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
