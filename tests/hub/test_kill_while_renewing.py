"""A hub that is killed again and again while servers start and stop and their credentials are renewed; local servers.

Some kills come by the clock. The others come between two file operations of a renewal or a start: the hub counts its
own, and kills itself at one that was drawn by lot. CASA_HUB_KILL_SEED repeats a run, as far as clocks allow. How many
kills: `tests.support.scale`.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import secrets
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import requests

from casa_hub.delivery.file_layout import read_set
from casa_hub.naming import Server
from casa_hub.processes import signed_in
from tests.support.facility_config import credentials, make_keys
from tests.support.hub import SMALL_SERVER, Hub
from tests.support.scale import KILLS
from tests.support.sound import Keys
from tests.support.waiting import first_true, until_none

#: Servers that run all the time, and those that come and go.
STAY, COME = [f"stay-{number}" for number in range(6)], [f"come-{number}" for number in range(3)]
#: At which file operation a hub kills itself, at most, and of which files: any; those that don't have their names yet;
#: those of servers that start and stop. Every fourth kill comes by the clock.
FUSES = {1: (80, ""), 2: (12, ".new"), 3: (40, "come- /.new. /.old.")}

#: What a look may meet at a moment between two files.
BETWEEN = (AssertionError, FileNotFoundError)

CONFIG = """
import signal
from pathlib import Path
from jupyterhub.auth import DummyAuthenticator
from casa_hub.credentials.base import AccessToken
from casa_hub.startup import on_hub_start

class Early(DummyAuthenticator):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        on_hub_start(self.parent)

    async def access_token(self, user):
        return AccessToken(Path("token").read_text(), None)

c.JupyterHub.authenticator_class = Early
c.Authenticator.allow_all = True
c.JupyterHub.spawner_class = "casa-local"
c.JupyterHub.cleanup_servers = False
c.JupyterHub.tornado_settings = {{"slow_spawn_timeout": 0, "slow_stop_timeout": 0}}
c.Spawner.cmd = [sys.executable, {small_server!r}]
c.Spawner.environment = {{"KILL_MARK": "{mark}"}}
c.Spawner.poll_interval = 1
# What answers does so within a second; of a start that was cut off, perhaps nobody ever does.
c.JupyterHub.init_spawners_timeout = 1
c.Spawner.http_timeout = {http_timeout}
{credentials}c.XCache.lifetime = 3
c.HTCondor.lifetime = 30
c.TraefikRoutes.directory = "traefik"
c.LocalDelivery.network = "127.84.0.0/16"

# The fuse: so many more file operations below these directories, of those with a word in their path, then SIGKILL.
HUB, LEFT, WORDS = os.getpid(), 0, ()
PLACES = tuple(os.path.abspath(name) for name in ("casa-hub-servers", "traefik"))

def light(*_):
    global LEFT, WORDS
    count, *WORDS = Path("fuse").read_text().split()
    LEFT = int(count)

def burn(event, arguments):
    global LEFT
    if not LEFT or event.partition(".")[0] not in ("open", "os", "shutil"):
        return
    paths = [os.fsdecode(one) for one in arguments if isinstance(one, (str, bytes, os.PathLike))]
    mine = [path for path in paths if path.startswith(PLACES)]
    if mine and (not WORDS or any(word in path for path in mine for word in WORDS)) and os.getpid() == HUB:
        LEFT -= 1
        if not LEFT:
            os.kill(HUB, signal.SIGKILL)

