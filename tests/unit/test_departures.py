"""What stands in the way of the end of somebody's access, and must not: a record, a file system, a slow stop.

The hub's servers are what a test makes of them; departures through a real JupyterHub are in tests/hub.
"""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from jupyterhub import orm

from casa_hub.keeper import departures as module
from casa_hub.keeper.departures import Departures
from casa_hub.keeper.kept import Holding
from casa_hub.keeper.times import Keeper

EDITED = {"expires_at": "never", "identifiers": {"jti": "1"}, "earlier": []}
GOOD = {"expires_at": None, "identifiers": {"jti": "2"}, "earlier": []}


class Kept:
    """What a server holds."""

    def __init__(self, fails: Exception | None = None) -> None:
        self.fails = fails
        self.withdrawn = 0

    async def holding(self) -> Holding:
        return Holding("0" * 32, {"credentials": {"xcache": EDITED, "dask": GOOD}})

    async def withdraw(self) -> None:
        self.withdrawn += 1
        if self.fails is not None:
            raise self.fails


def server(kept: Kept) -> Any:
    return SimpleNamespace(casa_kept=kept, pending=None, active=True)


class User:
    """As much of JupyterHub's as departures need; its server stops when it `may`."""

    def __init__(self, db: Any, kept: Kept) -> None:
        self.orm_user = orm.User(name="alice")
        db.add(self.orm_user)
        db.commit()
        self.id, self.name, self.api_tokens = self.orm_user.id, "alice", self.orm_user.api_tokens
        self.spawners = {"": server(kept)}
        self.may, self.stopped = asyncio.Event(), asyncio.Event()
        self.may.set()

    async def stop(self, name: str) -> None:
        spawner = self.spawners[name]
        await self.may.wait()
        spawner.active = False
        self.stopped.set()


class Proxy:
    async def delete_user(self, user: Any, name: str) -> None:
        pass


def hub(kept: Kept) -> tuple[User, Departures]:
    db = orm.new_session_factory("sqlite:///:memory:")()
    user = User(db, kept)
    app = SimpleNamespace(
        db=db, users={user.id: user}, authenticator=SimpleNamespace(), tornado_settings={}, proxy=Proxy()
    )
    return user, Departures(app, Keeper())


async def test_a_server_is_stopped_though_its_files_can_t_be_removed() -> None:
    """Whatever the reason is: it isn't always one that this package foresaw."""
    user, departures = hub(Kept(OSError("stale file handle")))
    departed = await departures.end(user, "out", why="no")
    assert departed.servers == ("",)
    assert not user.spawners[""].active
    assert departed.still == ("server '': OSError",)


async def test_an_edited_record_hides_nothing_from_the_audit(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Any] = []
    monkeypatch.setattr(module, "tell", lambda _, event: told.append(event))
    user, departures = hub(Kept())
    assert (await departures.end(user, "out", why="no")).still == ()
    assert [event.credential for event in told if event.credential] == ["xcache", "dask"]


async def test_a_server_of_a_new_log_in_is_not_taken_for_one_whose_stop_was_slow(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_STEP", 0.05)
    monkeypatch.setattr(module, "_AGAIN", 0.05)
    user, departures = hub(Kept())
    user.may.clear()
    assert (await departures.end(user, "out", why="no")).still == ("server '': it takes longer than expected",)
    user.may.set()
    await user.stopped.wait()
    new = Kept()
    user.spawners[""] = server(new)
    while departures.ending("alice", ""):  # noqa: ASYNC110 - nobody has an event of it
        await asyncio.sleep(0)
    assert user.spawners[""].active
    assert not new.withdrawn


async def test_another_name_saves_nobody() -> None:
    """An administrator may rename a user while a start of theirs holds up the end."""
    user, departures = hub(Kept())
    user.may.clear()
    ending = asyncio.create_task(departures.end(user, "out", why="no"))
    await asyncio.sleep(0)
    user.name = "alicia"
    user.may.set()
    assert (await ending).servers == ("",)
    assert not user.spawners[""].active


async def test_an_end_that_can_t_begin_leaves_nothing_half_done_in_the_hub_s_session() -> None:
    """The next commit, whosever it is, would delete the tokens of somebody whose servers go on."""
    user, departures = hub(Kept())
    db = departures._app.db
    db.add(orm.OAuthClient(identifier="jupyterhub"))
    db.add(orm.APIToken(user=user.orm_user, client_id="jupyterhub", hashed="x", prefix="x"))
    db.commit()
    with pytest.raises(UnicodeEncodeError):
        await departures.end(user, "half a character: \udce9", why="operator")
    db.commit()
    assert db.query(orm.APIToken).count() == 1
    assert (await departures.end(user, "out", why="operator")).tokens == 1
    assert db.query(orm.APIToken).count() == 0
