"""Delivery on one machine: a directory, an address and a route for each server.

::

    <directory>/.lock                   locked by the hub while it runs
    <directory>/<slug>/xcache_token ... the secrets, laid out by `casa_hub.delivery.file_layout`
    <directory>/<slug>/state.json       the server and what a restarted hub must know of it; no secret
    <directory>/<slug>/process          the server's process, which writes this file itself

Directories of servers appear and vanish as a whole, by renaming, so an existing directory is complete.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import json
import os
import secrets
import shutil
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from functools import partial
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

from traitlets import TraitError, Unicode, validate
from traitlets.config import LoggingConfigurable

from casa_hub.credentials.base import Route
from casa_hub.delivery import file_layout
from casa_hub.delivery.local.route_files import RouteFiles
from casa_hub.delivery.removals import Removal, removal
from casa_hub.delivery.traefik import TraefikRoutes
from casa_hub.errors import ConfigurationError, DeliveryError, Problem
from casa_hub.facility import Minted
from casa_hub.files import replace_file
from casa_hub.naming import Server
from casa_hub.processes import Process, signature, signed_in
from casa_hub.record import AnyRecord, ServerRecord, Unreadable, parse
from casa_hub.tasks import Background

#: Seconds that a replaced set of files stays for readers that are just opening it.
_GRACE = 1.0
#: Seconds after which a directory is no longer about to be made or removed, which takes some milliseconds.
_UNDER_WAY = 60.0
#: Version of ``state.json``. The record in it has its own version.
_STATE_VERSION = 1


@dataclass(frozen=True, slots=True)
class Delivered:
    """What one running server has: the content of ``state.json`` in its directory."""

    server: Server
    start_id: str
    #: The server's own loopback address.
    address: str
    routes: tuple[Route, ...]
    record: AnyRecord
    #: Whether files and routes were removed while the server still runs.
    withdrawn: bool = False

    @property
    def key(self) -> tuple[str, str]:
        return self.server.identity, self.start_id

    def to_json(self) -> bytes:
        state = {each.name: getattr(self, each.name) for each in fields(self)}
        state |= {"server": asdict(self.server), "routes": [asdict(route) for route in self.routes]}
        state |= {"record": self.record.to_document()}
        return json.dumps({"version": _STATE_VERSION, **state}, indent=1).encode()

    @classmethod
    def from_json(cls, content: bytes) -> Delivered:
        """Raises ValueError, KeyError or TypeError for a text that no `to_json`, of this version or before, wrote."""
        state = json.loads(content)
        if state.pop("version") != _STATE_VERSION:
            raise ValueError("another version's")
        server, routes = Server(**state.pop("server")), tuple(Route(**route) for route in state.pop("routes"))
        return cls(server=server, routes=routes, record=parse(state.pop("record")), **state)


class LocalDelivery(LoggingConfigurable):
    """Secrets in directories of this machine, for servers that run as processes beside the hub.

    All methods may be repeated without harm.
    """

    directory = Unicode(
        "casa-hub-servers",
        help="""Directory of the servers' secret files. Each running server has a subdirectory, which is removed when
        the server stops. The hub makes the directory, readable by the hub's user only; nothing else may be in it.
        Default: `casa-hub-servers` in the hub's working directory.""",
    ).tag(config=True)

    network = Unicode(
        "127.77.0.0/16",
        help="""Loopback network from which each running server gets an address of its own, so that servers on one
        machine may listen on the same ports (Dask: 8786, 8788). Default: `127.77.0.0/16`. Hubs on one machine should
        have different ones.""",
    ).tag(config=True)

    @validate("network")
    def _loopback(self, proposal: dict[str, Any]) -> str:
        try:
            network = IPv4Network(proposal["value"])
        except ValueError as error:
            raise TraitError(f"LocalDelivery.network: {error}") from None
        if not network.is_loopback or network.num_addresses < 4:  # noqa: PLR2004
            raise TraitError(f"LocalDelivery.network: {network} is no loopback network with room for servers")
        return str(network)

    routes: RouteFiles

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.routes = RouteFiles(TraefikRoutes(parent=self))
        #: Holds the servers' directories.
        self.root = Path(self.directory).resolve()
        self._delivered: dict[str, Delivered] = {}
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._background = Background()
        self._lock_file = -1

    def check(self, *, routes: bool) -> list[Problem]:
        """What is wrong with the settings; `routes`: whether any credential wants some."""
        return self.routes.check(wanted=routes)

    def path(self, server: Server) -> Path:
        """The server's directory."""
        return self.root / server.slug

    def process_file(self, server: Server) -> Path:
        """The file in which the server's process signs in (`casa_hub.processes`)."""
        return self.path(server) / "process"

    def delivered(self, server: Server) -> Delivered | None:
        """What the server has now; None if it has nothing."""
        found = self._delivered.get(server.slug)
        return found if found is not None and found.server == server else None

    def of_start(self, start_id: str) -> Delivered | None:
        """What the server of a start has, even if its user was renamed."""
        return next((each for each in self._delivered.values() if each.start_id == start_id), None)

    def process(self, server: Server) -> Process | None:
        """The server's process, if it has signed in."""
        return signed_in(self.process_file(server))

    # -- at the hub's start, when the event loop has no other work

    def open(self) -> None:
        """Lock the directory for the life of this hub, and read what its servers have.
        Raises ConfigurationError if the directory can't be used, or holds other files.
        """
        if self._lock_file >= 0:
            return
        thing = f"LocalDelivery.directory {self.root}"
        try:
            strange = self.root.is_dir() and not (self.root / ".lock").exists() and any(self.root.iterdir())
            if strange:
                raise ConfigurationError(thing, "it holds files that aren't the hub's", "Choose an empty directory.")
            file_layout.make_directory(self.root)
            self.root.chmod(0o700)
            # Not inherited by servers (PEP 446), and released by the kernel however the hub ends.
            lock_file = os.open(self.root / ".lock", os.O_RDWR | os.O_CREAT, 0o600)
            try:
                fcntl.flock(lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(lock_file)
                raise ConfigurationError(
                    thing, "another running hub uses it", "Choose another directory for this hub."
                ) from None
        except OSError as error:
            problem = f"the hub can't use it ({error.strerror})"
            raise ConfigurationError(thing, problem, "Choose a directory that the hub can make or owns.") from error
        self._lock_file = lock_file
        for state in self.root.glob("[!.]*/state.json"):
            if state.parent.is_symlink():  # not made by the hub
                continue
            # `sweep` removes a directory whose state can't be read: nobody knows which server it belongs to.
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                self._delivered[state.parent.name] = Delivered.from_json(state.read_bytes())

    def all(self) -> list[Delivered]:
        """What all servers have."""
        return list(self._delivered.values())

    def sweep(self, hub_id: str, living: Collection[tuple[str, str]]) -> list[str]:
        """Remove all but the `living` servers (identity, start id) from the directory. Returns the removed names.
        Raises OSError.
        """
        kept = {slug: delivered for slug, delivered in self._delivered.items() if delivered.key in living}
        for slug in self._delivered.keys() - kept.keys():
            # `routes.sweep` leaves routes of a server that was started for another hub id.
            self.routes.retract(self._delivered[slug].server, self._delivered[slug].start_id)
        removed = []
        for entry in sorted(self.root.iterdir()):
            if entry.name not in {*kept, ".lock"} and (entry.is_symlink() or entry.is_dir()):
                file_layout.remove(entry)
                removed.append(entry.name)
        self._delivered = kept
        self.routes.sweep(hub_id, {delivered.key for delivered in kept.values()})
        for slug, delivered in kept.items():
            file_layout.remove_old_sets(self.root / slug)
            # The setting of Traefik's directory may have changed.
            self.routes.publish(delivered.server, delivered.start_id, delivered.routes, delivered.address)
        return removed

    # -- while it runs

    async def deliver(self, minted: Minted) -> None:
        """Give a starting server all its files and routes. Raises DeliveryError; the server has nothing then."""
        await self._in_turn(minted.server, lambda: self._deliver(minted))

    async def lacks(self, server: Server, start_id: str) -> list[str]:
        """Which of `files`, `state` and `routes` a running server has lost.
        Raises DeliveryError if its directory can't be read.
        """
        has = self.delivered(server)
        if has is None or has.start_id != start_id or has.withdrawn or isinstance(has.record, Unreadable):
            return []
        with _translated(self.path(server), "it can't be looked at"):
            return await asyncio.to_thread(self._gone, has)

    async def lost(self, server: Server) -> list[str]:
        """Credentials of a running server that have lost a file."""
        has = self.delivered(server)
        return [] if has is None else await asyncio.to_thread(self._lost, has)

    async def restore(self, server: Server, start_id: str, pid: int) -> None:
        """Write state and routes of a running server again, unless its credentials were withdrawn.

        `pid`: of the server's process, which itself signs in only when it starts. Raises DeliveryError.
        """
        await self._in_turn(server, lambda: self._restore(server, start_id, pid))

    async def renew(self, minted: Minted) -> None:
        """Replace files of a running server, all at once. A reader finds the whole old set or the whole new one.

        Files of credentials that aren't renewed stay. Files of credentials that the server no longer has are removed.
        New routes in `minted` are added.
        Raises DeliveryError if the server is gone, withdrawn or in another start, or if no file could be replaced.
        """
        await self._in_turn(minted.server, lambda: self._renew(minted))

    async def withdraw(self, server: Server, start_id: str) -> None:
        """Remove files and routes of a server that still runs. Its state, which its end needs, stays until `remove`.
        Raises DeliveryError if not all could be removed.
        """
        await self._in_turn(server, lambda: self._withdraw(server, start_id))

    async def remove(self, server: Server, start_id: str) -> None:
        """Remove everything of this start, and nothing of another start or server.
        Raises DeliveryError if not all could be removed; the hub's next start removes the rest.
        """
        await self._in_turn(server, lambda: self._end(server, start_id))

    async def collect(self, hub_id: str, ended: Iterable[Delivered], *, dry_run: bool) -> list[Removal]:
        """Remove directories and routes without a living server. With `dry_run`, only list them.

        `ended`: those of `all` whose server, for JupyterHub, neither runs nor starts nor stops. `hub_id`: of this hub,
        because the route directory may hold routes of other hubs, too.
        """
        found = []
        for delivered in ended:
            server = delivered.server
            why = f"server {server.name!r} of {server.username} doesn't run"
            act = partial(self.remove, server, delivered.start_id)
            found.append(await removal(str(self.path(server)), why, act, dry_run=dry_run))
        for path in await asyncio.to_thread(self._directories):
            if path.name not in self._delivered:
                act = partial(self._remove_stray, path)
                found.append(await removal(str(path), "it is no server's", act, dry_run=dry_run))
        for path, owner in await asyncio.to_thread(self.routes.left, hub_id, self._keys):
            act = partial(self._remove_route, path, owner)
            found.append(await removal(str(path.absolute()), "its server doesn't run", act, dry_run=dry_run))
        return found

    def _keys(self) -> set[tuple[str, str]]:
        return {delivered.key for delivered in self.all()}

    async def _remove_stray(self, path: Path) -> None:
        async def remove() -> None:
            if path.name not in self._delivered:
                await asyncio.to_thread(self._remove, path)

        await self._in_turn_of(path.name, remove)

    async def _remove_route(self, path: Path, owner: tuple[str, str]) -> None:
        async def remove() -> None:
            if owner not in self._keys():
                await asyncio.to_thread(self.routes.remove, path, owner)

        await self._in_turn_of(path.stem, remove)

    async def _deliver(self, minted: Minted) -> None:
        server = minted.server
        before = self._delivered.get(server.slug)
        if before is not None and before.server != server:
            raise DeliveryError(server.slug, "another server has this name", "Choose another name for the server.")
        # Stored before the first await, so that no other server gets the same address.
        new = Delivered(server, minted.start_id, self._free_address(server), minted.routes, minted.record)
        self._delivered[server.slug] = new
        try:
            with _translated(self.path(server), "nothing was delivered"):
                if before is not None:  # the hub has missed the end of an earlier start
                    await asyncio.to_thread(self._remove_all, before)
                await asyncio.to_thread(self._place, new, minted.files)
        except DeliveryError:
            with contextlib.suppress(OSError):  # the first error is raised; `sweep` removes the rest
                await asyncio.to_thread(self._remove_all, new)
            del self._delivered[server.slug]
            raise

    async def _renew(self, minted: Minted) -> None:
        server = minted.server
        before = self.delivered(server)
        if before is None or before.start_id != minted.start_id or before.withdrawn:
            raise DeliveryError(server.slug, "this start of the server is over", "There is nothing to do.")
        routes = tuple(dict.fromkeys((*before.routes, *minted.routes)))
        new = Delivered(server, minted.start_id, before.address, routes, minted.record)
        with _translated(self.path(server), "the old files stay"):
            await asyncio.to_thread(self._replace, new, minted.files)
        self._delivered[server.slug] = new
        self._background.start(self._remove_old_sets(new), f"removal of old files of {server.slug}")
        if routes != before.routes:  # a credential that was missing at the start has come, with its routes
            await self._restore(server, minted.start_id)

    async def _restore(self, server: Server, start_id: str, pid: int = 0) -> None:
        has = self.delivered(server)
        if has is None or has.start_id != start_id or has.withdrawn:
            return
        with _translated(self.path(server), "not all of it could be written again"):
            await asyncio.to_thread(self._write_state, has, pid)

    async def _withdraw(self, server: Server, start_id: str) -> None:
        before = self.delivered(server)
        if before is None or before.start_id != start_id:
            return
        withdrawn = replace(before, routes=(), withdrawn=True)
        self._delivered[server.slug] = withdrawn  # even if the next step fails: nothing is renewed any more
        with _translated(self.path(server), "not all of it was removed"):
            await asyncio.to_thread(self._remove_contents, withdrawn)

    async def _end(self, server: Server, start_id: str) -> None:
        has = self.delivered(server)
        if has is None or has.start_id != start_id:
            return
        with _translated(self.path(server), "not all of it was removed"):
            await asyncio.to_thread(self._remove_all, has)
            del self._delivered[server.slug]

    async def _remove_old_sets(self, delivered: Delivered) -> None:
        await asyncio.sleep(_GRACE)

        async def remove() -> None:
            # Otherwise a later renewal has just replaced a set, and removes it after its own grace.
            if self.delivered(delivered.server) is delivered:
                await asyncio.to_thread(file_layout.remove_old_sets, self.path(delivered.server))

        await self._in_turn(delivered.server, remove)

    # -- order: one change at a time for each server

    async def _in_turn(self, server: Server, verb: Callable[[], Awaitable[None]]) -> None:
        await self._in_turn_of(server.slug, verb)

    async def _in_turn_of(self, slug: str, verb: Callable[[], Awaitable[None]]) -> None:
        lock = self._locks.setdefault(slug, asyncio.Lock())

        async def work() -> None:
            async with lock:
                await verb()

        # Shielded: JupyterHub cancels a start that takes too long, but a thread that writes can't be cancelled. The
        # lock is held until the thread is done, and the removal that follows the cancelled start waits for the lock.
        await asyncio.shield(self._background.keep(asyncio.create_task(work())))

    # -- blocking parts, in a thread

    def _place(self, new: Delivered, files: Mapping[str, bytes]) -> None:
        directory = self.root / f".new.{secrets.token_hex(8)}"
        directory.mkdir(mode=0o700)
        try:
            replace_file(directory / "state.json", new.to_json())
            file_layout.write_set(directory, files, datetime.now(UTC))
            self._remove(self.path(new.server))
            directory.rename(self.path(new.server))
        except BaseException:
            shutil.rmtree(directory, ignore_errors=True)
            raise
        self.routes.publish(new.server, new.start_id, new.routes, new.address)

    def _replace(self, new: Delivered, files: Mapping[str, bytes]) -> None:
        directory = self.path(new.server)
        assert isinstance(new.record, ServerRecord)  # noqa: S101 - it has just been made
        named = {path for entry in new.record.credentials.values() for path in entry.files}
        file_layout.make_directory(directory)  # somebody may have removed it
        kept = file_layout.read_set(directory) if (directory / file_layout.DATA).exists() else {}
        if not new.record.unreadable:  # otherwise nobody knows which files belong to the unreadable entries
            kept = {path: content for path, content in kept.items() if path in named}
        file_layout.write_set(directory, kept | dict(files), datetime.now(UTC))
        # After the files: a state that is older than the files does no harm, but one that is newer promises too much.
        replace_file(directory / "state.json", new.to_json())

    def _gone(self, has: Delivered) -> list[str]:
        exists = {
            "files": not self._lost(has),
            "state": (self.path(has.server) / "state.json").exists() and self.process(has.server) is not None,
            "routes": self.routes.has(has.server, has.start_id, has.routes),
        }
        return [what for what, found in exists.items() if not found]

    def _lost(self, has: Delivered) -> list[str]:
        """Looks for the files under the names that a server reads."""
        directory = self.path(has.server)
        known = has.record.credentials if isinstance(has.record, ServerRecord) else {}
        return [name for name, entry in known.items() if not all((directory / path).is_file() for path in entry.files)]

    def _write_state(self, has: Delivered, pid: int) -> None:
        directory = self.path(has.server)
        file_layout.make_directory(directory)
        replace_file(directory / "state.json", has.to_json())
        if pid and self.process(has.server) is None:
            replace_file(self.process_file(has.server), signature(pid))
        self.routes.publish(has.server, has.start_id, has.routes, has.address)

    def _remove_contents(self, withdrawn: Delivered) -> None:
        directory = self.path(withdrawn.server)
        self.routes.retract(withdrawn.server, withdrawn.start_id)
        replace_file(directory / "state.json", withdrawn.to_json())
        file_layout.write_set(directory, {}, datetime.now(UTC))
        file_layout.remove_old_sets(directory)

    def _remove_all(self, has: Delivered) -> None:
        # Routes first, because another server may soon get the address. The directory last, because its state names
        # the routes.
        self.routes.retract(has.server, has.start_id)
        self._remove(self.path(has.server))

    def _directories(self) -> list[Path]:
        """All directories; of those that are being made or removed (with a dot), only the ones that are old enough."""
        before = time.time() - _UNDER_WAY
        found = []
        for entry in sorted(self.root.iterdir()):
            if entry.is_symlink() or entry.is_dir():
                with contextlib.suppress(FileNotFoundError):  # somebody has just removed it
                    if not entry.name.startswith(".") or entry.lstat().st_ctime < before:
                        found.append(entry)
        return found

    def _remove(self, directory: Path) -> None:
        old = self.root / f".old.{secrets.token_hex(8)}"
        try:
            directory.rename(old)
        except FileNotFoundError:
            return
        file_layout.remove(old)

    # -- addresses

    def _free_address(self, server: Server) -> str:
        network = IPv4Network(self.network)
        taken = {each.address for each in self._delivered.values()}
        size = network.num_addresses - 2  # without the first and the last, as in any network
        start = int.from_bytes(hashlib.blake2s(f"{self.root}{server.identity}".encode()).digest()[:8])
        for step in range(size):
            address = str(network[1 + (start + step) % size])
            if address not in taken:
                return address
        raise DeliveryError("LocalDelivery.network", f"all {size} addresses are in use", "Choose a larger network.")


@contextlib.contextmanager
def _translated(path: Path, state: str) -> Iterator[None]:
    """A context in which a failure with a server's files becomes a DeliveryError; `state`: what then is so."""
    try:
        yield
    except (OSError, ValueError) as error:
        why = (error.strerror if isinstance(error, OSError) else None) or type(error).__name__
        raise DeliveryError(str(path), f"{state} ({why})", "Tell the operator of this hub.") from error
