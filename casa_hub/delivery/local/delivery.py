"""Delivery on one machine: a directory, an address and a route for each server.

::

    <directory>/.lock                   held by the hub while it runs
    <directory>/<slug>/xcache_token ... the secrets, laid out by `casa_hub.delivery.layout`
    <directory>/<slug>/state.json       whose it is and what a restarted hub must know; no secret
    <directory>/<slug>/process          which process the server is, written by itself

Directories of servers appear and vanish as a whole, by renaming: one that is there is complete.
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
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
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
from casa_hub.delivery import layout
from casa_hub.delivery.gc import Removal, removal
from casa_hub.delivery.local.route_files import RouteFiles
from casa_hub.delivery.traefik import TraefikRoutes
from casa_hub.errors import ConfigurationError, DeliveryError, Problem
from casa_hub.facility import Minted
from casa_hub.naming import Server
from casa_hub.processes import Process, signature, signed_in
from casa_hub.record import AnyRecord, ServerRecord, Unreadable, parse
from casa_hub.tasks import Background

#: Seconds that a replaced set of files stays for readers who are just opening it.
_GRACE = 1.0
#: Seconds for which a directory may be on its way to its place, or be removed: some milliseconds, really.
_UNDER_WAY = 60.0
#: Version of ``state.json`` itself; the record in it has one of its own.
_STATE_VERSION = 1


@dataclass(frozen=True, slots=True)
class Delivered:
    """What one running server was given; ``state.json`` in its directory."""

    server: Server
    start_id: str
    #: Loopback address that is the server's own.
    address: str
    routes: tuple[Route, ...]
    record: AnyRecord
    #: Whether files and routes were taken away before the server's end.
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
        """Raises ValueError, KeyError or TypeError for what `to_json`, of an earlier version too, did not write."""
        state = json.loads(content)
        if state.pop("version") != _STATE_VERSION:
            raise ValueError("another version's")
        server, routes = Server(**state.pop("server")), tuple(Route(**route) for route in state.pop("routes"))
        return cls(server=server, routes=routes, record=parse(state.pop("record")), **state)


class LocalDelivery(LoggingConfigurable):
    """Secrets in directories of this machine, for servers that run as processes beside the hub.

    Every verb may be repeated without harm.
    """

    directory = Unicode(
        "casa-hub-servers",
        help="""Directory below which each running server has one of its own with its secret files, which is gone when
        the server stops. The hub makes it, readable by the hub's user only; it must be the hub's alone.
        Default: `casa-hub-servers` where the hub runs.""",
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
        #: Where the servers' directories are.
        self.root = Path(self.directory).resolve()
        self._delivered: dict[str, Delivered] = {}
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._background = Background()
        self._lock_file = -1

    @classmethod
    def in_settings(cls, settings: dict[str, Any], config: Any) -> LocalDelivery:
        """The one of the hub with these tornado settings, made when first asked for."""
        if "casa_local_delivery" not in settings:
            settings["casa_local_delivery"] = cls(config=config)
        delivery: LocalDelivery = settings["casa_local_delivery"]
        return delivery

    def check(self, *, routes: bool) -> list[Problem]:
        """What is wrong with the settings; `routes`: whether any credential wants some."""
        return self.routes.check(wanted=routes)

    def path(self, server: Server) -> Path:
        """The server's directory."""
        return self.root / server.slug

    def process_file(self, server: Server) -> Path:
        """Where the server's process signs in (`casa_hub.processes`)."""
        return self.path(server) / "process"

    def delivered(self, server: Server) -> Delivered | None:
        """What the server has now; None for a server that has nothing."""
        found = self._delivered.get(server.slug)
        return found if found is not None and found.server == server else None

    def of_start(self, start_id: str) -> Delivered | None:
        """What the server of a start has, whatever its user is called by now."""
        return next((one for one in self._delivered.values() if one.start_id == start_id), None)

    def process(self, server: Server) -> Process | None:
        """The process that the server is, if it got so far."""
        return signed_in(self.process_file(server))

    # -- at the hub's start, before its event loop has anything else to do

    def open(self) -> None:
        """Take the directory for this hub, as long as it lives, and read what is there.

        Raises:
            ConfigurationError: it can't be had, or isn't ours alone.
        """
        if self._lock_file >= 0:
            return
        thing = f"LocalDelivery.directory {self.root}"
        try:
            strange = self.root.is_dir() and not (self.root / ".lock").exists() and any(self.root.iterdir())
            if strange:
                raise ConfigurationError(thing, "it holds files that aren't the hub's", "Choose an empty directory.")
            layout.make_directory(self.root)
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
            if state.parent.is_symlink():  # the hub makes none here
                continue
            # Unreadable: a leftover whose owner nobody knows any more; `sweep` removes it.
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                self._delivered[state.parent.name] = Delivered.from_json(state.read_bytes())

    def all(self) -> list[Delivered]:
        """What all servers have."""
        return list(self._delivered.values())

    def sweep(self, hub_id: str, living: Collection[tuple[str, str]]) -> list[str]:
        """Remove what a crashed hub left: all but the `living` servers' (identity, start id). Returns what was removed.

        Raises:
            OSError: something can't be removed.
        """
        kept = {slug: one for slug, one in self._delivered.items() if one.key in living}
        for slug in self._delivered.keys() - kept.keys():
            # Also where it was started for another hub id: no other hub knows whose its routes are.
            self.routes.retract(self._delivered[slug].server, self._delivered[slug].start_id)
        removed = []
        for entry in sorted(self.root.iterdir()):
            if entry.name not in {*kept, ".lock"} and (entry.is_symlink() or entry.is_dir()):
                layout.remove(entry)
                removed.append(entry.name)
        self._delivered = kept
        self.routes.sweep(hub_id, {one.key for one in kept.values()})
        for slug, one in kept.items():
            layout.remove_old_sets(self.root / slug)
            # Traefik's directory may be a new one.
            self.routes.publish(one.server, one.start_id, one.routes, one.address)
        return removed

    # -- while it runs

    async def deliver(self, minted: Minted) -> None:
        """Give a starting server its files and routes; all of it or nothing.

        Raises:
            DeliveryError: nothing is left behind then.
        """
        await self._in_turn(minted.server, lambda: self._deliver(minted))

    async def lacks(self, server: Server, start_id: str) -> list[str]:
        """What a running server was given and is not there any more, of `files`, `state`, `routes`.

        Raises:
            DeliveryError: that can't be seen.
        """
        one = self.delivered(server)
        if one is None or one.start_id != start_id or one.withdrawn or isinstance(one.record, Unreadable):
            return []
        try:
            return await asyncio.to_thread(self._gone, one)
        except OSError as error:
            raise _translated(error, self.path(server), "it can't be looked at") from error

    async def lost(self, server: Server) -> list[str]:
        """Credentials of a running server of which a file is not there any more."""
        one = self.delivered(server)
        return [] if one is None else await asyncio.to_thread(self._lost, one)

    async def restore(self, server: Server, start_id: str, pid: int) -> None:
        """Write again all that a running server was given beside its files; nothing to one that was withdrawn.

        Args:
            server: the server.
            start_id: its start.
            pid: its process, which signs in when it starts, and never again.

        Raises:
            DeliveryError: something could not be written.
        """
        await self._in_turn(server, lambda: self._restore(server, start_id, pid))

    async def renew(self, minted: Minted) -> None:
        """Replace files of a running server, all at once; readers see the old set or the new one.

        Files of credentials that aren't renewed stay; those of credentials that the server has no more go. Routes that
        `minted` brings beside those that the server has are added.

        Raises:
            DeliveryError: the server is gone, withdrawn or another start; or nothing could be replaced.
        """
        await self._in_turn(minted.server, lambda: self._renew(minted))

    async def withdraw(self, server: Server, start_id: str) -> None:
        """Take files and routes away from a server that still runs; what its end needs stays until it is removed.

        Raises:
            DeliveryError: something of it is still there.
        """
        await self._in_turn(server, lambda: self._withdraw(server, start_id))

    async def remove(self, server: Server, start_id: str) -> None:
        """Take everything of this start away; what belongs to another start or server is left alone.

        Raises:
            DeliveryError: something could not be removed; it will be at the hub's next start.
        """
        await self._in_turn(server, lambda: self._end(server, start_id))

    async def collect(self, hub_id: str, ended: Iterable[Delivered], *, dry_run: bool) -> list[Removal]:
        """Remove what has no living server, or only tell of it; never what is under way.

        Args:
            hub_id: of this hub; others' routes may be in the same directory.
            ended: of `all`, those whose server JupyterHub neither has running nor starting or stopping.
            dry_run: whether nothing is to be removed.
        """
        found = []
        for one in ended:
            why = f"server {one.server.name!r} of {one.server.username} doesn't run"
            act = partial(self.remove, one.server, one.start_id)
            found.append(await removal(str(self.path(one.server)), why, act, dry_run=dry_run))
        for path in await asyncio.to_thread(self._directories):
            if path.name not in self._delivered:
                act = partial(self._remove_stray, path)
                found.append(await removal(str(path), "it is no server's", act, dry_run=dry_run))
        for path, owner in await asyncio.to_thread(self.routes.left, hub_id, self._keys):
            act = partial(self._remove_route, path, owner)
            found.append(await removal(str(path.absolute()), "its server doesn't run", act, dry_run=dry_run))
        return found

    def _keys(self) -> set[tuple[str, str]]:
        return {one.key for one in self.all()}

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
        # Remembered before the first await, so that no other server can get the same address.
        one = Delivered(server, minted.start_id, self._free_address(server), minted.routes, minted.record)
        self._delivered[server.slug] = one
        try:
            if before is not None:  # an earlier start of the same server, whose end nobody saw
                await asyncio.to_thread(self._take_away, before)
            await asyncio.to_thread(self._place, one, minted.files)
        except (OSError, ValueError, DeliveryError) as error:
            with contextlib.suppress(OSError):  # the first error is the one to tell; `sweep` finds the rest
                await asyncio.to_thread(self._take_away, one)
            del self._delivered[server.slug]
            raise _translated(error, self.path(server), "nothing was delivered") from error

    async def _renew(self, minted: Minted) -> None:
        server = minted.server
        before = self.delivered(server)
        if before is None or before.start_id != minted.start_id or before.withdrawn:
            raise DeliveryError(server.slug, "this start of the server is over", "There is nothing to do.")
        routes = tuple(dict.fromkeys((*before.routes, *minted.routes)))
        one = Delivered(server, minted.start_id, before.address, routes, minted.record)
        try:
            await asyncio.to_thread(self._replace, one, minted.files)
        except (OSError, ValueError) as error:
            raise _translated(error, self.path(server), "the old files stay") from error
        self._delivered[server.slug] = one
        self._background.start(self._forget_old_sets(one), f"removal of old files of {server.slug}")
        if routes != before.routes:  # of a credential that comes only now
            await self._restore(server, minted.start_id)

    async def _restore(self, server: Server, start_id: str, pid: int = 0) -> None:
        one = self.delivered(server)
        if one is None or one.start_id != start_id or one.withdrawn:
            return
        try:
            await asyncio.to_thread(self._write_beside, one, pid)
        except OSError as error:
            raise _translated(error, self.path(server), "not all of it could be written again") from error

    async def _withdraw(self, server: Server, start_id: str) -> None:
        before = self.delivered(server)
        if before is None or before.start_id != start_id:
            return
        one = replace(before, routes=(), withdrawn=True)
        self._delivered[server.slug] = one  # also if it fails half way: it is not renewed any more
        try:
            await asyncio.to_thread(self._take_contents, one)
        except OSError as error:
            raise _translated(error, self.path(server), "not all of it was removed") from error

    async def _end(self, server: Server, start_id: str) -> None:
        one = self.delivered(server)
        if one is None or one.start_id != start_id:
            return
        try:
            await asyncio.to_thread(self._take_away, one)
            del self._delivered[server.slug]
        except OSError as error:
            raise _translated(error, self.path(server), "not all of it was removed") from error

    async def _forget_old_sets(self, one: Delivered) -> None:
        await asyncio.sleep(_GRACE)

        async def forget() -> None:
            # Else a later renewal has replaced a set just now, and does this when its own time has come.
            if self.delivered(one.server) is one:
                await asyncio.to_thread(layout.remove_old_sets, self.path(one.server))

        await self._in_turn(one.server, forget)

    # -- order: one at a time for each server, and whoever gives up waiting doesn't let the next one in too early

    async def _in_turn(self, server: Server, verb: Callable[[], Awaitable[None]]) -> None:
        await self._in_turn_of(server.slug, verb)

    async def _in_turn_of(self, slug: str, verb: Callable[[], Awaitable[None]]) -> None:
        lock = self._locks.setdefault(slug, asyncio.Lock())

        async def work() -> None:
            async with lock:
                await verb()

        # Shielded: JupyterHub cancels a start that takes too long, but a thread that writes can't be cancelled. The
        # lock is held until it is done, and the withdrawal that follows the cancelled start waits for it.
        await asyncio.shield(self._background.keep(asyncio.create_task(work())))

    # -- blocking parts, in a thread

    def _place(self, one: Delivered, files: Mapping[str, bytes]) -> None:
        new = self.root / f".new.{secrets.token_hex(8)}"
        new.mkdir(mode=0o700)
        try:
            layout.replace_file(new / "state.json", one.to_json())
            layout.write_set(new, files, datetime.now(UTC))
            self._remove(self.path(one.server))
            new.rename(self.path(one.server))
        except BaseException:
            shutil.rmtree(new, ignore_errors=True)
            raise
        self.routes.publish(one.server, one.start_id, one.routes, one.address)

    def _replace(self, one: Delivered, files: Mapping[str, bytes]) -> None:
        directory = self.path(one.server)
        assert isinstance(one.record, ServerRecord)  # noqa: S101 - it has just been made
        named = {path for entry in one.record.credentials.values() for path in entry.files}
        layout.make_directory(directory)  # somebody may have removed it
        kept = layout.read_set(directory) if (directory / layout.DATA).exists() else {}
        if not one.record.unreadable:  # else nobody knows which files are those credentials'
            kept = {path: content for path, content in kept.items() if path in named}
        layout.write_set(directory, kept | dict(files), datetime.now(UTC))
        # Second: a state that is older than the files is harmless, one that promises more than they hold is not.
        layout.replace_file(directory / "state.json", one.to_json())

    def _gone(self, one: Delivered) -> list[str]:
        there = {
            "files": not self._lost(one),
            "state": (self.path(one.server) / "state.json").exists() and self.process(one.server) is not None,
            "routes": self.routes.has(one.server, one.start_id, one.routes),
        }
        return [what for what, is_there in there.items() if not is_there]

    def _lost(self, one: Delivered) -> list[str]:
        """By the names that a server reads."""
        directory = self.path(one.server)
        known = one.record.credentials if isinstance(one.record, ServerRecord) else {}
        return [name for name, entry in known.items() if not all((directory / path).is_file() for path in entry.files)]

    def _write_beside(self, one: Delivered, pid: int) -> None:
        directory = self.path(one.server)
        layout.make_directory(directory)
        layout.replace_file(directory / "state.json", one.to_json())
        if pid and self.process(one.server) is None:
            layout.replace_file(self.process_file(one.server), signature(pid))
        self.routes.publish(one.server, one.start_id, one.routes, one.address)

    def _take_contents(self, one: Delivered) -> None:
        directory = self.path(one.server)
        self.routes.retract(one.server, one.start_id)
        layout.replace_file(directory / "state.json", one.to_json())
        layout.write_set(directory, {}, datetime.now(UTC))
        layout.remove_old_sets(directory)

    def _take_away(self, one: Delivered) -> None:
        # First what leads to the address, which may soon be another server's; last what tells of the rest.
        self.routes.retract(one.server, one.start_id)
        self._remove(self.path(one.server))

    def _directories(self) -> list[Path]:
        """All in our directory; those with a dot, which are on their way there or gone, only if that took too long."""
        before = time.time() - _UNDER_WAY
        found = []
        for entry in sorted(self.root.iterdir()):
            if entry.is_symlink() or entry.is_dir():
                with contextlib.suppress(FileNotFoundError):  # gone meanwhile
                    if not entry.name.startswith(".") or entry.lstat().st_ctime < before:
                        found.append(entry)
        return found

    def _remove(self, directory: Path) -> None:
        old = self.root / f".old.{secrets.token_hex(8)}"
        try:
            directory.rename(old)
        except FileNotFoundError:
            return
        layout.remove(old)

    # -- addresses

    def _free_address(self, server: Server) -> str:
        network = IPv4Network(self.network)
        taken = {one.address for one in self._delivered.values()}
        size = network.num_addresses - 2  # without the first and the last, as in any network
        start = int.from_bytes(hashlib.blake2s(f"{self.root}{server.identity}".encode()).digest()[:8])
        for step in range(size):
            address = str(network[1 + (start + step) % size])
            if address not in taken:
                return address
        raise DeliveryError("LocalDelivery.network", f"all {size} addresses are in use", "Choose a larger network.")


def _translated(error: Exception, path: Path, state: str) -> DeliveryError:
    if isinstance(error, DeliveryError):
        return error
    why = (error.strerror if isinstance(error, OSError) else None) or type(error).__name__
    return DeliveryError(str(path), f"{state} ({why})", "Tell the operator of this hub.")
