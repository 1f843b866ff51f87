"""The spawner of a single machine: servers are processes beside the hub, with credentials of their own."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import urlsplit

from jupyterhub import orm
from jupyterhub.spawner import SimpleLocalProcessSpawner
from traitlets import Bool, Unicode, default

from casa_hub.database import mended
from casa_hub.delivery.file_layout import make_directory
from casa_hub.delivery.local.delivery import Delivered, LocalDelivery
from casa_hub.delivery.removals import Removal
from casa_hub.delivery.traefik import TraefikRoutes
from casa_hub.errors import CasaError, ConfigurationError, Problem, Severity
from casa_hub.hub import CasaHub, Home
from casa_hub.jupyterhub import HubApp, RefusedStart
from casa_hub.local_server import START_ID, LocalServer
from casa_hub.loopback import is_loopback
from casa_hub.policy.limits import Asked
from casa_hub.processes import Process, sign_in
from casa_hub.progress import Steps
from casa_hub.startup import not_the_hubs_fault, on_hub_start
from casa_hub.unknown_keys import value_of


class CasaLocalSpawner(Home, SimpleLocalProcessSpawner):  # type: ignore[misc]
    """Servers as processes of this machine, each with credentials, an address and a route of its own.

    There is no isolation: all servers run as the hub's own user, and everybody with a server can read the hub's keys
    and all users' files. It is for demonstrations, tests and a single person. So it refuses to work for a hub that
    listens on other addresses than loopback, unless `allow_non_loopback` is set.
    """

    allow_non_loopback = Bool(
        False,
        help="""Whether the hub may listen on an address that other machines can reach, although everybody with a
        server can read the hub's keys and all users' files. Default: false; the hub refuses to start then.""",
    ).tag(config=True)

    home_dir_template = Unicode(
        "",
        help="""Home directory of a user. The hub makes it if it doesn't exist, readable by the hub's user only.
        `{username}` becomes a form of the user's name that is safe in paths. Default: `casa-hub-homes/{username}`
        beside `LocalDelivery.directory`. Example: `/srv/homes/{username}`.""",
    ).tag(config=True)

    casa_classes: ClassVar = (LocalDelivery, TraefikRoutes)

    @default("env_keep")
    def _nothing_of_the_hub(self) -> list[str]:
        """The variables that any program needs. Library and module paths of the hub are not for servers."""
        return ["JUPYTERHUB_SINGLEUSER_APP", "LANG", "LC_ALL", "PATH", "TZ"]

    @default("home_dir")
    def _safe_home_dir(self) -> str:
        server = self.casa_server
        template = self.home_dir_template or str(server.delivery.root.parent / "casa-hub-homes" / "{username}")
        return str(Path(template.format(username=server.facility.server(self.user.name).slug)).resolve())

    # -- the hub's start

    @classmethod
    def make_delivery(cls, hub: CasaHub) -> LocalDelivery:
        return LocalDelivery(config=hub.app.config)

    @classmethod
    def check_hub(cls, hub: CasaHub) -> list[Problem]:
        app = hub.app
        problems = hub.delivery(LocalDelivery).check(routes=hub.facility.wants_routes)
        allowed = value_of(app.config, cls, "allow_non_loopback")
        for setting, url in {"JupyterHub.bind_url": app.bind_url, "JupyterHub.hub_bind_url": app.hub.bind_url}.items():
            if not allowed and not listens_here_only(url):
                problems.append(_exposed(setting, url))
        return problems

    @classmethod
    def begin_hub(cls, hub: CasaHub) -> None:
        """Take over running servers of the previous hub process, and remove everything else that it left.
        Raises ConfigurationError if the delivery's directory can't be used.
        """
        app, delivery = hub.app, hub.delivery(LocalDelivery)
        app.log.warning(
            "%s gives no isolation: everybody with a server can read this hub's keys and all users' files", cls.__name__
        )
        delivery.open()
        known = _Known(app)
        living = set()
        for left in delivery.all():
            if not known.runs(left, delivery.process(left.server)):
                _end_process(app, delivery, left)
            elif (process := delivery.process(left.server)) is not None and process.alive:
                living.add(left.key)
        try:
            for slug in delivery.sweep(hub.facility.hub_id, living):
                app.log.info("Removed what was left of server %s", slug)
        except (OSError, CasaError) as error:
            raise ConfigurationError(
                f"LocalDelivery.directory {delivery.root}",
                f"what an earlier hub left can't be cleaned up ({type(error).__name__}: {error})",
                "Remove it, or choose another directory.",
            ) from error

    @classmethod
    async def collect_garbage(cls, hub: CasaHub, *, dry_run: bool) -> list[Removal]:
        app, delivery = hub.app, hub.delivery(LocalDelivery)
        known = _Known(app)
        # Starts that JupyterHub may not have saved yet.
        spawners = (spawner for user in app.users.values() for spawner in user.spawners.values())
        starts = {spawner.casa_server.start_id for spawner in spawners if isinstance(spawner, cls)}
        ended = [
            left
            for left in delivery.all()
            if not known.runs(left, delivery.process(left.server)) and left.start_id not in starts
        ]
        if not dry_run:
            for left in ended:
                _end_process(app, delivery, left)
        return await delivery.collect(hub.facility.hub_id, ended, dry_run=dry_run)

    # -- start

    def __init__(self, **kwargs: Any) -> None:
        #: The server's process, if the previous hub process started it.
        self._adopted: Process | None = None
        self._own_environment: dict[str, str] = {}
        self._steps = Steps()
        #: The server, for renewals, mending and revocations (`casa_hub.servers.running.RunningServer`).
        self.casa_server = LocalServer(self)
        super().__init__(**kwargs)

    async def start(self) -> tuple[str, int]:
        """Mint and deliver credentials, then start the process. If any of it fails, all is removed again."""
        running = self.casa_server
        try:
            running.admit(Asked())
        except RefusedStart as refused:
            not_the_hubs_fault(refused, self.user.settings["app"])
            raise
        for number, sentence in enumerate(await running.mint(partial(self._steps.say, 5))):
            self._steps.say(min(10 + 5 * number, 40), sentence)
        self._adopted = None
        try:
            self.ip, self._own_environment = await running.deliver()
            self._steps.say(50, "Credentials delivered")
            await asyncio.to_thread(make_directory, Path(self.home_dir))
            address: tuple[str, int] = await super().start()
        except BaseException:
            await asyncio.shield(running.remove())
            raise
        finally:
            running.starting = False
        self._steps.say(60, "Server process started; waiting for its answer")
        running.hub.started(self)
        return address

    def make_preexec_fn(self, name: str) -> Callable[[], None]:  # noqa: ARG002
        home, process_file = self.home_dir, os.fsencode(self.casa_server.delivery.process_file(self.casa_server.server))

        def enter() -> None:
            # An error here fails the start. In the base class, the server would run in the hub's directory.
            os.chdir(home)
            sign_in(process_file)

        return enter

    def user_env(self, env: dict[str, str]) -> dict[str, str]:
        """Add this spawner's variables, but none that the operator's `environment` sets."""
        ours: dict[str, str] = super().user_env({}) | self._own_environment
        return env | {name: value for name, value in ours.items() if name not in self.environment}

    async def progress(self) -> AsyncIterator[dict[str, Any]]:
        async for event in self._steps.follow():
            yield event

    # -- the end

    async def stop(self, now: bool = False) -> None:
        try:
            await super().stop(now)
        finally:
            await asyncio.shield(self.casa_server.remove())

    async def poll(self) -> int | None:
        """As in the base class, but remove the credentials of a server that is found dead."""
        status: int | None = await super().poll()
        # JupyterHub doesn't call `stop` for a server that ended by itself.
        if status is not None and not self.casa_server.starting:
            await self.casa_server.remove()
        return status

    # -- after a restart of the hub

    def get_state(self) -> dict[str, Any]:
        state: dict[str, Any] = super().get_state()
        return state | ({START_ID: self.casa_server.start_id} if self.casa_server.start_id else {})

    def load_state(self, state: dict[str, Any]) -> None:
        """As in the base class, and adopt the server that the previous hub process started."""
        super().load_state(state)
        on_hub_start(self.user.settings["app"])
        left = self._left_behind(state)
        self._adopted = self.casa_server.delivery.process(left.server) if left is not None else None
        self.pid = self._adopted.pid if self._adopted is not None else 0
        if left is not None:
            self.casa_server.adopt(left)
            self.ip = left.address

    def _left_behind(self, state: dict[str, Any]) -> Delivered | None:
        """What the previous hub process delivered to this spawner's server, even if its user was renamed since."""
        delivery = self.casa_server.delivery
        saved = delivery.of_start(state.get(START_ID, ""))
        if saved is not None:
            return saved
        if self.orm_spawner.server is None:  # it doesn't run; a directory with its name may be a renamed user's
            return None
        # JupyterHub saves a state only after the start, and earlier versions of this package saved no start id.
        known = _Known(self.user.settings["app"])
        unclaimed = [left for left in delivery.all() if left.start_id not in known.starts]
        named = [left for left in unclaimed if _owner_of(left) == (self.user.name, self.name)]
        pid = state.get("pid")
        signed_in = [left for left in unclaimed if pid and _is_process(delivery.process(left.server), pid)]
        return next(iter(named + signed_in), None)

    async def get_url(self) -> str:
        """The URL by the process's environment if the previous hub process died before JupyterHub saved the port."""
        url = self._adopted.environment().get("JUPYTERHUB_SERVICE_URL") if self._adopted is not None else None
        return url or await super().get_url()

    async def _signal(self, sig: int) -> bool:
        """As in the base class, but not to another process that has the id of an adopted one by now."""
        if self.proc is None and (self._adopted is None or not self._adopted.alive):
            return False
        return bool(await super()._signal(sig))


