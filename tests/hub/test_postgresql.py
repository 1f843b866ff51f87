"""PostgreSQL as the hub's database: it refuses what SQLite takes, and its connections can be lost."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests
from sqlalchemy import create_engine, event, text
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from casa_hub.database import mended
from casa_hub.membership.tables import Entry, Ledger, UnknownLogIns
from casa_hub.membership.usernames import Identities, IdentityError
from tests.hub.test_membership_lost import (
    MAX_AGE,
    RECHECK,
    MakeServers,
    User,
    _as_providers_do,  # noqa: F401 - a fixture
    audit,
    ended,
    make_servers,  # noqa: F401 - a fixture
    metric,
)
from tests.support.hub import Browser, Hub
from tests.support.idp import IdP
from tests.support.peers import require
from tests.support.postgresql import Database, PostgreSQL
from tests.support.waiting import until

OPERATOR = "token-of-the-operator"
#: SQLAlchemy's choice for "postgresql://" has changed with its version 2.1.
DRIVERS = ["psycopg", "psycopg2"]


@pytest.fixture(scope="module")
def server() -> Iterator[PostgreSQL]:
    directory = Path(tempfile.mkdtemp(prefix="casa-postgresql-"))
    directory.chmod(0o755)  # root starts it as another user
    try:
        with require(lambda: PostgreSQL(directory / "server")) as running:
            yield running
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
def database(server: PostgreSQL) -> Database:
    return server.make_database()


# -- our tables --------------------------------------------------------------------------------------------------------


@pytest.fixture(params=DRIVERS)
def session(request: pytest.FixtureRequest, database: Database) -> Iterator[Session]:
    engine = create_engine(database.url(request.param))
    with Session(engine, expire_on_commit=False) as session:
        yield session
    engine.dispose()


NAME = "ü" * 255
IAM = "https://iam.example.org/"


def test_the_longest_values_come_back_as_they_went_in(session: Session) -> None:
    identities = Identities(session)
    identities.check(NAME, issuer="https://" + "é" * 1015, sub="s" * 1023)
    assert identities.names(issuer="https://" + "é" * 1015, sub="s" * 1023) == [NAME]

    ledger, now = Ledger(session), 1_796_000_000.123456
    ledger.open()
    entry = Entry(NAME, "0123456789abcdef", "Weil 😀 " * 1000, "operator", f"service {'s' * 247}", now)
    ledger.note(entry)
    session.commit()
    ledger.done(NAME, now + 1, 3)
    assert ledger.all(now) == [
        Entry(NAME, entry.session_id, entry.reason, entry.why, entry.requested_by, now, now + 1, 3)
    ]

    unknown = UnknownLogIns(session)
    assert unknown.all() == {}
    unknown.note([NAME], now)
    assert unknown.all() == {NAME: now}
    unknown.remove([NAME])
    assert unknown.all() == {}


def test_what_the_database_refuses_doesn_t_keep_an_access_from_ending(session: Session) -> None:
    """JupyterHub has service names of 255 characters, before which "service " stands here."""
    ledger = Ledger(session)
    ledger.open()
    ledger.note(Entry("ada", "1", "NUL \0, half a character \udce9.", "no", f"service {'s' * 255}", 1.0))
    session.commit()
    (entry,) = ledger.all(1.0)
    assert (entry.reason, entry.requested_by) == ("NUL , half a character .", f"service {'s' * 247}")


def test_a_subject_that_doesn_t_fit_is_refused_by_name(session: Session) -> None:
    identities = Identities(session)
    with pytest.raises(IdentityError, match="more than 1023 characters"):
        identities.check("ada", issuer=IAM, sub="s" * 1024)
    identities.check("ada", issuer=IAM, sub="s")


def failed(session: Session, database: Database) -> None:
    """Somebody's statement has failed; PostgreSQL takes none until the transaction's end."""
    with pytest.raises(SQLAlchemyError):
        session.execute(text("SELECT * FROM nowhere"))
    assert session.is_active  # so much for what SQLAlchemy knows of it


def lost(session: Session, database: Database) -> None:
    """The connection of a transaction that was idle is gone."""
    session.execute(text("SELECT 1"))
    assert database.end_sessions()


def lost_unnoticed(session: Session, database: Database) -> None:
    """The driver passes on the server's last word before it sees the connection closed.

    So a rollback is sent over that connection, and fails. A database that was restarted ended all membership checks of
    a hub in this way, once in a hundred times, and without a line in the log.
    """

    def unnoticed(context: ExceptionContext) -> None:
        context.is_disconnect = False

    event.listen(session.get_bind(), "handle_error", unnoticed, once=True)
    lost(session, database)


@pytest.mark.parametrize("happens", [failed, lost, lost_unnoticed])
def test_ours_goes_on_whatever_has_become_of_the_hub_s_session(
    session: Session, database: Database, happens: Callable[[Session, Database], None]
) -> None:
    identities, ledger, unknown = Identities(session), Ledger(session), UnknownLogIns(session)
    ledger.open()
    unknown.all()
    identities.check("ada", issuer=IAM, sub="1")
    ledger.note(Entry("ada", "1", "out", "no", "", 1.0))
    session.commit()
    calls: list[Callable[[], object]] = [
        lambda: identities.check("ada", issuer=IAM, sub="1"),
        lambda: identities.names(issuer=IAM, sub="1"),
        lambda: identities.namesakes("ada"),
        lambda: identities.release("ada"),
        ledger.open,
        lambda: ledger.all(1.0),
        lambda: ledger.done("ada", 2.0, 1),
        lambda: ledger.remove("ada"),
        unknown.all,
        lambda: unknown.note(["ada"], 1.0),
        lambda: unknown.remove(["ada"]),
        lambda: mended(session).execute(text("SELECT 1")),
    ]
    for call in calls:
        happens(session, database)
        assert call() is not False


# -- whole hubs --------------------------------------------------------------------------------------------------------


@pytest.fixture
def make(make_servers: MakeServers, database: Database) -> Callable[..., Hub]:  # noqa: F811
    """Makes hubs with servers, not yet started, whose database is one of PostgreSQL."""

    def make(more: str = "", **options: Any) -> Hub:
        config = f"c.JupyterHub.db_url = {database.url()!r}\nc.JupyterHub.cleanup_servers = False\n"
        return make_servers(config + "c.Spawner.http_timeout = 60\n" + more, **options)

    return make


def test_log_in_binding_renewal_and_a_lost_membership(make: Callable[..., Hub], database: Database, idp: IdP) -> None:
    with make().running() as hub:
        user = User(hub, idp).starts()
        assert database.rows("SELECT username, issuer, sub FROM casa_hub_identities") == [
            (user.name, idp.issuer, user.sub)
        ]
        # Somebody else, to whom the provider gives the name.
        idp.put_user("another", preferred_username=user.name, **{"wlcg.groups": user.groups})
        refused = Browser(hub).log_in("another")
        assert refused.status_code == 403
        assert "belongs to another identity" in refused.text

        answer = hub.api("POST", "/casa-hub/renew", token=OPERATOR, json={})
        assert answer.json() == {"renewed": [user.name], "failed": {}}
        assert user.runs

        user.is_in_groups()
        reason = ended(user)["reason"]
        until(lambda: user.has_nothing, "the end of the access")
        noted = "SELECT username, reason, why, servers FROM casa_hub_departures WHERE done IS NOT NULL"
        until(lambda: database.rows(noted) == [(user.name, reason, "no", 1)], "the departure is noted as done")
        user.is_in_groups("/cms/uscms")
        assert user.browser.log_in(user.sub).status_code == 200
        assert "Your access had ended at" in user.browser.page("/hub/home").text


def test_a_hub_that_is_killed_goes_on_with_departures_and_with_unknown_log_ins(
    make: Callable[..., Hub], database: Database, idp: IdP
) -> None:
    hub = make().start()
    leaves, unknown = (User(hub, idp).starts() for _ in range(2))
    os.kill(leaves.process.pid, signal.SIGSTOP)  # the server takes its time to end: it gets no signal
    with ThreadPoolExecutor() as pool:
        asked = pool.submit(hub.api, "POST", "/casa-hub/revoke", token=OPERATOR, json={"user": leaves.name})
        until(lambda: not (leaves.server / "access_token").exists(), "the files are withdrawn")
        hub.stop(signal.SIGKILL)
        with contextlib.suppress(requests.ConnectionError):
            asked.result()
    assert leaves.process.alive
    os.kill(leaves.process.pid, signal.SIGCONT)
    # With the crypt key all log-ins are lost.
    hub.environment["JUPYTERHUB_CRYPT_KEY"] = "0" * 64
    begin = time.monotonic()
    with hub.running():
        assert ended(leaves)["by"] == "service operator"
        until(lambda: not leaves.process.alive, "the server that was being ended has ended")
        until(
            lambda: database.rows("SELECT username FROM casa_hub_unknown_log_ins") == [(unknown.name,)],
            "it is noted whose log-in is unknown",
        )
        ((since,),) = database.rows("SELECT since FROM casa_hub_unknown_log_ins")
        assert abs(float(str(since)) - time.time()) < 60
        hub.stop(signal.SIGKILL)
        hub.start()
        assert ended(unknown)["reason"].startswith("No log-in in time")
        assert time.monotonic() - begin >= MAX_AGE - RECHECK
        until(lambda: not database.rows("SELECT username FROM casa_hub_unknown_log_ins"), "nobody is noted any more")


def test_a_database_that_is_restarted_costs_nobody_a_server_and_takes_back_no_word(
    make: Callable[..., Hub], server: PostgreSQL, database: Database, idp: IdP
) -> None:
    """A "no" is known, and held back; that can't be read from anywhere but the hub's memory."""
    with make(grace=600, database_fails=True).running() as hub:
        users = [User(hub, idp) for _ in range(5)]
        users[0].starts()
        for user in users:
            user.is_in_groups("/cms")
        until(lambda: metric(hub, "casa_hub_memberships_held_back") == len(users), "all are held back")
        names = sorted(user.name for user in users)
        server.restart()
        # Nobody opens a page: the next round finds the connection lost, and takes another.

        def held() -> list[str]:
            answer = hub.api("GET", "/casa-hub/status", token=OPERATOR)
            return sorted(one["user"] for one in answer.json()["held_back"]) if answer.ok else []

        checked = idp.requests["/userinfo"]
        until(
            lambda: idp.requests["/userinfo"] >= checked + 2 * len(users),
            "two more rounds",
            more=lambda: hub.log[-9000:],
        )
        assert held() == names
        assert users[0].runs
        assert not [event for event in audit(hub) if event["action"] in ("access-ended", "revoked")]
        # JupyterHub itself knows nobody at the first request after a lost connection.
        until(lambda: all(user.access() == (True, True) for user in users), "pages and API go on")

        database.end_sessions()
        answer = hub.api("POST", "/casa-hub/confirm", token=OPERATOR, json={})
        if not answer.ok:  # JupyterHub itself knows nobody at the first request after a lost connection
            assert answer.status_code in (403, 500)
            answer = hub.api("POST", "/casa-hub/confirm", token=OPERATOR, json={})
        assert answer.json() == {"confirmed": names}
        for user in users:
            assert ended(user)["by"] == "service operator"
        until(lambda: users[0].has_nothing, "the end of the access")
        assert json.dumps(database.rows("SELECT count(*) FROM casa_hub_departures")) == "[[5]]"
