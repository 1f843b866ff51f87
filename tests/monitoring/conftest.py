"""One real hub, with people who log in and servers that run, and a real Prometheus that reads it."""

from __future__ import annotations

import secrets
from collections.abc import Iterator

import pytest
import requests
import yaml

from casa_hub.issuer.tokens import new_private_key
from tests.hub.conftest import MakeHub, casa_idp, make_hub, provider  # noqa: F401 - fixtures
from tests.support.facility_config import credentials, make_keys
from tests.support.hub import Browser, Hub
from tests.support.idp import IdP
from tests.support.local_servers import end
from tests.support.peers import require
from tests.support.person import Person
from tests.support.prometheus import FILES, RULES, Prometheus, Target
from tests.support.waiting import until

TOKEN = secrets.token_hex(16)
#: Prometheus' service is the one of the values.
CHART = yaml.safe_load((FILES / "values.yaml").read_text())["hub"]
[SERVICE] = CHART["services"]
CONFIG = f"""
c.JupyterHub.spawner_class = "casa-local"
c.JupyterHub.tornado_settings = {{"slow_spawn_timeout": 50, "slow_stop_timeout": 50}}
c.JupyterHub.services.append({{"name": {SERVICE!r}, "api_token": {TOKEN!r}}})
c.JupyterHub.load_roles += [{{"name": name, **role}} for name, role in {CHART["loadRoles"]!r}.items()]
c.FacilityIssuer.keys = "issuer"
c.FacilityIssuer.vo = "cms"
c.FacilityIssuer.url = "https://hub.example.org/hub/casa/issuer"
c.TraefikRoutes.directory = "traefik"
c.LocalDelivery.directory = "servers"
c.LocalDelivery.network = "127.124.0.0/16"
from casa_hub.servers import mending
mending._LOOK = 1.0
c.TokenExchange.services = {{"rucio": {{"preset": "rucio"}}}}
""" + credentials("xcache", "htcondor", "dask", "bearer", "exchange")


@pytest.fixture(scope="module")
def hub(make_hub: MakeHub, provider: IdP) -> Iterator[Hub]:  # noqa: F811
    """A hub to which has happened what gives it each of its series."""
    hub = make_hub(CONFIG)
    (hub.directory / "traefik").mkdir()
    make_keys(hub.directory)
    (hub.directory / "issuer").mkdir()
    (hub.directory / "issuer/1.pem").write_bytes(new_private_key()[1])
    hub.start()
    try:
        person = Person(hub, provider)
        assert person.browser.spawn().status_code == 201, hub.log[-5000:]
        lose_a_route(hub)
        provider.answers["/oauth2/token"] = (503, "<html>Maintenance</html>")
        assert Browser(hub).log_in(person.sub).status_code == 503
        provider.reset()
        yield hub
    finally:
        end(hub)


def lose_a_route(hub: Hub) -> None:
    """Let the directory of routes be away until the hub has told that one is missing."""
    directory = hub.directory / "traefik"
    away = directory.rename(hub.directory / "away")
    directory.touch()  # no directory, so that no route can be made there
    until(lambda: 'casa_hub_missing{what="routes"} 1' in metrics(hub), "the hub tells of the missing route")
    directory.unlink()
    away.rename(directory)
    until(lambda: 'casa_hub_missing{what="routes"} 0' in metrics(hub), "it is there again")


def metrics(hub: Hub) -> str:
    """As Prometheus gets them."""
    headers = {"Authorization": f"Bearer {TOKEN}"}
    answer = requests.get(f"{hub.url}/hub/metrics", headers=headers, timeout=30)
    assert answer.status_code == 200, answer.text
    return answer.text


@pytest.fixture(scope="module")
def prometheus(hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """It reads the hub as the job `hub`, and without a token as the job `stranger`."""
    targets = {"hub": Target(hub.url, TOKEN), "stranger": Target(hub.url, None)}
    directory = tmp_path_factory.mktemp("prometheus")
    with require(lambda: Prometheus(directory, targets, rules=[RULES])) as server:
        # Rates need two samples, and a panel compares with those ten seconds ago.
        until(lambda: server.query("count_over_time(casa_hub_servers_unkept[1m]) > 2"), "it has read the hub")
        yield server
