"""The pages of a log-in, in a real browser."""

from __future__ import annotations

import pytest
from playwright.sync_api import expect

from tests.hub.conftest import MakeHub
from tests.support.chromium import OpenTab
from tests.support.hub import Hub
from tests.support.idp import IdP

pytestmark = [pytest.mark.both_hubs, pytest.mark.debian]

SUB = "sub-of-ada"


@pytest.fixture(scope="module")
def hub(make_hub: MakeHub) -> Hub:
    return make_hub(
        allowed_groups=["/cms/uscms", "/cms/opendata/*"],
        required_groups=["/cms"],
        join_url="https://iam.example.org/join",
    ).start()


def person(idp: IdP, *groups: str) -> str:
    """Ada, in these groups."""
    idp.put_user(SUB, preferred_username="ada", **{"wlcg.groups": list(groups)})
    return SUB


def test_a_member_signs_in_and_is_at_home(hub: Hub, idp: IdP, open_tab: OpenTab) -> None:
    tab = open_tab(hub)
    tab.page.goto("/hub/login")
    tab.judge("sign-in")
    tab.sign_in(person(idp, "/cms", "/cms/uscms"))
    expect(tab.page).to_have_url(f"{hub.url}/hub/home")
    expect(tab.page.get_by_role("button", name="Start My Server")).to_be_visible()
    tab.judge("home")
