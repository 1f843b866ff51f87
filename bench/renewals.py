"""What it costs a hub to keep the credentials of a thousand servers fresh.

    python bench/renewals.py [--servers 1000] [--faulty 0.2]

Servers are objects, not processes: their macaroons, IDTOKENs and Dask certificates are minted for real, and delivered
to a variable. A part of the deliveries fails, some for a reason that nobody thought of; all take a few milliseconds.
Then the same with servers that hold five tokens of the facility's own issuer each, with the longest life that the WLCG
profile allows. Then with servers that hold five exchanged tokens of 1.5 kB each, which live for an hour: the provider
answers in 20 ms, and each log-in is kept in an SQLite database, encrypted by JupyterHub.

Three things are measured: a look around with nothing due, the renewal of all servers at once (a hub that was away for
hours finds them so), and memory. What that makes in a life of the credentials (half a day; six hours; an hour) is
computed from these: looks around every ten seconds, and each server renewed one and a half times (at two thirds of the
life), failures and all. Times are CPU of the hub's thread, since others may have the processor. Always exits with 0:
"met" and "missed" are for people.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import gc
import logging
import os
import random
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jwt
from jupyterhub import orm
from jupyterhub.crypto import CryptKeeper
from jupyterhub.user import User
from traitlets.config import Config

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # tests.support

from casa_hub.credentials.base import Credential, Minter, Request  # noqa: E402
from casa_hub.credentials.fetching import Answer, Fetch, Outcomes  # noqa: E402
from casa_hub.credentials.idtokens import scramble  # noqa: E402
from casa_hub.credentials.issued import issue  # noqa: E402
from casa_hub.errors import DeliveryError  # noqa: E402
from casa_hub.facility import Facility  # noqa: E402
from casa_hub.identity.session import Kept, Session  # noqa: E402
from casa_hub.identity.transport import Reply  # noqa: E402
from casa_hub.issuer.tokens import LONGEST, new_private_key  # noqa: E402
from casa_hub.membership.fetching import Fetching  # noqa: E402
from casa_hub.membership.log_ins import LogIns  # noqa: E402
from casa_hub.membership.member import Members  # noqa: E402
from casa_hub.membership.policy import Allowed  # noqa: E402
from casa_hub.membership.recheck import Recheck  # noqa: E402
from casa_hub.membership.settings import Keeper  # noqa: E402
from casa_hub.naming import Server  # noqa: E402
from casa_hub.record import ServerRecord, parse_text  # noqa: E402
from casa_hub.servers import renewals as module  # noqa: E402
from casa_hub.servers.renewals import Renewals  # noqa: E402
from casa_hub.servers.running import Holding  # noqa: E402
from tests.support.running_server import App, RunningServer  # noqa: E402
from tests.support.turns import Turns  # noqa: E402

#: How many tokens of the issuer a server holds.
TOKENS = 5
#: Of a life, after which a credential is renewed.
DUE = 2 / 3
STALL_MS, CPU_PERCENT, MEMORY_MB = 5.0, 1.0, 5.0


class Clock:
    """Seconds since the epoch, and what we have put it forward by."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def __call__(self) -> float:
        return time.time() + self.ahead


def plain(minting: Facility, servers: int, clock: Clock, _: Path) -> list[RunningServer]:
    return [RunningServer(minting, Server("", f"user-{n}"), f"{n:032x}", clock=clock) for n in range(servers)]


@dataclass(frozen=True)
class Case:
    """What servers hold, and for how many seconds it lives."""

    title: str
    make: Callable[[Path, int], Facility]
    life: int
    homes: Callable[[Facility, int, Clock, Path], list[RunningServer]] = plain


@dataclass(frozen=True)
class Measured:
    """Seconds of CPU, and bytes."""

    look: float
    renewal: float
    tries: int
    seconds: float
    longest_turn: float
    #: Python's own collection of garbage; not in the turns.
    collection: float
    traced: int
    resident: int


