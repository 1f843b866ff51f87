"""The page "My credentials", in a real browser."""

from __future__ import annotations

import pytest
from playwright.sync_api import Locator, expect

from casa_hub.testing.fixtures import MakeHub
from tests.support.chromium import OpenTab, Tab
from tests.support.facility_config import credentials
from tests.support.hub import SMALL_SERVER
from tests.support.idp import IdP

pytestmark = [pytest.mark.debian, pytest.mark.shortened]

FACILITY = """
c.CasaOAuthenticator.provider = "wlcg-iam"
c.CasaOAuthenticator.allowed_groups = {"/cms/uscms"}
""" + credentials("xcache", "htcondor", "dask", "bearer", required=())
SERVERS = f"""
c.CasaLocalSpawner.cmd = [sys.executable, {SMALL_SERVER!r}]
"""


def row(tab: Tab, name: str) -> Locator:
    return tab.page.locator(f'[data-credential="{name}"]')


def test_a_person_sees_their_credentials_and_renews_them(
    casa_hub_factory: MakeHub, casa_idp: IdP, open_tab: OpenTab
) -> None:
    hub = casa_hub_factory(FACILITY, overrides=SERVERS, proxy=True)
    key = hub.directory / "keys" / "htcondor"
    content = key.read_bytes()
    key.unlink()
    hub.start()
    casa_idp.put_user("sub-of-ada", preferred_username="ada", **{"wlcg.groups": ["/cms", "/cms/uscms"]})
    tab = open_tab(hub)
    tab.sign_in("sub-of-ada")
    tab.page.get_by_role("link", name="My credentials").click()
    expect(tab.page.get_by_role("heading", name="My credentials")).to_be_visible()
    expect(tab.page.locator("#casa-credentials")).to_contain_text("No server of yours runs.")
    tab.judge("credentials-none")

    hub.api("POST", "/users/ada/server").raise_for_status()
    tab.page.reload()
    expect(row(tab, "xcache")).to_contain_text("11 h 59 min left")
    expect(row(tab, "htcondor")).to_contain_text("HTCondor.key_file")
    tab.judge("credentials-missing")

    key.write_bytes(content)
    tab.page.get_by_role("button", name="Renew now").click()
    expect(tab.page.get_by_role("status").first).to_contain_text("Renewed.")
    expect(row(tab, "htcondor")).to_have_attribute("data-state", "good")
    tab.judge("credentials")


def test_everything_on_the_page_is_reached_by_the_keyboard(
    casa_hub_factory: MakeHub, casa_idp: IdP, open_tab: OpenTab
) -> None:
    hub = casa_hub_factory(FACILITY, overrides=SERVERS, proxy=True).start()
    casa_idp.put_user("sub-of-eve", preferred_username="eve", **{"wlcg.groups": ["/cms", "/cms/uscms"]})
    tab = open_tab(hub, permissions=["clipboard-read", "clipboard-write"])
    tab.sign_in("sub-of-eve")
    hub.api("POST", "/users/eve/server").raise_for_status()
    tab.page.goto("/hub/casa/credentials")
    expect(row(tab, "dask")).to_be_visible()
    reached = []
    while "Copy the address of Dask dashboard" not in reached:
        assert len(reached) < 30, reached
        tab.page.keyboard.press("Tab")
        reached.append(tab.page.evaluate("document.activeElement.ariaLabel || document.activeElement.innerText.trim()"))
    for name in (
        "Download laptop bundle",
        "Renew now",
        "Copy the address of Dask scheduler",
    ):
        assert name in reached
    tab.page.keyboard.press("Enter")
    expect(tab.page.locator("#casa-copied")).to_have_text(f"Copied {hub.url}/user/eve/proxy/8785/status")
    assert tab.page.evaluate("navigator.clipboard.readText()") == f"{hub.url}/user/eve/proxy/8785/status"
