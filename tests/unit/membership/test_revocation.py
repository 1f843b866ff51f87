"""What stands in the way of the end of somebody's access, and must not: a record, a file system, a slow stop.

The hub's servers are what a test makes of them; revocations through a real JupyterHub are in tests/hub.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from jupyterhub import orm
from traitlets.config import Config

from casa_hub.audit import Action
from casa_hub.delivery.local.delivery import LocalDelivery
from casa_hub.facility import Minted
from casa_hub.hub import CasaHub
from casa_hub.identity.verdicts import Verdict
from casa_hub.local_server import LocalServer
from casa_hub.local_spawner import CasaLocalSpawner
from casa_hub.membership import revocation as module
from casa_hub.membership.member import Members, Standing
from casa_hub.membership.revocation import Revocations, end_tokens
from casa_hub.membership.settings import Keeper
from casa_hub.membership.tables import Entry
from casa_hub.naming import Server
from casa_hub.outside import HandedOut
from casa_hub.record import CredentialRecord, ServerRecord
from casa_hub.servers.running import Holding


class RunningServer:
    """A server that holds nothing."""

    server = Server("", "alice")

    def __init__(self, fails: Exception | None = None) -> None:
        self.fails = fails
        self.withdrawn = 0
        self.running_start: str | None = None

    def known_holding(self) -> Holding | None:
        return None

    async def holding(self) -> Holding | None:
        return None

    async def withdraw(self) -> None:
        self.withdrawn += 1
        self.running_start = None
        if self.fails is not None:
            raise self.fails


def server(running: RunningServer | LocalServer) -> Any:
    return SimpleNamespace(casa_server=running, pending=None, active=True, orm_spawner=SimpleNamespace(started=None))


class User:
    """As much of JupyterHub's as revocations need; its server stops when it `may`."""

    def __init__(self, db: Any, running: RunningServer | LocalServer) -> None:
        self.orm_user = orm.User(name="alice")
        db.add(self.orm_user)
        db.commit()
        self.id, self.name = self.orm_user.id, "alice"
        self.spawners = {"": server(running)}
        self.may, self.stopped = asyncio.Event(), asyncio.Event()
        self.may.set()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.orm_user, name)

    async def stop(self, name: str) -> None:
        spawner = self.spawners[name]
        await self.may.wait()
        spawner.active = False
        self.stopped.set()


class Proxy:
    async def delete_user(self, user: Any, name: str) -> None:
        pass


class Users(dict[int, User]):
    """Found by number, or by the name that they have now."""

    def get(self, key: Any, default: Any = None) -> Any:
        return next((user for number, user in self.items() if key in (number, user.name)), default)


class LogIns:
    """Knows the log-ins; the provider ends no tokens."""

    def __init__(self, members: Members, **log_ins: str) -> None:
        self.members = members
        self.log_ins = log_ins

    async def session(self, user: Any) -> Any:
        found = self.log_ins.get(user.name)
        return found and SimpleNamespace(id=found, refresh_token="", session_id=found)

    def is_of_this_provider(self, session: Any) -> bool:
        return True

    async def known(self, user: Any) -> Any:
        found = self.log_ins.get(user.name, "")
        self.members[user.name].standing = Standing(Verdict.YES, 0.0, "", 0.0, found)
        return self.members[user.name].standing

    async def forget(self, user: Any, session_id: str) -> bool:
        ours = self.log_ins.get(user.name) == session_id
        if ours:
            del self.log_ins[user.name]
        return ours


def restarted(revocations: Revocations, **log_ins: str) -> Revocations:
    """Those of a hub that has the database of an earlier one, which was killed."""
    app, members = revocations._app, Members(Keeper())
    for user in app.users.values():
        user.orm_user.encrypted_auth_state = b"..."
    app.db.commit()
    return Revocations(app, members, LogIns(members, **log_ins))  # type: ignore[arg-type]