def with_macaroons(directory: Path, life: int) -> Facility:
    keys = {
        "xcache": base64.b64encode(os.urandom(64)),
        "htcondor": scramble(os.urandom(64)),
        "dask": base64.b64encode(os.urandom(48)) + b"\n",
    }
    for name, content in keys.items():
        write(directory / name, content)
    config = Config(
        Facility={"credentials": list(keys)},
        XCache={"key_file": str(directory / "xcache"), "site_name": "T3", "lifetime": life},
        HTCondor={
            "key_file": str(directory / "htcondor"),
            "trust_domain": "pool.example.org",
            "uid_domain": "example.org",
            "subject": "{username}",
            "lifetime": life,
        },
        Dask={"secret_file": str(directory / "dask"), "domain": "example.org"},
    )
    return Facility(config=config)


class Token(Minter):
    """A token of the issuer, for one service."""

    life = LONGEST

    def mint(self, request: Request) -> Credential:
        audience = f"https://{self.name}.example.org"
        token = issue(self, request, audience=audience, scope="storage.read:/store", lifetime=self.life)
        files = {self.name: token.value.encode()}
        return Credential(self.name, files, token.issued_at, token.expires_at, token.identifiers)


def with_tokens(directory: Path, life: int) -> Facility:
    (directory / "issuer").mkdir()
    write(directory / "issuer" / "1.pem", new_private_key()[1])
    issuer = {"keys": str(directory / "issuer"), "vo": "cms", "url": "https://hub.example.org/hub/casa/issuer"}
    made = Facility(config=Config(Facility={"credentials": []}, FacilityIssuer=issuer))
    for number in range(TOKENS):
        name = f"service-{number}"
        minter = type(name, (Token,), {"name": name, "title": name, "life": life})(parent=made)
        minter.issuer, made.minters[name] = made.issuer, minter
    return made


def with_exchanged(_: Path, life: int) -> Facility:
    services = {f"service-{n}": {"audience": f"https://service-{n}.example.org"} for n in range(TOKENS)}
    Provider.life = life
    return Facility(config=Config(Facility={"credentials": ["exchange"]}, TokenExchange={"services": services}))


class Provider:
    """An identity provider that answers in 20 ms: of memberships, and with tokens of 1.5 kB."""

    life: int
    client = SimpleNamespace(issuer="https://idp.example.org/", leeway=60.0)

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    async def userinfo(self, _: str, *, sub: str) -> Mapping[str, object]:
        await asyncio.sleep(0.02)
        return {"sub": sub, "wlcg.groups": ["/cms"]}

    def check(self, *_: object, **__: str) -> None:
        """Each name is its person's."""

    async def ask(self, fetch: Fetch, access_token: str) -> Reply:
        await asyncio.sleep(0.02)
        return Reply(200, self.answer(fetch, access_token))

    def answer(self, fetch: Fetch, sub: str) -> dict[str, object]:
        claims = {"iss": self.client.issuer, "sub": sub, "aud": fetch.form["audience"], "pad": "x" * 1000}
        token = jwt.encode({**claims, "exp": int(self._clock()) + self.life}, "k" * 32, "HS256")
        return {"access_token": token, "token_type": "Bearer", "expires_in": self.life}


class LoggedIn:
    """JupyterHub's user, as far as a log-in is stored with it: a whole one would come with a spawner."""

    get_auth_state, save_auth_state = User.get_auth_state, User.save_auth_state
    settings: Mapping[str, object] = {}

    def __init__(self, orm_user: Any, db: Any) -> None:
        self.orm_user, self.db, self.log = orm_user, db, logging.getLogger("hub")
        self.name, self.id = orm_user.name, orm_user.id

    @property
    def encrypted_auth_state(self) -> bytes:
        return bytes(self.orm_user.encrypted_auth_state)

    @encrypted_auth_state.setter
    def encrypted_auth_state(self, content: bytes) -> None:
        self.orm_user.encrypted_auth_state = content


