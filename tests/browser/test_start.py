"""The page of a server's start, in a real browser."""

from __future__ import annotations

import os

import pytest
from playwright.sync_api import expect

from casa_hub.testing.fixtures import MakeHub
from tests.support.chromium import OpenTab
from tests.support.facility_config import credentials
from tests.support.hub import SMALL_SERVER
from tests.support.idp import IdP

pytestmark = [pytest.mark.both_hubs, pytest.mark.debian]

FACILITY = """
c.CasaOAuthenticator.provider = "wlcg-iam"
c.CasaOAuthenticator.allow_all = True
""" + credentials("xcache", "htcondor", required=("xcache",))
#: A server that comes up when the test writes into the FIFO.
WAITING = f"""
c.JupyterHub.tornado_settings = {{"slow_spawn_timeout": 0}}
c.CasaLocalSpawner.cmd = ["sh", "-c", f"read go < {{os.path.abspath('go')}} && exec {{sys.executable}} {SMALL_SERVER}"]
"""


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