class _Known:
    """The servers that run, start or stop, by the hub's database."""

    def __init__(self, app: HubApp) -> None:
        # Not the column of states alone: SQLAlchemy can't cache a query by its type, and says so in the log.
        saved = mended(app.db).query(orm.Spawner, orm.User.name).join(orm.Spawner.user)
        rows = saved.filter(orm.Spawner.server_id.is_not(None)).all()
        states = [spawner.state or {} for spawner, _ in rows]
        #: Their start ids, which stay when a user is renamed.
        self.starts = {state[START_ID] for state in states if START_ID in state}
        self._names = {(username, spawner.name) for spawner, username in rows}
        # Process ids of servers that an earlier version of this package started.
        self._pids = {state["pid"] for state in states if START_ID not in state and "pid" in state}

    def runs(self, left: Delivered, process: Process | None) -> bool:
        """Whether one of the servers has these files; `process`: the one that signed in there."""
        if left.start_id in self.starts or _owner_of(left) in self._names:
            return True
        return any(_is_process(process, pid) for pid in self._pids)


def _is_process(process: Process | None, pid: int) -> bool:
    return process is not None and process.pid == pid and process.alive


def _owner_of(left: Delivered) -> tuple[str, str]:
    return left.server.username, left.server.name


def _end_process(app: HubApp, delivery: LocalDelivery, left: Delivered) -> None:
    """End the process of a server that JupyterHub doesn't know, so that nobody else could stop it."""
    process = delivery.process(left.server)
    if process is not None and process.alive:
        app.log.warning("Ending %s, a server that this hub's database doesn't know", left.server.identity)
        with contextlib.suppress(ProcessLookupError):  # it may just have ended by itself
            os.killpg(process.pid, signal.SIGTERM)


def listens_here_only(url: str) -> bool:
    """Whether only this machine can reach what listens at the URL."""
    parts = urlsplit(url)
    return parts.scheme.endswith("+unix") or is_loopback(parts.hostname or "")


def _exposed(setting: str, url: str) -> Problem:
    return Problem(
        Severity.ERROR,
        setting,
        f"{url} can be reached from other machines, and local servers aren't isolated from this hub",
        f"Set {setting} to a loopback address (http://127.0.0.1:8000), or use a spawner that isolates servers. "
        "CasaLocalSpawner.allow_non_loopback: true takes the risk.",
    )