class WithLogIn(RunningServer):
    """A server whose user's log-in is read as by a real one."""

    spawner: Any

    async def fetch(self, names: Collection[str]) -> Outcomes:
        record = parse_text(self.text)
        assert isinstance(record, ServerRecord)
        has = {name: entry.issued_at for name, entry in record.credentials.items()}
        return await self.facility.fetch(self.spawner, names=names, newer_than=has)

    async def renew(
        self, names: Collection[str], *, force: bool = False, fetched: Outcomes | None = None
    ) -> Holding | None:
        await self.facility.request_of(self.spawner, self.server, "", datetime.now(UTC), fetched=fetched)
        return await super().renew(names, force=force, fetched=fetched)


def with_log_ins(minting: Facility, servers: int, clock: Clock, directory: Path) -> list[RunningServer]:
    """One server for each user, and each user's log-in in a database of JupyterHub's."""
    CryptKeeper.clear_instance()
    CryptKeeper.instance(keys=[os.urandom(32)])
    db = orm.new_session_factory(f"sqlite:///{directory / 'hub.sqlite'}")()
    quiet()  # its migrations have a logging of their own
    members, provider = Members(Keeper(), clock), Provider(clock)
    recheck = Recheck(
        LogIns(members, provider),  # type: ignore[arg-type]
        provider,  # type: ignore[arg-type]
        lambda *_: Allowed(frozenset({"/cms"}), admin=False),
        groups_live=True,
        on_yes=lambda *_: None,
    )

    async def access_token(user: Any) -> Any:
        session = await recheck.log_ins.session(user)
        return None if session is None else session.bearer()

    authenticator = SimpleNamespace(
        access_token=access_token,
        fetching=Fetching(recheck, provider),  # type: ignore[arg-type]
    )
    fetches = {name: minter.fetch for name, minter in minting.minters.items()}
    homes: list[RunningServer] = []
    for number in range(servers):
        name, now = f"user-{number}", clock()
        at = datetime.fromtimestamp(now, UTC)
        fetched = {
            one: fetch.read(Answer(200, provider.answer(fetch, name), at, provider.client.issuer, name))
            for one, fetch in fetches.items()
            if fetch is not None
        }
        kept = {one: Kept(fetch.fingerprint, fetched[one]) for one, fetch in fetches.items() if fetch is not None}
        session = Session(
            id=f"{number:x}",
            issuer=provider.client.issuer,
            sub=name,
            access_token=name,
            refresh_token="r" * 1000,
            expires_at=now + 10 * 86400,
            obtained_at=now,
            scope=None,
            last_yes=now,
            claims={"sub": name, "wlcg.groups": ["/cms"] * 50},
            fetched=kept,
        )
        orm_user = orm.User(name=name)
        db.add(orm_user)
        db.flush()  # gives it its number
        user = LoggedIn(orm_user, db)
        user.encrypted_auth_state = CryptKeeper.instance()._encrypt(session.to_auth_state())  # noqa: SLF001
        server = WithLogIn(minting, Server("", name), f"{number:032x}", clock=clock, fetched=fetched)
        server.spawner = SimpleNamespace(user=user, authenticator=authenticator)
        recheck.logged_in(name, session, Allowed(frozenset(), admin=False))
        homes.append(server)
    db.commit()
    return homes


def write(file: Path, content: bytes) -> None:
    file.write_bytes(content)
    file.chmod(0o400)
    past = time.time() - 60  # as a key file usually is: older than the moment it is read
    os.utime(file, (past, past))


CASES = (
    Case("with a macaroon, an IDTOKEN and Dask's certificates each", with_macaroons, 43200),
    Case(f"with {TOKENS} tokens of the facility's issuer each", with_tokens, LONGEST),
    Case(f"with {TOKENS} exchanged tokens each", with_exchanged, 3600, with_log_ins),
)


def resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def quiet() -> None:
    """Lines are made, as in a hub, but not shown."""
    logging.basicConfig(level=logging.INFO, filename=os.devnull, force=True)


def fault(faulty: float) -> None:
    """What may go wrong with a delivery."""
    if random.random() < faulty:
        raise random.choice(
            [DeliveryError("Secret users/casa-x", "no answer", "Try again."), RuntimeError("never thought of")]
        )


