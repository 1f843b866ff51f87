"""Who comes in at our hub, and what a server holds. Run: pytest"""

from pathlib import Path

import pytest

from casa_hub.testing import FacilityHub, IdP, MakeHub


@pytest.fixture(scope="module")
def hub(casa_hub_factory: MakeHub) -> FacilityHub:
    return casa_hub_factory(Path(__file__).with_name("jupyterhub_config.py")).start()


def person(idp: IdP, name: str, *groups: str) -> str:
    """Somebody at CMS IAM, as it tells of them."""
    idp.put_user(f"sub-of-{name}", preferred_username=name, **{"wlcg.groups": list(groups)})
    return f"sub-of-{name}"


def test_a_member_of_uscms_gets_a_server_with_all_that_we_promise(hub: FacilityHub, casa_idp: IdP) -> None:
    browser = hub.browser()
    assert browser.log_in(person(casa_idp, "ada", "/cms", "/cms/uscms")).ok
    assert browser.spawn().ok
    given = hub.given("ada")
    assert given.missing == {}
    assert {"xcache_token", "condor_token", "hostcert.pem", "access_token"} <= set(given.files)
    assert given.environment["XCACHE_HOST"] == "xcache.example.org"
    assert given.credentials["htcondor"]["identifiers"]["sub"] == "af-ada@example.org"
    assert {route.host for route in given.routes} == {"ada.dask.example.org", "ada.dask-worker.example.org"}


def test_who_is_only_in_cms_is_told_which_group_is_missing(hub: FacilityHub, casa_idp: IdP) -> None:
    page = hub.browser().log_in(person(casa_idp, "bob", "/cms"))
    assert page.status_code == 403
    assert "/cms/uscms" in page.text
    assert "https://hub.example.org/how-to-join" in page.text


def test_who_has_left_the_group_gets_no_server_any_more(hub: FacilityHub, casa_idp: IdP) -> None:
    browser = hub.browser()
    browser.log_in(person(casa_idp, "eve", "/cms", "/cms/uscms"))
    person(casa_idp, "eve", "/cms")
    hub.put_forward(60)  # a "yes" counts for half a minute
    answer = browser.spawn()
    assert answer.status_code == 403
    assert "/cms/uscms" in answer.text
