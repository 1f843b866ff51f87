"""The page for administrators, in a real browser."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from playwright.sync_api import expect

from tests.hub.conftest import MakeHub
from tests.hub.test_admin_page import CONFIG, MARKUP, OPERATOR, PAGE
from tests.support.chromium import OpenTab
from tests.support.facility_config import make_keys
from tests.support.hub import Hub
from tests.support.idp import IdP
from tests.support.local_servers import end
from tests.support.person import Person
from tests.support.waiting import until

pytestmark = [pytest.mark.debian, pytest.mark.shortened]


@pytest.fixture(scope="module")
def hub(make_hub: MakeHub) -> Iterator[Hub]:
    config = CONFIG.replace("127.124", "127.125")
    hub = make_hub(config, admin_groups=["/cms/admins"], allowed_groups=["/cms/uscms", f"/cms/{MARKUP}"])
    (hub.directory / "traefik").mkdir()
    make_keys(hub.directory, "dask")
    yield hub.start()
    end(hub)


def test_an_operator_looks_confirms_ignores_renews_and_revokes(hub: Hub, idp: IdP, open_tab: OpenTab) -> None:
    people = [Person(hub, idp) for _ in range(5)]
    works = Person(hub, idp)
    assert works.browser.spawn().status_code == 201
    for person in people:
        person.is_in_groups("/cms")
    idp.put_user("sub-of-eve", preferred_username="eve", **{"wlcg.groups": OPERATOR})
    tab = open_tab(hub)
    tab.sign_in("sub-of-eve")
    page = tab.page
    page.get_by_role("link", name="Facility").click()
    expect(page.get_by_role("heading", name="Facility")).to_be_visible()

    def all_held() -> bool:
        page.goto(PAGE)
        return page.get_by_role("button", name=re.compile("^Confirm person")).count() == len(people)

    until(all_held, "all are held back")
    tab.judge("facility")

    first, second, *_ = people
    page.get_by_role("button", name=f"Ignore {first.name}").click()
    tab.judge("facility-question")
    page.get_by_role("button", name="It is a mistake: go on").press("Enter")
    expect(page.get_by_role("status")).to_contain_text(f"Access goes on for now: {first.name}.")
    page.get_by_role("link", name="Back to the facility").click()
    expect(page.locator(f"tr[data-user={first.name}]").first).to_contain_text("ignored")

    page.get_by_role("button", name=f"Confirm {second.name}").click()
    page.get_by_role("link", name="No, go back").click()
    page.get_by_role("button", name=f"Confirm {second.name}").click()
    page.get_by_role("button", name="It is true: end the access").click()
    expect(page.get_by_role("status")).to_contain_text(f"Access ends: {second.name}.")

    page.goto(PAGE)
    page.get_by_role("searchbox", name="Name, or a part of it").fill(works.name)
    page.get_by_role("button", name="Search").click()
    row = page.locator(f"tr[data-user={works.name}]")
    expect(row).to_contain_text("dask: 20")
    row.get_by_role("button", name="Renew").click()
    page.get_by_role("button", name="Renew now").click()
    expect(page.get_by_role("status")).to_contain_text("Renewed: 1 servers.")
    page.goto(f"{PAGE}?search={works.name}")
    page.locator(f"tr[data-user={works.name}]").get_by_role("button", name="Revoke").click()
    page.get_by_label("Why").fill("The laptop was lost.")
    page.get_by_role("button", name="End the access").click()
    expect(page.get_by_role("status")).to_contain_text("access ended; stopped: the default server")
    page.goto(PAGE)
    expect(page.locator("#casa-admin")).to_contain_text("The laptop was lost.")
    assert works.access() == (False, False)


def test_the_page_works_without_javascript(hub: Hub, idp: IdP, open_tab: OpenTab) -> None:
    user = Person(hub, idp)
    idp.put_user("sub-of-zoe", preferred_username="zoe", **{"wlcg.groups": OPERATOR})
    tab = open_tab(hub, java_script_enabled=False)
    tab.page.goto(f"/hub/oauth_login?next={PAGE}")
    tab.consent("sub-of-zoe")
    tab.page.locator(f"tr[data-user={user.name}]").get_by_role("button", name="Revoke").click()
    tab.page.get_by_role("button", name="End the access").click()
    expect(tab.page.get_by_role("status")).to_contain_text(f"{user.name}: access ended")