def is_renewed(running: RunningServer) -> bool:
    return running.text is not running.at_start


async def measure(case: Case, servers: int, faulty: float, directory: Path) -> Measured:
    minting, app, clock = case.make(directory, case.life), App(), Clock()
    homes = case.homes(minting, servers, clock, directory)
    for running in homes:
        running.takes = 0.005
        app.add(running)
    renewals = Renewals(app, minting, clock)

    tracemalloc.start()
    gc.collect()
    traced, before = tracemalloc.get_traced_memory()[0], resident()
    await renewals._look_around()  # noqa: SLF001 - what is measured
    gc.collect()
    traced, before = tracemalloc.get_traced_memory()[0] - traced, resident() - before
    tracemalloc.stop()

    looks = 20
    with Turns() as turns:
        begun = time.thread_time()
        for _ in range(looks):
            await renewals._look_around()  # noqa: SLF001
        look = (time.thread_time() - begun) / looks

        for running in homes:
            running.fault = lambda: fault(faulty)
        clock.ahead += DUE * 1.1 * case.life
        renewals.begin()
        begun, since = time.thread_time(), time.monotonic()
        while not all(map(is_renewed, homes)):
            await asyncio.sleep(2)
            clock.ahead += case.life / 144  # what failed is tried again after ten minutes at most
        cpu, seconds = time.thread_time() - begun, time.monotonic() - since
    tries = sum(len(running.asked) for running in homes)
    return Measured(look, cpu / servers, tries, seconds, turns.cpu, turns.collection, traced, before)


def report(case: Case, servers: int, faulty: float, one: Measured) -> str:
    looks = case.life / module._LOOK * one.look  # noqa: SLF001
    renewals = servers / DUE * one.renewal
    percent = 100 * (looks + renewals) / case.life
    hours = f"{case.life / 3600:g} hours"
    megabytes = max(one.traced, one.resident) / 1e6
    rows = [
        (f"a look around at {servers} servers, nothing due", f"{one.look * 1e3:.2f} ms of CPU"),
        (
            f"a renewed server ({one.tries} tries for {servers}, {faulty:.0%} fail)",
            f"{one.renewal * 1e3:.2f} ms of CPU",
        ),
        ("all of them due at once, until the last is renewed", f"{one.seconds:.0f} s"),
        ("longest turn of the event loop", f"{one.longest_turn * 1e3:.2f} ms of CPU"),
        ("longest collection of Python's garbage", f"{one.collection * 1e3:.2f} ms of CPU"),
        (f"in {hours}: looks around", f"{looks:.1f} s of CPU"),
        (f"in {hours}: renewals", f"{renewals:.1f} s of CPU"),
        ("memory: traced, resident", f"{one.traced / 1e6:.2f} MB, {one.resident / 1e6:.2f} MB"),
    ]
    targets = [
        (f"longest turn at most {STALL_MS:g} ms: {one.longest_turn * 1e3:.2f}", one.longest_turn * 1e3 <= STALL_MS),
        (f"at most {CPU_PERCENT:g} % of a core in {hours}: {percent:.4f}", percent <= CPU_PERCENT),
        (f"at most {MEMORY_MB:g} MB: {megabytes:.2f}", megabytes <= MEMORY_MB),
    ]
    lines = [f"{servers} servers {case.title}", *(f"{what:62}{value:>22}" for what, value in rows)]
    return "\n".join([*lines, "", *(f"{'met   ' if met else 'missed'}  {target}" for target, met in targets)])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--servers", type=int, default=1000)
    parser.add_argument("--faulty", type=float, default=0.2)
    arguments = parser.parse_args()
    quiet()
    for case in CASES:
        with tempfile.TemporaryDirectory() as name:
            measured = asyncio.run(measure(case, arguments.servers, arguments.faulty, Path(name)))
        print(report(case, arguments.servers, arguments.faulty, measured), end="\n\n", flush=True)
