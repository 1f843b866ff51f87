"""Memberships that are lost while servers run, and nobody opens a page: what ends, when, and what doesn't.

Hubs with real servers, routes and tokens, and with times made short by their configuration.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from casa_hub.audit import PREFIX
from casa_hub.processes import signed_in
from tests.hub.conftest import MakeHub
from tests.support.hub import Hub
from tests.support.idp import IdP
from tests.support.person import LOG_IN_AGAIN, NO, Person

RECHECK, GRACE, MAX_AGE = 3.0, 9.0, 12.0
#: Seconds that are promised from the change at the provider to the end of access.
PROMISED = RECHECK + 30

SERVERS = """
c.JupyterHub.spawner_class = "casa-local"
c.JupyterHub.allow_named_servers = True
c.JupyterHub.tornado_settings = {{"slow_spawn_timeout": 20, "slow_stop_timeout": 20}}
c.JupyterHub.services.append({{"name": "operator", "api_token": "token-of-the-operator"}})
c.JupyterHub.load_roles.append(
    {{"name": "operator", "services": ["operator"], "scopes": ["custom:casa-hub:operate", "read:metrics"]}}
)
# Their words are their own: an interrupted one may say what reads like the hub's.
c.Spawner.cmd = ["sh", "-c", 'exec "$0" -m jupyterhub.tests.mocksu "$@" 2>server.log', sys.executable]
c.Facility.credentials = ["bearer", "dask"]
c.Facility.required = ["bearer", "dask"]
c.Facility.bearer_token_file = "access_token"
c.Dask.secret_file = "dask.secret"
c.Dask.domain = "example.org"
c.TraefikRoutes.directory = "traefik"
c.LocalDelivery.directory = "servers"
c.LocalDelivery.network = "127.{net}.0.0/16"
c.Keeper.recheck_interval = {recheck}
c.Keeper.outage_grace = {grace}
c.Keeper.membership_max_age = {max_age}
"""
networks = iter(range(90, 120))

MakeServers = Callable[..., Hub]


@pytest.fixture(scope="module")
def make_servers(make_hub: MakeHub) -> Iterator[MakeServers]:
    """Makes hubs, not yet started, whose servers are ended with the module whatever happens."""
    hubs: list[Hub] = []

    def make(
        more: str = "", *, recheck: float = RECHECK, grace: float = GRACE, max_age: float = MAX_AGE, **traits: Any
    ) -> Hub:
        text = SERVERS.format(net=next(networks), recheck=recheck, grace=grace, max_age=max_age)
        hub = make_hub(text + more, proxy=True, **traits)
        (hub.directory / "traefik").mkdir()
        secret = subprocess.run(["openssl", "rand", "-base64", "48"], check=True, capture_output=True).stdout
        (hub.directory / "dask.secret").write_bytes(secret)
        (hub.directory / "dask.secret").chmod(0o600)
        hubs.append(hub)
        return hub

    yield make
    for hub in hubs:
        hub.stop()
        for path in hub.directory.glob("servers/*/process"):
            process = signed_in(path)
            if process is not None and process.alive:
                os.killpg(process.pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def iam(make_servers: MakeServers) -> Hub:
    return make_servers(provider="wlcg-iam").start()


@pytest.fixture(scope="module")
def keycloak(make_servers: MakeServers) -> Hub:
    return make_servers(provider="keycloak").start()


@pytest.fixture(autouse=True)
def _as_providers_do(idp: IdP) -> None:
    idp.rotate = True


# -- what somebody has -------------------------------------------------------------------------------------------------


class User(Person):
    """Somebody with a server that runs."""

    server: Path
    process: Any

    def starts(self, name: str = "") -> User:
        before = set(self.hub.directory.glob("servers/*/process"))
        answer = self.browser.spawn(name)
        assert answer.status_code in (201, 202), answer.text
        path = f"/user/{self.name}/{name}".rstrip("/") + "/env"
        until(lambda: requests.get(self.hub.url + path, timeout=10).status_code == 200, "the server answers")
        (file,) = set(self.hub.directory.glob("servers/*/process")) - before
        self.server, self.process = file.parent, signed_in(file)
        assert self.effects() == NOTHING
        return self

    def effects(self) -> dict[str, bool]:
        """What has ended so far."""
        page = requests.get(f"{self.hub.url}/user/{self.name}/env", timeout=10, allow_redirects=False)
        return {
            "page refused": not self.browser.is_in(),
            "API token refused": self.api() == 403,
            "file gone": not (self.server / "access_token").exists(),
            "route gone": self.server.name not in "".join(map(Path.read_text, self.routes())),
            "server unreachable": page.status_code != 200,
            "process gone": not self.process.alive,
        }

    def routes(self) -> list[Path]:
        return sorted(self.hub.directory.glob("traefik/*"))

    @property
    def runs(self) -> bool:
        return self.process.alive and (self.server / "access_token").exists()

    def audit(self) -> list[dict[str, Any]]:
        return [event for event in audit(self.hub) if event["username"] == self.name]


NOTHING = dict.fromkeys(
    ["page refused", "API token refused", "file gone", "route gone", "server unreachable", "process gone"], False
)


def audit(hub: Hub) -> list[dict[str, Any]]:
    return [json.loads(line.partition(PREFIX)[2]) for line in hub.log.splitlines() if PREFIX in line]


def until(condition: Callable[[], bool], what: str, *, timeout: float = 40) -> float:
    """Wait for what tells nobody when it happens. Returns the seconds that it took."""
    begin = time.monotonic()
    while not condition():
        assert time.monotonic() - begin < timeout, f"not within {timeout} s: {what}"
        time.sleep(0.1)
    return time.monotonic() - begin


def measured(user: User, begin: float) -> dict[str, float]:
    """Seconds since `begin` until each effect was there."""
    seen: dict[str, float] = {}

    def all_ended() -> bool:
        for effect, there in user.effects().items():
            if there:
                seen.setdefault(effect, round(time.monotonic() - begin, 1))
        return len(seen) == len(NOTHING)

    until(all_ended, f"the end of {user.name}'s access; so far {seen}", timeout=PROMISED)
    return seen


def ended(user: User) -> dict[str, Any]:
    """The audit's last word."""
    until(lambda: any(event["action"] == "access-ended" for event in user.audit()), "the audit's last word")
    return next(event for event in user.audit() if event["action"] == "access-ended")