def log_ins(revocations: Revocations) -> dict[str, str]:
    found: Any = revocations._log_ins
    return found.log_ins  # type: ignore[no-any-return]


async def is_done(revocations: Revocations, username: str) -> None:
    async with asyncio.timeout(10):
        while revocations._ledger.all(0)[0].done is None:  # noqa: ASYNC110 - nobody has an event of it
            await asyncio.sleep(0)
    assert [entry.username for entry in revocations._ledger.all(0)] == [username]


def hub(running: RunningServer | LocalServer) -> tuple[User, Revocations]:
    db = orm.new_session_factory("sqlite:///:memory:")()
    user = User(db, running)
    app = SimpleNamespace(db=db, users=Users({user.id: user}), tornado_settings={}, proxy=Proxy())
    return user, Revocations(app, Members(Keeper()), None)


async def test_a_server_is_stopped_though_its_files_can_t_be_removed() -> None:
    """Whatever the reason is: it isn't always one that this package foresaw."""
    user, revocations = hub(RunningServer(OSError("stale file handle")))
    revoked = await revocations.end(user, "out", why="no")
    assert revoked.servers == ("",)
    assert not user.spawners[""].active
    assert revoked.still == ("server '': OSError",)


ISSUED = datetime(2026, 11, 21, 4, tzinfo=UTC)
DASK = CredentialRecord(ISSUED, None, {"ca": "2"}, {}, ("ca.pem",))
XCACHE = CredentialRecord(ISSUED, None, {"jti": "1"}, {}, ("xcache_token",))


@pytest.mark.parametrize(
    ("edit", "expected"),
    [
        ({}, {"xcache": {"jti": "1"}, "dask": {"ca": "2"}}),
        ({"version": 3}, {"xcache": {"jti": "1"}, "dask": {"ca": "2"}}),
        ({"credentials": {"xcache": {"identifiers": {"jti": "1"}, "expires_at": "never"}}}, {"xcache": {"jti": "1"}}),
        ({"credentials": {"xcache": None}}, {"xcache": {}}),
        ({"credentials": None}, {"": {}}),
    ],
    ids=str,
)
async def test_an_edited_record_hides_nothing_from_the_audit(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, edit: dict[str, Any], expected: dict[str, dict[str, str]]
) -> None:
    """Of a server on this machine, whose state file somebody has edited before the hub was restarted."""
    config = Config(LocalDelivery={"directory": str(tmp_path / "servers")}, TraefikRoutes={"kind": "none"})
    alice, start_id = Server("", "alice"), "0" * 32
    delivery = LocalDelivery(config=config)
    delivery.open()
    record = ServerRecord(alice.identity, start_id, 0, {"xcache": XCACHE, "dask": DASK}, {})
    await delivery.deliver(Minted(alice, start_id, {}, {}, {"xcache_token": b"1", "ca.pem": b"2"}, (), record))
    os.close(delivery._lock_file)  # as when the hub's process ends
    state = delivery.path(alice) / "state.json"
    document = json.loads(state.read_text())
    document["record"] |= edit
    state.write_text(json.dumps(document))
    app = SimpleNamespace(config=config, tornado_settings={}, spawner_class=CasaLocalSpawner)
    again = CasaHub.of(app).delivery(LocalDelivery)  # type: ignore[arg-type]
    again.open()
    told: list[Any] = []
    monkeypatch.setattr(module, "tell", lambda _, event: told.append(event))
    running = LocalServer(SimpleNamespace(user=SimpleNamespace(settings={"app": app})))
    [one] = again.all()
    running.adopt(one)
    user, revocations = hub(running)
    assert (await revocations.end(user, "out", why="no")).still == ()
    assert {one.credential: one.identifiers for one in told if one.action is Action.REVOKED} == expected
    os.close(again._lock_file)


