"""The pages of a log-in, in a real browser."""

from __future__ import annotations

import pytest
from playwright.sync_api import expect

from tests.hub.conftest import MakeHub
from tests.support.chromium import OpenTab
from tests.support.hub import Hub
from tests.support.idp import IdP

pytestmark = [pytest.mark.debian, pytest.mark.shortened]

MEMBER = ["/cms", "/cms/uscms"]
JOIN = "https://iam.example.org/join"


@pytest.fixture(scope="module")
def hub(make_hub: MakeHub) -> Hub:
    return make_hub(
        'c.JupyterHub.default_url = "/hub/home"\n',
        allowed_groups=["/cms/uscms", "/cms/opendata/*"],
        required_groups=["/cms"],
        join_url=JOIN,
    ).start()


def person(idp: IdP, name: str, groups: object) -> str:
    """The subject of somebody whose name and groups the provider says."""
    idp.put_user(f"sub-of-{name}", preferred_username=name, **{"wlcg.groups": groups})
    return f"sub-of-{name}"


@pytest.mark.both_hubs
def test_a_member_signs_in_and_is_at_home(hub: Hub, idp: IdP, open_tab: OpenTab) -> None:
    tab = open_tab(hub)
    tab.page.goto("/hub/login")
    tab.judge("sign-in")
    tab.sign_in(person(idp, "ada", MEMBER))
    expect(tab.page).to_have_url(f"{hub.url}/hub/home")
    expect(tab.page.get_by_role("button", name="Start My Server")).to_be_visible()
    tab.judge("home")


def test_somebody_who_is_refused_reads_why(hub: Hub, idp: IdP, open_tab: OpenTab) -> None:
    tab = open_tab(hub)
    tab.sign_in(person(idp, "stranger", ["/cms", "/cms/other"]))
    expect(tab.page.get_by_role("heading")).to_have_text("You are signed in, but not allowed here")
    expect(tab.page.locator("#casa-refused")).to_contain_text("/cms/opendata")
    expect(tab.page.locator(f'a[href="{JOIN}"]')).to_be_visible()
    tab.judge("refused")


def test_somebody_whose_sign_in_makes_no_sense_may_try_again(hub: Hub, idp: IdP, open_tab: OpenTab) -> None:
    tab = open_tab(hub)
    tab.sign_in(person(idp, "odd", 7))
    expect(tab.page.get_by_role("heading")).to_have_text("Signing in at WLCG IAM failed")
    tab.judge("failed")
    person(idp, "odd", MEMBER)
    tab.page.get_by_role("link", name="Try again").click()
    tab.consent("sub-of-odd")
    expect(tab.page).to_have_url(f"{hub.url}/hub/home")


def test_who_comes_while_the_provider_is_down_reads_that_it_is(hub: Hub, idp: IdP, open_tab: OpenTab) -> None:
    idp.answers["/oauth2/token"] = (503, "<h1>Maintenance</h1>")
    tab = open_tab(hub)
    tab.sign_in(person(idp, "late", MEMBER))
    expect(tab.page.get_by_role("heading")).to_have_text("WLCG IAM gives no usable answer")
    tab.judge("unavailable")


def test_somebody_whom_the_provider_does_not_confirm_reads_a_notice(hub: Hub, idp: IdP, open_tab: OpenTab) -> None:
    tab = open_tab(hub)
    tab.sign_in(person(idp, "unconfirmed", MEMBER))
    expect(tab.page.get_by_role("alert")).to_have_count(0)
    idp.answers["/userinfo"] = (503, "<h1>Maintenance</h1>")
    hub.put_forward(3600)
    tab.page.reload()
    expect(tab.page.get_by_role("alert")).to_contain_text("has not confirmed your membership since")
    tab.judge("notice")