signal.signal(signal.SIGUSR2, light)
sys.addaudithook(burn)
"""


class KilledHub(Hub):
    """A hub, its servers, and what is left of both."""

    def __init__(self, directory: Path) -> None:
        self.mark = secrets.token_hex(8)
        timeout = 'int(os.environ.get("HTTP_TIMEOUT", "5"))'
        super().__init__(
            directory,
            CONFIG.format(
                mark=self.mark,
                small_server=SMALL_SERVER,
                http_timeout=timeout,
                credentials=credentials("xcache", "htcondor", "dask", "bearer"),
            ),
            proxy=False,
        )
        self.servers, self.traefik = directory / "casa-hub-servers", directory / "traefik"
        self.traefik.mkdir()
        make_keys(directory)
        self.keys = Keys.of(directory / "xcache.key", directory / "htcondor.key")
        self.new_token()

    def new_token(self) -> str:
        """What the users' tokens are from now on."""
        value = f"token-{secrets.token_hex(8)}"
        (self.directory / "token.new").write_text(value)
        (self.directory / "token.new").replace(self.directory / "token")
        return value

    def path(self, user: str) -> Path:
        return self.servers / Server("", user).slug

    def files(self, user: str) -> dict[str, bytes]:
        return read_set(self.path(user))

    def record(self, user: str) -> dict[str, Any]:
        state: dict[str, Any] = json.loads((self.path(user) / "state.json").read_text())
        record: dict[str, Any] = state["record"]
        return record

    def begin_start(self, user: str) -> None:
        assert self.api("POST", f"/users/{user}/server").status_code in {201, 202, 400}

    def begin_stop(self, user: str) -> None:
        assert self.api("DELETE", f"/users/{user}/server").status_code in {202, 204, 400}

    def running(self) -> set[str] | None:  # type: ignore[override]
        """Whose servers run; None while that isn't settled."""
        servers = {user["name"]: user["servers"].get("") for user in self.api("GET", "/users").json()}
        if any(server is not None and server["pending"] for server in servers.values()):
            return None
        return {name for name, server in servers.items() if server is not None and server["ready"]}

    def processes(self) -> set[int]:
        """All that are servers of this hub, known to it or not."""
        found = set()
        for entry in Path("/proc").iterdir():
            try:
                if entry.name.isdecimal() and f"KILL_MARK={self.mark}".encode() in (entry / "environ").read_bytes():
                    state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
                    found |= {int(entry.name)} if state not in "ZX" else set()
            except (FileNotFoundError, ProcessLookupError, PermissionError):
                continue
        return found

    def end_all(self) -> None:
        self.stop(signal.SIGKILL)
        for pid in self.processes():
            os.kill(pid, signal.SIGKILL)

    # -- what must be so

    def orphans(self, running: set[str]) -> list[str]:
        """What belongs to no server that runs; and what of theirs isn't there."""
        slugs = {Server("", user).slug for user in running}
        wrong = [f"directory {path.name}" for path in self.servers.iterdir() if path.name not in slugs | {".lock"}]
        wrong += [
            f"route {path.name}" for path in self.traefik.iterdir() if path.name not in {f"{s}.yml" for s in slugs}
        ]
        wrong += [f"no directory {slug}" for slug in slugs if not (self.servers / slug).is_dir()]
        wrong += [f"no route {slug}" for slug in slugs if not (self.traefik / f"{slug}.yml").exists()]
        known = {process.pid for slug in slugs if (process := signed_in(self.servers / slug / "process"))}
        wrong += [f"process {pid}" for pid in self.processes() - known]
        wrong += [f"no process {pid}" for pid in known - self.processes()]
        return wrong

    def halves(self) -> set[str]:
        """Files on their way to their names. A renewal leaves none, and never gives two of them the same name."""
        slugs = [path.name for path in self.servers.iterdir() if not path.name.startswith(".")]
        return {f"{slug}/{name}" for slug in slugs for name in self.half(slug)}

    def half(self, slug: str) -> list[str]:
        """Of a living server's directory, what is neither the present set nor its own files."""
        directory = self.servers / slug
        if not directory.is_dir():
            return []
        named = {path.partition("/")[0] for path in read_set(directory)}
        present = {"..data", (directory / "..data").readlink().name, "state.json", "process", *named}
        return [path.name for path in directory.iterdir() if path.name not in present]


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[KilledHub]:
    made = KilledHub(tmp_path)
    yield made
    made.end_all()


@dataclass
class Count:
    """What the kills have hit."""

    clock: int = 0
    fuse: int = 0
    #: Kills after which something had not got its name yet, and those between new files and the state that tells so.
    left_on_its_way: int = 0
    half_renewed: int = 0
    #: Starts and stops that were asked for when it came.
    starts: int = 0
    stops: int = 0
    renewals: int = 0
    #: Seconds until all were renewed by the next hub.
    slowest: float = 0.0


