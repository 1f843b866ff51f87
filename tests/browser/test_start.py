"""The page of a server's start, in a real browser."""

from __future__ import annotations

import os

import pytest
from playwright.sync_api import expect

from casa_hub.testing.fixtures import MakeHub
from casa_hub.testing.idp import EXCHANGE
from tests.support.chromium import OpenTab
from tests.support.facility_config import credentials
from tests.support.hub import SMALL_SERVER
from tests.support.idp import IdP

pytestmark = [pytest.mark.debian, pytest.mark.shortened]

FACILITY = """
c.CasaOAuthenticator.provider = "wlcg-iam"
c.CasaOAuthenticator.allow_all = True
""" + credentials("xcache", "htcondor", required=("xcache",))
#: A server that comes up when the test writes into the FIFO.
WAITING = f"""
c.JupyterHub.tornado_settings = {{"slow_spawn_timeout": 0}}
c.CasaLocalSpawner.cmd = ["sh", "-c", f"read go < {{os.path.abspath('go')}} && exec {{sys.executable}} {SMALL_SERVER}"]
"""


@pytest.mark.both_hubs
def test_the_page_of_a_start_tells_what_is_missing_and_leads_to_the_server(
    casa_hub_factory: MakeHub, casa_idp: IdP, open_tab: OpenTab
) -> None:
    hub = casa_hub_factory(FACILITY, overrides=WAITING, proxy=True)
    os.mkfifo(hub.directory / "go")
    (hub.directory / "keys" / "htcondor").unlink()
    hub.start()
    casa_idp.put_user("sub-of-ada", preferred_username="ada")
    tab = open_tab(hub)
    tab.sign_in("sub-of-ada")
    tab.page.get_by_role("button", name="Start My Server").click()
    log = tab.page.locator("#progress-log")
    expect(log).to_contain_text("Starting without htcondor: ")
    expect(log).to_contain_text("Server process started")  # from now on nothing on the page moves
    tab.page.get_by_text("Event log").click()
    expect(log).to_be_visible()
    tab.judge("start")
    (hub.directory / "go").write_text("go\n")
    expect(tab.page).to_have_url(f"{hub.url}/user/ada/")


EXCHANGES = """
c.CasaOAuthenticator.provider = "keycloak"
c.CasaOAuthenticator.allow_all = True
c.Facility.credentials = ["exchange"]
c.TokenExchange.services = {"rucio": {"preset": "rucio"}, "tape": {"audience": "tape", "scope": "storage.stage:/"}}
"""


def test_the_page_says_who_is_asked_and_then_what_is_refused_and_who_acts(
    casa_hub_factory: MakeHub, casa_idp: IdP, open_tab: OpenTab
) -> None:
    hub = casa_hub_factory(EXCHANGES, overrides=WAITING, proxy=True)
    os.mkfifo(hub.directory / "go")
    hub.start()
    casa_idp.put_user("sub-of-joe", preferred_username="joe")
    casa_idp.exchange_answers["tape"] = (400, {"error": "invalid_scope", "error_description": "Invalid scope"})
    tab = open_tab(hub)
    tab.sign_in("sub-of-joe")
    log = tab.page.locator("#progress-log")
    with casa_idp.holding(EXCHANGE):
        tab.page.get_by_role("button", name="Start My Server").click()
        expect(tab.page.locator("#progress-message")).to_have_text("Asking for a token for Rucio and a token for Tape")
        tab.judge("start-asking")
    expect(log).to_contain_text("Rucio token (openid profile at rucio), valid until ")
    expect(log).to_contain_text("Starting without exchange:tape: ")
    expect(log).to_contain_text("may not ask for the scope storage.stage:/")
    expect(log).to_contain_text("Server process started")
    (hub.directory / "go").write_text("go\n")
    expect(tab.page).to_have_url(f"{hub.url}/user/joe/")
    tab.page.goto("/hub/casa/credentials")
    expect(tab.page.locator('[data-credential="exchange:rucio"]')).to_have_attribute("data-state", "good")
    expect(tab.page.locator('[data-credential="exchange:rucio"]')).to_contain_text("For rucio")
    expect(tab.page.locator('[data-credential="exchange:tape"]')).to_have_attribute("data-state", "missing")
    tab.judge("credentials-exchanged")