async def test_a_server_of_a_new_log_in_is_not_taken_for_one_whose_stop_was_slow(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_STEP", 0.05)
    monkeypatch.setattr(module, "_AGAIN", 0.05)
    user, revocations = hub(RunningServer())
    user.may.clear()
    assert (await revocations.end(user, "out", why="no")).still == ("server '': it takes longer than expected",)
    user.may.set()
    await user.stopped.wait()
    new = RunningServer()
    user.spawners[""] = server(new)
    while revocations._members["alice"].ending(""):  # noqa: ASYNC110 - nobody has an event of it
        await asyncio.sleep(0)
    assert user.spawners[""].active
    assert not new.withdrawn


async def test_a_server_of_a_new_log_in_is_not_taken_for_one_that_could_not_be_stopped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The API server was away; meanwhile the old one ended by itself, and its user was let in again."""
    monkeypatch.setattr(module, "_AGAIN", 0.05)
    user, revocations = hub(RunningServer())
    revocations = restarted(revocations, alice="log-in-1")

    async def away(name: str) -> None:
        raise TimeoutError

    monkeypatch.setattr(user, "stop", away)
    user.spawners[""].casa_log_in = "log-in-1"
    assert (await revocations.end(user, "out", why="operator")).still
    new = RunningServer()
    user.spawners[""] = server(new)
    user.spawners[""].casa_log_in = "log-in-2"
    log_ins(revocations)["alice"] = "log-in-2"
    await revocations._log_ins.known(user)  # type: ignore[union-attr]
    await is_done(revocations, "alice")
    assert user.spawners[""].active
    assert not new.withdrawn


async def test_what_a_start_under_way_is_given_is_taken_as_soon_as_it_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """And not when the start is over: an image that is pulled takes minutes."""
    monkeypatch.setattr(module, "_LOOK", 0.001)
    running = RunningServer()
    user, revocations = hub(running)
    user.spawners[""].pending = "spawn"
    ending = asyncio.create_task(revocations.end(user, "out", why="no"))
    async with asyncio.timeout(10):
        while running.withdrawn < 1:  # noqa: ASYNC110 - nobody has an event of it
            await asyncio.sleep(0)
        running.running_start = "0" * 32
        while running.withdrawn < 2:  # noqa: ASYNC110
            await asyncio.sleep(0)
        assert user.spawners[""].pending
        user.spawners[""].pending = None
        assert (await ending).servers == ("",)


async def test_another_name_saves_nobody() -> None:
    """An administrator may rename a user while a start of theirs holds up the end."""
    user, revocations = hub(RunningServer())
    user.may.clear()
    ending = asyncio.create_task(revocations.end(user, "out", why="no"))
    await asyncio.sleep(0)
    user.name = "alicia"
    user.may.set()
    assert (await ending).servers == ("",)
    assert not user.spawners[""].active


def with_token(user: User, revocations: Revocations) -> Any:
    """The hub's database, with a token of the user."""
    db = revocations._app.db
    db.add(orm.OAuthClient(identifier="jupyterhub"))
    db.add(orm.APIToken(user=user.orm_user, client_id="jupyterhub", hashed="x", prefix="x"))
    db.commit()
    return db


async def test_an_end_that_can_t_begin_leaves_nothing_half_done_in_the_hub_s_session() -> None:
    """The next commit, whosever it is, would delete the tokens of somebody whose servers go on."""
    user, revocations = hub(RunningServer())
    db = with_token(user, revocations)
    with pytest.raises(UnicodeEncodeError):
        await revocations.end(user, "out", why="half a character: \udce9")
    db.commit()
    assert db.query(orm.APIToken).count() == 1
    assert (await revocations.end(user, "out", why="operator")).tokens == 1
    assert db.query(orm.APIToken).count() == 0


def test_a_log_out_in_browsers_ends_no_token_of_the_user_s_own() -> None:
    user, revocations = hub(RunningServer())
    db = with_token(user, revocations)
    db.add(orm.OAuthClient(identifier="jupyterhub-user-alice"))
    db.add(orm.APIToken(user=user.orm_user, client_id="jupyterhub-user-alice", hashed="y", prefix="y"))
    db.commit()
    cookie = user.orm_user.cookie_id
    assert end_tokens(db, user, browsers_only=True) == 1
    db.commit()
    assert [token.client_id for token in db.query(orm.APIToken)] == ["jupyterhub"]
    assert user.orm_user.cookie_id != cookie


async def test_what_others_say_keeps_no_access_from_ending() -> None:
    """PostgreSQL refuses NUL, no database takes half a character, and columns have a length."""
    user, revocations = hub(RunningServer())
    await revocations.end(user, "half \udce9, nothing \0.", why="operator", by=f"service {'s' * 255}")
    (entry,) = revocations._ledger.all(0)
    assert (entry.reason, entry.requested_by) == ("half , nothing .", f"service {'s' * 247}")


async def test_a_hub_that_is_killed_ends_the_access_of_whom_an_administrator_has_renamed_meanwhile() -> None:
    """The name may be somebody else's by then, whose access goes on."""
    user, revocations = hub(RunningServer())
    revocations._ledger.open()
    revocations._ledger.note(Entry("alice", "log-in-1", "out", "no", "", 1.7e9))
    revocations._app.db.commit()
    user.name = user.orm_user.name = "alicia"
    other = User(revocations._app.db, RunningServer())
    revocations._app.users[other.id] = other

    later = restarted(revocations, alicia="log-in-1", alice="log-in-2")
    await later.resume()
    await later.resume()
    await is_done(later, "alice")
    assert not user.spawners[""].active
    assert other.spawners[""].active
    assert log_ins(later) == {"alice": "log-in-2"}


async def test_who_has_logged_in_anew_under_the_same_name_loses_what_ran_before() -> None:
    user, revocations = hub(RunningServer())
    revocations._ledger.open()
    revocations._ledger.note(Entry("alice", "log-in-1", "out", "no", "", time.time()))
    revocations._app.db.commit()
    later = restarted(revocations, alice="log-in-2")
    await later.resume()
    await is_done(later, "alice")
    assert not user.spawners[""].active
    assert log_ins(later) == {"alice": "log-in-2"}


async def test_no_request_of_a_user_s_keeps_an_end_from_beginning() -> None:
    """As JupyterHub makes a token whose note has half a character: from then on the hub's session refuses all."""
    user, revocations = hub(RunningServer())
    db = with_token(user, revocations)
    db.add(orm.APIToken(user=user.orm_user, client_id="jupyterhub", note="\ud800", hashed="y", prefix="y"))
    with pytest.raises(UnicodeEncodeError):
        db.commit()
    user.active = False
    assert revocations.has_any(user)
    assert (await revocations.end(user, "out", why="no")).tokens == 1
    assert db.query(orm.APIToken).count() == 0


# -- what is outside of servers


async def test_what_somebody_holds_outside_is_told_with_the_end_and_what_comes_later_isn_t(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told: list[Any] = []
    monkeypatch.setattr(module, "tell", lambda _, event: told.append(event))
    user, revocations = hub(RunningServer())
    outside = revocations._outside
    now = datetime.now(UTC)

    def handed(jti: str) -> HandedOut:
        return HandedOut("xcache", None, "", "alice", {"jti": jti}, now + timedelta(hours=1))

    outside.note(user.id, handed("1"), now)
    outside.note(user.id + 1, handed("2"), now)
    user.may.clear()  # its server stops slowly
    ending = asyncio.create_task(revocations.end(user, "out", why="no", by="the operator"))  # type: ignore[arg-type]
    await asyncio.sleep(0)
    outside.note(user.id, handed("3"), now)  # of a newer log-in
    user.may.set()
    await ending
    revoked = [event for event in told if event.action is Action.REVOKED]
    assert [(event.username, event.identifiers, event.reason, event.by) for event in revoked] == [
        ("alice", {"jti": "1"}, "out", "the operator")
    ]
    assert outside.held(user.id, now) == [handed("3")]
    assert outside.held(user.id + 1, now) == [handed("2")]