def kill(hub: KilledHub, number: int, lot: random.Random, count: Count) -> None:
    """Some servers are told to start or stop, and in the midst of it the hub ends."""
    process = hub.process
    assert process is not None
    running = hub.running() or set()
    by_fuse = number % 4 != 0
    if by_fuse:
        longest, words = FUSES[number % 4]
        (hub.directory / "fuse").write_text(f"{lot.randint(1, longest)} {words}")
        os.kill(process.pid, signal.SIGUSR2)

    def asked(user: str) -> None:
        with contextlib.suppress(requests.ConnectionError):  # it may be killed by then
            (hub.begin_stop if user in running else hub.begin_start)(user)

    users = lot.sample(COME, lot.randint(1, len(COME)))
    if not (running ^ {*users}) & {*COME}:
        # None of them would run, and a stop alone has too few operations for a fuse that burns by theirs only.
        users.remove(lot.choice(users))
    count.starts, count.stops = count.starts + len({*users} - running), count.stops + len({*users} & running)
    threads = [threading.Thread(target=asked, args=(user,)) for user in users]
    for thread in threads:
        thread.start()
    if not by_fuse:
        time.sleep(lot.random() * 0.8)
        process.kill()
    process.wait(120)  # the renewals alone burn the fuse down
    assert process.returncode == -signal.SIGKILL
    for thread in threads:
        thread.join()
    count.clock, count.fuse = count.clock + (not by_fuse), count.fuse + by_fuse


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_killed_while_renewing_and_starting(hub: KilledHub, capsys: pytest.CaptureFixture[str]) -> None:
    seed = int(os.environ.get("CASA_HUB_KILL_SEED", random.randrange(1 << 32)))
    lot, count = random.Random(seed), Count()
    print(f"CASA_HUB_KILL_SEED={seed}")
    hub.environment["HTTP_TIMEOUT"] = "60"  # for servers that start at the same time
    hub.start()
    del hub.environment["HTTP_TIMEOUT"]
    for user in STAY + COME:
        assert hub.api("POST", f"/users/{user}").status_code == 201
    for user in STAY:
        hub.begin_start(user)
    until_none(lambda: (hub.running() or set()) ^ set(STAY), "all run", 120)

    begun, orders = time.monotonic(), dict.fromkeys(STAY, 0)
    for number in range(KILLS):
        token = hub.new_token()
        kill(hub, number, lot, count)
        # What a server reads at that very moment is one whole set, and what is not due yet is valid.
        half = set()
        for user in STAY:
            held = hub.keys.read(hub.files(user))
            expires = held["htcondor"].expires
            assert expires is not None
            assert expires > time.time(), f"kill {number}: an IDTOKEN of half a minute has expired"
            record = hub.record(user)
            entries = record["credentials"]
            half.add(any(one.identifiers != entries[name]["identifiers"] for name, one in held.items()))
            assert record["order"] >= orders[user]
            count.renewals += record["order"] - orders[user]
            orders[user] = record["order"]
        left = [*hub.servers.glob(".*.*"), *hub.traefik.glob(".*"), *hub.servers.glob("*/.*.new")]
        count.half_renewed += True in half
        count.left_on_its_way += bool(left)

        hub.start()
        until_none(lambda: hub.running() is None, "all starts and stops are over", 90)
        until_none(
            lambda: hub.orphans(hub.running() or set()),
            "nothing is left of servers that don't run",
            60,
            not_yet=BETWEEN,
        )
        # On a busy machine some renewal is always under way: each of these must go, though not all at the same time.
        halves = first_true(lambda: (hub.halves(),), "a look at all files", 60, not_yet=BETWEEN)[0]

        def stay() -> set[str]:
            nonlocal halves
            halves &= hub.halves()
            return halves

        until_none(stay, "nothing is left of renewals that were cut off", 60, not_yet=BETWEEN)
        running = hub.running()
        assert running is not None
        assert running >= set(STAY)

        # Renewals go on: each server has what only the new hub can have given it, and its files fit.
        def renewed(token: str = token) -> list[str]:
            late = []
            for user in STAY:
                record, files = hub.record(user), hub.files(user)
                hub.keys.assert_sound(files, record)
                if record["order"] <= orders[user] or files["access_token"].decode() != token:
                    late.append(user)
            return late

        count.slowest = max(count.slowest, until_none(renewed, "all are renewed by the next hub", 60, not_yet=BETWEEN))
        for user in running - set(STAY):
            until_none(
                lambda user=user: hub.keys.assert_sound(hub.files(user), hub.record(user)),
                f"{user}'s files fit",
                60,
                not_yet=BETWEEN,
            )
    took = time.monotonic() - begun
    with capsys.disabled():
        print(f"\n{KILLS} kills in {took:.0f} s (seed {seed}): {count}")
    assert count.renewals > KILLS
