"""Many users of a real hub: they are asked about evenly, and all being out at once is noticed in time.

Commits of the hub's database are counted by SQLAlchemy itself. The provider is a small one of this test, since so
many log-ins through pages take minutes; tokens and log-ins are written into the database as the hub does.
How many users: `tests.support.scale`, 500 in full.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import pytest

from tests.hub.conftest import MakeHub
from tests.support.hub import Hub
from tests.support.idp import IdP
from tests.support.scale import MEMBERS, MEMBERS_RECHECK

COUNT, RECHECK = MEMBERS, MEMBERS_RECHECK
#: Of `RECHECK`, as in membership.rounds.
ROUND = 0.75 * RECHECK

CONFIG = f"""
import time
from sqlalchemy import event
from sqlalchemy.engine import Engine

_commits = open("commits", "a", buffering=1)

@event.listens_for(Engine, "before_cursor_execute")
def _wrote(connection, cursor, statement, parameters, context, many):
    if not statement.lstrip().upper().startswith(("SELECT", "PRAGMA")):
        connection.info["wrote"] = True

@event.listens_for(Engine, "commit")
def _note(connection):
    if connection.info.pop("wrote", False):
        _commits.write(f"{{time.time()}}\\n")

c.JupyterHub.log_level = "INFO"
c.JupyterHub.services.append({{"name": "operator", "api_token": "token-of-the-operator"}})
c.JupyterHub.load_roles.append(
    {{"name": "operator", "services": ["operator"], "scopes": ["custom:casa-hub:operate"]}}
)
c.Keeper.recheck_interval = {RECHECK}
"""

#: Runs beside the hub's files, while it doesn't run.
FILL = """
import asyncio, sys, time
from jupyterhub import orm, roles
from jupyterhub.crypto import CryptKeeper, encrypt
from casa_hub.identity.session import Session

count, issuer, path = int(sys.argv[1]), sys.argv[2], sys.argv[3]

async def fill():
    db = orm.new_session_factory(path)()
    now = time.time()
    for number in range(count):
        user = orm.User(name=f"user-{number}")
        db.add(user)
        session = Session(
            id=f"{number:016x}", issuer=issuer, sub=f"sub-{number}", access_token=f"access!{number}",
            refresh_token=f"refresh!{number}!", expires_at=now + 3600, obtained_at=now, scope=None,
            last_yes=now, claims={},
        )
        user.encrypted_auth_state = await encrypt(session.to_auth_state())
        db.flush()
        roles.assign_default_roles(db, entity=user)
        db.add(orm.APIToken(user=user, client_id="jupyterhub", note="", hashed=f"x:{number}", prefix=f"p{number}"))
    db.commit()

asyncio.run(fill())
"""


class Provider:
    """Answers for all of them; each refresh gives new tokens, and userinfo tells what is in `groups`."""

    def __init__(self) -> None:
        self.groups = ["/cms/uscms"]
        #: When somebody was asked for, and who.
        self.asked: list[tuple[float, str]] = []

    def token(self, environ: dict[str, Any], start_response: Any) -> list[bytes]:
        form = parse_qs(environ["wsgi.input"].read().decode())
        number = form["refresh_token"][0].split("!")[1]
        self.asked.append((time.time(), number))
        answer = {"token_type": "Bearer", "expires_in": 3600, "scope": "wlcg.groups"}
        tokens = {"access_token": f"access!{number}", "refresh_token": f"refresh!{number}!{len(self.asked)}"}
        return _json(start_response, answer | tokens)

    def userinfo(self, environ: dict[str, Any], start_response: Any) -> list[bytes]:
        number = environ["HTTP_AUTHORIZATION"].split("!")[1]
        claims = {"sub": f"sub-{number}", "preferred_username": f"user-{number}"}
        return _json(start_response, claims | ({"wlcg.groups": self.groups} if self.groups else {}))


def _json(start_response: Any, value: Any) -> list[bytes]:
    body = json.dumps(value).encode()
    start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
    return [body]


#: Seconds that are looked at together: a machine that stood still for two does their work in the next.
SPAN = 5


def in_a_second(times: list[float]) -> tuple[float, float]:
    """Most in a second of a `SPAN`, and on average."""
    spans = Counter(at // SPAN for at in times)
    if len(times) < 2:
        return len(times) / SPAN, 0.0
    return max(spans.values()) / SPAN, len(times) / (max(times) - min(times))


@pytest.fixture
def full(make_hub: MakeHub, idp: IdP) -> Hub:
    hub = make_hub(CONFIG, provider="wlcg-iam")
    with hub.running():
        hub.api("GET", "/")  # it has made the tables, and takes a signal in good order
    command = [sys.executable, "-c", FILL, str(COUNT), idp.issuer, "sqlite:///hub.sqlite"]
    subprocess.run(command, cwd=hub.directory, env=hub.environment, check=True)
    return hub


@pytest.mark.soak
@pytest.mark.timeout(600)
def test_many_users_are_asked_evenly_also_after_a_restart_and_a_mass_no_is_held_back_in_time(
    full: Hub, idp: IdP, capsys: pytest.CaptureFixture[str]
) -> None:
    provider = Provider()
    idp.answers["/oauth2/token"], idp.answers["/userinfo"] = provider.token, provider.userinfo
    commits = full.directory / "commits"
    told = []
    for start in ("first start", "restart"):
        provider.asked.clear()
        commits.write_text("")
        with full.running():
            deadline = time.monotonic() + ROUND + 150  # two thousand commits take what they take
            while len({number for _, number in provider.asked}) < COUNT:
                assert time.monotonic() < deadline, "not all were asked in a round"
                time.sleep(0.5)
            asked = [at for at, _ in provider.asked]
            written = times(commits, since=asked[0])
            most, average = in_a_second(asked)
            most_commits, average_commits = in_a_second(written)
            told.append(f"{start}: {len(asked)} asked, at most {most:.1f}/s (average {average:.1f})")
            told.append(f"  commits: {len(written)}, at most {most_commits:.1f}/s (average {average_commits:.1f})")
            assert most <= 2 * COUNT / ROUND
            if start == "restart":  # at first each gets its groups
                assert most_commits <= 4 * COUNT / ROUND
                began = time.time()
                provider.groups = []
                full.wait_for(r"\[C .*no members any more.*all at once", timeout=RECHECK + 60)
                took = time.time() - began
                most, _ = in_a_second(times(commits, since=began))
                told.append(f"all out at once: held back after {took:.1f} s; commits at most {most:.1f}/s")
                assert took <= RECHECK + 30
                assert most <= 50
                held = full.api("GET", "/casa-hub/status", token="token-of-the-operator").json()["held_back"]
                assert len(held) > COUNT // 10
    assert '"access-ended"' not in full.log
    with capsys.disabled():
        print("\n" + "\n".join(told))


def times(file: Path, *, since: float) -> list[float]:
    return [at for line in file.read_text().split() if (at := float(line)) >= since]