def metric(hub: Hub, name: str) -> float:
    text = requests.get(
        f"{hub.url}/hub/metrics", headers={"Authorization": "token token-of-the-operator"}, timeout=10
    ).text
    (value,) = re.findall(rf"^{name}(?:{{[^}}]*}})? ([0-9.e+]+)$", text, re.MULTILINE)
    return float(value)


# -- an explicit "no" --------------------------------------------------------------------------------------------------


@pytest.fixture
def user_of(iam: Hub, keycloak: Hub, idp: IdP) -> Callable[[str], User]:
    def make(provider: str) -> User:
        if provider == "keycloak-due":  # access tokens so short-lived that each check is a refresh
            idp.change["/oauth2/token"] = lambda document: document | {"expires_in": 2}
        idp.frozen = provider == "iam"
        hub, claim = (iam, "wlcg.groups") if provider == "iam" else (keycloak, "groups")
        return User(hub, idp, claim)

    return make


@pytest.mark.parametrize("row", NO)
def test_an_explicit_no_ends_all_access_though_nobody_opens_a_page(
    user_of: Callable[[str], User], idp: IdP, row: str, capsys: pytest.CaptureFixture[str]
) -> None:
    provider, happens = NO[row]
    user = user_of(provider).starts()
    happens(user)
    seconds = measured(user, time.monotonic())
    last = ended(user)
    with capsys.disabled():
        print(f"\n{row}: seconds from the change at the provider to each effect: {seconds}")
    assert max(seconds.values()) <= PROMISED
    # For those who must block what was copied out of the server.
    revoked = [event for event in user.audit() if event["action"] == "revoked"]
    assert {event["credential"] for event in revoked} >= {"dask"}
    assert all(event["reason"] == last["reason"] for event in revoked)
    assert all(event["identifiers"] for event in revoked if event["credential"] == "dask")
    # At the provider, and in the hub's own database.
    assert idp.revoked
    assert idp.owner(idp.revoked[-1]) == user.sub
    until(lambda: not user.hub.api("GET", f"/users/{user.name}").json()["auth_state"], "the log-in is forgotten")
    # A cookie is worth nothing any more, also when he is a member again; a new log-in is, and tells what was.
    idp.reset()
    idp.rotate = True
    user.is_in_groups("/cms/uscms")
    assert not user.browser.is_in()
    assert user.browser.log_in(user.sub).status_code == 200
    home = user.browser.page("/hub/home").text
    assert "Your access was ended at" in home
    assert "Your server was stopped." in home


# -- what is no "no" ---------------------------------------------------------------------------------------------------


def several(user_of: Callable[[str], User], table: dict[str, tuple[str, Callable[[Person], None]]]) -> list[User]:
    """Somebody with a server for each row; then all that happens at the same time."""
    users = [(user_of(provider).starts(), happens) for provider, happens in table.values()]
    for user, happens in users:
        happens(user)
    return [user for user, _ in users]


def test_log_in_again_lets_servers_run_until_the_log_in_is_too_old(
    user_of: Callable[[str], User], idp: IdP, capsys: pytest.CaptureFixture[str]
) -> None:
    users = several(user_of, LOG_IN_AGAIN)
    begin = time.monotonic()
    until(lambda: not any(user.browser.is_in() for user in users), "pages ask for a log-in")
    page = users[0].browser.page("/hub/home").text
    assert "Please log in again:" in page
    assert "your servers stop at" in page
    assert all(user.runs and user.api() == 200 for user in users)
    # One does as asked, and all is as before.
    back = users.pop()
    idp.refresh_answers.pop(back.sub, None)
    idp.userinfo_answers.pop(back.sub, None)
    assert back.browser.log_in(back.sub).status_code == 200
    assert back.runs
    for user in users:
        assert ended(user)["reason"].startswith("No new log-in in time")
        until(lambda user=user: all(user.effects().values()), f"the end of {user.name}'s access")
    took = time.monotonic() - begin
    assert MAX_AGE - RECHECK <= took <= MAX_AGE + 30
    assert back.effects() == NOTHING
    with capsys.disabled():
        print(f"\n{len(users)} log-ins that counted {MAX_AGE:g} s more: ended after {took:.1f} s")
