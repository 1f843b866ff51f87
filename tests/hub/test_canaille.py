"""Log in at an independent and strict identity provider: Canaille, by its own forms.

Nothing of it is ours: it checks the client's secret, the redirect address, the nonce and PKCE.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urljoin, urlsplit

import pytest
import requests
from pytest_iam import Server

from casa_hub.identity.errors import OIDCError
from casa_hub.identity.oidc import Issuer
from casa_hub.identity.transport import Client
from casa_hub.identity.verdicts import Verdict
from casa_hub.membership.recheck import FRESH
from tests.hub.test_refresh import GRACE, RECHECK
from tests.support.hub import Browser, Hub, casa_config

SECRET, PASSWORD = "secret-of-the-client-at-canaille", "correct horse battery staple"


@pytest.fixture(scope="module")
def hub(iam_server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    config = casa_config(
        iam_server.url,
        provider="oidc",
        scope=["openid", "profile", "email", "groups"],
        client_id="the-hub",
        client_secret=SECRET,
        allowed_groups=["uscms"],
    )
    hub = Hub(tmp_path_factory.mktemp("hub"), config, proxy=False)
    client = iam_server.models.Client(
        client_id="the-hub",
        client_secret=SECRET,
        client_name="the hub",
        client_uri=hub.url,
        redirect_uris=[f"{hub.url}/hub/oauth_callback"],
        grant_types=["authorization_code", "refresh_token"],
        response_types=["code"],
        scope=["openid", "profile", "email", "groups"],
        token_endpoint_auth_method="client_secret_basic",
    )
    iam_server.backend.save(client)
    client.audience = [client]
    iam_server.backend.save(client)
    with hub.running():
        yield hub
    assert SECRET not in hub.log


def person(server: Server, name: str, *groups: str) -> Any:
    user = server.models.User(
        user_name=name,
        formatted_name=name.title(),
        family_name=name.title(),
        emails=[f"{name}@example.org"],
        password=PASSWORD,
    )
    server.backend.save(user)
    for group in groups:
        existing = server.backend.get(server.models.Group, display_name=group)
        one = existing or server.models.Group(display_name=group, members=[])
        one.members = [*one.members, user]
        server.backend.save(one)
    return user


def submit(browser: Browser, page: requests.Response, **fields: str) -> requests.Response:
    """Send the page's form with what it has hidden in it."""
    hidden = dict(re.findall(r'<input[^>]*type="hidden"[^>]*name="([^"]+)"[^>]*value="([^"]*)"', page.text))
    action = re.search(r'<form[^>]*action="([^"]+)"', page.text)
    url = urljoin(page.url, action[1].replace("&amp;", "&")) if action else page.url
    return browser.post(url, data={**hidden, **fields}, timeout=60)


def log_in(browser: Browser, name: str) -> requests.Response:
    page = browser.page("/hub/oauth_login?next=/hub/home")
    if "login" not in fields(page):
        return page
    page = submit(browser, page, login=name)
    page = submit(browser, page, password=PASSWORD)
    if 'name="answer"' in page.text:
        page = submit(browser, page, answer="accept")
    return page


def fields(page: requests.Response) -> set[str]:
    return set(re.findall(r'name="([^"]+)"', page.text))


async def test_a_refresh_token_is_ended_where_the_provider_offers_it(hub: Hub, iam_server: Server) -> None:
    """RFC 7009, as another implementation than ours understands it.

    The first one: later the clock is put forward, and the hub asks about several users at once, which this provider's
    memory doesn't always survive.
    """
    person(iam_server, "revoked", "uscms")
    assert log_in(Browser(hub), "revoked").status_code == 200
    state = hub.api("GET", "/users/revoked").json()["auth_state"]
    issuer = Issuer(Client(iam_server.url, "the-hub", SECRET))
    try:
        assert await issuer.revoke(state["refresh_token"]) is True
        with pytest.raises(OIDCError) as caught:
            await issuer.refresh(state["refresh_token"], sub=state["casa"]["sub"])
        assert caught.value.answer.verdict is not Verdict.YES
        assert await issuer.revoke(state["refresh_token"]) is True  # it may be asked again
        assert await issuer.revoke("a-token-that-never-was") is True
    finally:
        await issuer.close()
    stranger = Issuer(Client(iam_server.url, "the-hub", "not-the-secret"))
    try:
        with pytest.raises(OIDCError, match="a refresh token could not be revoked"):
            await stranger.revoke(state["refresh_token"])
    finally:
        await stranger.close()


def test_a_member_logs_in_by_the_provider_s_own_forms(hub: Hub, iam_server: Server) -> None:
    person(iam_server, "maria", "uscms")
    browser = Browser(hub)
    answer = log_in(browser, "maria")
    assert (answer.status_code, urlsplit(answer.url).path) == (200, "/hub/home")
    assert browser.user() == "maria"
    assert hub.api("GET", "/users/maria").json()["groups"] == ["/uscms"]


def test_somebody_without_the_group_is_refused(hub: Hub, iam_server: Server) -> None:
    person(iam_server, "nobody", "others")
    answer = log_in(Browser(hub), "nobody")
    assert answer.status_code == 403
    assert "/others" in answer.text


def test_a_refresh_finds_the_lost_group(hub: Hub, iam_server: Server) -> None:
    user = person(iam_server, "leaver", "uscms")
    browser = Browser(hub)
    assert log_in(browser, "leaver").status_code == 200
    before = hub.api("GET", "/users/leaver").json()["auth_state"]
    hub.put_forward(RECHECK + 1)
    assert browser.is_in()
    after = hub.api("GET", "/users/leaver").json()["auth_state"]
    assert after["access_token"] != before["access_token"]
    group = iam_server.backend.get(iam_server.models.Group, display_name="uscms")
    group.members = [member for member in group.members if member.user_name != user.user_name]
    iam_server.backend.save(group)
    hub.put_forward(RECHECK + 1)
    assert not browser.is_in()


def test_a_locked_account_ends_with_the_grace_as_this_provider_doesn_t_name_it(hub: Hub, iam_server: Server) -> None:
    """Authlib, on which it is built, says ``invalid_request``: that is what it says to a faulty client as well."""
    user = person(iam_server, "locked", "uscms")
    browser = Browser(hub)
    assert log_in(browser, "locked").status_code == 200
    user.lock_date = datetime.now(UTC) - timedelta(minutes=1)
    iam_server.backend.save(user)
    hub.put_forward(RECHECK + 1)
    assert browser.is_in()
    hub.wait_for("Membership of locked: .*There is no user for this token")
    hub.put_forward(GRACE)
    assert not browser.is_in()
    again = Browser(hub)
    log_in(again, "locked")
    assert not again.is_in()


def test_a_wrong_client_secret_is_the_operator_s_affair(hub: Hub, iam_server: Server) -> None:
    person(iam_server, "patient", "uscms")
    browser = Browser(hub)
    assert log_in(browser, "patient").status_code == 200
    client = iam_server.backend.get(iam_server.models.Client, client_id="the-hub")
    client.client_secret = "changed"
    iam_server.backend.save(client)
    try:
        hub.put_forward(RECHECK + 1)
        assert browser.is_in()
        assert log_in(Browser(hub), "patient").status_code == 503
    finally:
        client.client_secret = SECRET
        iam_server.backend.save(client)
    hub.put_forward(FRESH + 1)
    assert browser.is_in()
