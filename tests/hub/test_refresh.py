"""Memberships that change, and identity providers that answer badly, as the next request to the hub finds it."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import requests

from casa_hub.membership.recheck import FRESH
from tests.hub.conftest import MakeHub
from tests.support.hub import Browser, Hub
from tests.support.idp import IdP
from tests.support.person import CANT_SAY, LOG_IN_AGAIN, MEMBER, NO, Person, dead, refused
from tests.support.scale import one_for_both_hubs

RECHECK, GRACE, MAX_AGE = 300, 14400, 86400

#: Here nobody asks but who is told to, and requests are counted. What follows from verdicts besides, without any
#: request, is in test_membership_lost.
ONLY_REQUESTS = """
from casa_hub.membership.mass_loss import MassLoss
from casa_hub.membership.rounds import Rounds
Rounds.begin = lambda self: None
MassLoss.heard = lambda self, *_: None
"""
#: Pages wait for the provider's answer, however slow this machine is.
PATIENT = """
import casa_hub.membership.admission
casa_hub.membership.admission.PATIENCE = 60
"""


@pytest.fixture(scope="module")
def iam(make_hub: MakeHub) -> Hub:
    """Groups are frozen in the access token: a re-check is a refresh grant first."""
    return make_hub(ONLY_REQUESTS + PATIENT, proxy=True, provider="wlcg-iam", admin_groups=["/cms/operators"]).start()


@pytest.fixture(scope="module")
def keycloak(make_hub: MakeHub) -> Hub:
    """Userinfo is live: it is asked with the old access token while that lives."""
    return make_hub(ONLY_REQUESTS + PATIENT, provider="keycloak").start()


@pytest.fixture(autouse=True)
def _as_providers_do(idp: IdP) -> None:
    idp.rotate = True


# -- a member goes on --------------------------------------------------------------------------------------------------


@pytest.mark.both_hubs
def test_a_member_goes_on_and_is_asked_for_once_in_an_interval(iam: Hub, idp: IdP) -> None:
    person = Person(iam, idp)
    assert person.access() == (True, True)
    assert idp.requests["refresh_token"] == 0
    for number in (1, 2, 3):
        iam.put_forward(RECHECK - 60)
        assert person.access() == (True, True)
        assert idp.requests["refresh_token"] == number - 1
        iam.put_forward(61)
        assert person.access() == (True, True)
        assert idp.requests["refresh_token"] == number


def test_live_userinfo_is_asked_without_a_refresh_until_the_token_is_due(keycloak: Hub, idp: IdP) -> None:
    person = Person(keycloak, idp, "groups")
    asked = idp.requests["/userinfo"]
    keycloak.put_forward(RECHECK + 1)
    assert person.access() == (True, True)
    assert (idp.requests["/userinfo"] - asked, idp.requests["refresh_token"]) == (1, 0)
    keycloak.put_forward(2400)  # two thirds of an hour
    assert person.access() == (True, True)
    assert idp.requests["refresh_token"] == 1


def test_an_access_token_that_died_early_is_renewed_before_a_log_in_is_asked_for(keycloak: Hub, idp: IdP) -> None:
    person = Person(keycloak, idp, "groups")
    dead_token = person.stored()["access_token"]

    def userinfo(environ: Any, start_response: Any) -> Any:
        if environ["HTTP_AUTHORIZATION"] == f"Bearer {dead_token}":
            start_response("401 Unauthorized", [("Content-Type", "application/json")])
            return [b'{"error": "invalid_token"}']
        start_response("200 OK", [("Content-Type", "application/json")])
        return [f'{{"sub": "{person.sub}", "groups": ["/cms/uscms"]}}'.encode()]

    idp.answers["/userinfo"] = userinfo
    keycloak.put_forward(RECHECK + 1)
    assert person.access() == (True, True)
    assert idp.requests["refresh_token"] == 1


# -- the tables --------------------------------------------------------------------------------------------------------


@pytest.fixture
def person_of(request: pytest.FixtureRequest, idp: IdP) -> Callable[[str], Person]:
    """Somebody at a provider, whose next request is one for which the provider is asked."""

    def make(provider: str) -> Person:
        name, claim = ("iam", "wlcg.groups") if provider == "iam" else ("keycloak", "groups")
        hub: Hub = request.getfixturevalue(name)
        person = Person(hub, idp, claim)
        idp.frozen = provider == "iam"
        hub.put_forward(2401 if provider == "keycloak-due" else RECHECK + 1)
        return person

    return make


@pytest.mark.parametrize("row", one_for_both_hubs(NO))
def test_an_explicit_no_ends_access(person_of: Callable[[str], Person], row: str) -> None:
    provider, happens = NO[row]
    person = person_of(provider)
    happens(person)
    assert person.access() == (False, False)
    assert person.api() == 403
    # What is at the provider again is here again, soon and without a new log-in.
    person.idp.reset()
    person.idp.rotate = True
    person.is_in_groups(*MEMBER)
    person.hub.put_forward(FRESH + 1)
    assert person.access() == (True, True)


#: Seconds: the default of `Keeper.revoked_grace`.
REVOKED_GRACE = 3600


@pytest.mark.parametrize("row", one_for_both_hubs(LOG_IN_AGAIN))
def test_a_sign_in_taken_back_asks_pages_for_a_new_one_while_tokens_go_on_for_its_grace(
    person_of: Callable[[str], Person], row: str
) -> None:
    """It may be of an account that was deleted, which went on for a day."""
    provider, happens = LOG_IN_AGAIN[row]
    person = person_of(provider)
    happens(person)
    assert person.access() == (False, True)
    assert person.hub.api("POST", f"/users/{person.name}/server").status_code == 403  # nothing new by it
    person.hub.put_forward(REVOKED_GRACE - 60)
    assert person.access() == (False, True)
    person.hub.put_forward(60)
    assert person.access() == (False, False)
    person.idp.reset()
    person.idp.rotate = True
    assert person.browser.log_in(person.sub).status_code == 200
    assert person.access() == (True, True)


@pytest.mark.parametrize("row", LOG_IN_AGAIN)
def test_a_sign_in_that_has_run_out_asks_pages_for_a_new_one_while_tokens_go_on_for_a_time(
    person_of: Callable[[str], Person], idp: IdP, row: str
) -> None:
    provider, happens = LOG_IN_AGAIN[row]
    idp.refresh_life = 120  # over when the provider is next asked
    person = person_of(provider)
    happens(person)
    assert person.access() == (False, True)
    # Not because a token was let through a moment ago.
    assert person.access() == (False, True)
    asked = person.idp.requests["refresh_token"]
    person.hub.put_forward(MAX_AGE - 3600)
    assert person.access() == (False, True)
    person.hub.put_forward(3600)
    assert person.access() == (False, False)
    assert person.idp.requests["refresh_token"] == asked  # nobody flogs a dead token
    person.idp.reset()
    person.idp.rotate = True
    assert person.browser.log_in(person.sub).status_code == 200
    assert person.access() == (True, True)


@pytest.mark.parametrize("row", one_for_both_hubs(CANT_SAY))
def test_access_goes_on_for_a_grace_time_when_the_provider_can_t_say(
    person_of: Callable[[str], Person], row: str
) -> None:
    provider, happens = CANT_SAY[row]
    person = person_of(provider)
    happens(person)
    assert person.access() == (True, True)
    person.hub.put_forward(GRACE - 2600)
    assert person.access() == (True, True)
    person.hub.put_forward(2600)
    assert person.access() == (False, False)
    person.idp.reset()
    person.idp.rotate = True
    person.is_in_groups(*MEMBER)
    person.hub.put_forward(FRESH + 1)
    assert person.access() == (True, True)


def test_a_page_within_the_grace_waits_two_seconds_at_most_and_the_next_ones_not_at_all(
    make_hub: MakeHub, idp: IdP
) -> None:
    with make_hub(ONLY_REQUESTS).running() as hub:
        person = Person(hub, idp)
        hub.put_forward(RECHECK + 1)
        took = []
        with idp.holding("refresh_token"):
            for _ in range(5):
                begin = time.monotonic()
                assert person.browser.is_in()
                took.append(time.monotonic() - begin)
                assert person.api() == 200
            assert idp.arrived.is_set()
        first, *others = took
        assert 1.5 < first < 6  # who waits for the provider waits for 10 s
        assert sorted(others)[1] < 1  # one or two may meet a machine that is busy
        # The answer that came late counts, and was the only one asked for.
        assert person.access() == (True, True)
        assert idp.requests["refresh_token"] == 1


def test_a_person_without_a_yes_to_go_on_is_not_let_in_by_impatience(iam: Hub, idp: IdP) -> None:
    person = Person(iam, idp)
    iam.put_forward(GRACE + 1)
    with idp.holding("refresh_token") as event, ThreadPoolExecutor() as pool:
        page = pool.submit(person.browser.is_in)
        assert idp.arrived.wait(60)
        assert not page.done()
        event.set()
        assert page.result() is True


# -- groups frozen in the token ------------------------------------------------------------------------------------


def test_a_group_lost_behind_a_frozen_token_is_found_by_the_refresh(iam: Hub, idp: IdP) -> None:
    idp.frozen = True
    person = Person(iam, idp)
    person.is_in_groups("/cms")
    token = person.stored()["access_token"]
    # Userinfo goes on saying what was true: with the old token nobody would ever notice.
    answer = requests.get(f"{idp.issuer}/userinfo", headers={"Authorization": f"Bearer {token}"}, timeout=10)
    assert "/cms/uscms" in answer.json()["wlcg.groups"]
    iam.put_forward(RECHECK + 1)
    assert person.access() == (False, False)


@pytest.mark.both_hubs
def test_groups_and_administration_follow_at_a_re_check(iam: Hub, idp: IdP) -> None:
    person = Person(iam, idp, groups=["/cms/uscms", "/cms/operators"])
    assert person.browser.page("/hub/admin").status_code == 200
    person.is_in_groups("/cms/uscms", "/cms/new")
    iam.put_forward(RECHECK + 1)
    assert person.browser.page("/hub/admin").status_code == 403
    user = iam.api("GET", f"/users/{person.name}").json()
    assert (user["admin"], "admin" in user["roles"]) == (False, False)
    assert set(user["groups"]) == {"/cms/uscms", "/cms/new"}
    person.is_in_groups("/cms/uscms", "/cms/operators")
    iam.put_forward(RECHECK + 1)
    assert person.browser.page("/hub/admin").status_code == 200


@pytest.mark.both_hubs
def test_a_refused_log_in_ends_what_an_earlier_one_began(iam: Hub, idp: IdP) -> None:
    person = Person(iam, idp)
    person.is_in_groups("/cms")
    assert person.access() == (True, True)  # nobody has asked yet
    assert Browser(iam).log_in(person.sub).status_code == 403
    assert person.access() == (False, False)


def test_a_refused_log_in_ends_also_what_could_not_be_re_checked(iam: Hub, idp: IdP) -> None:
    """Without refresh tokens an earlier log-in's "yes" went on for its whole age, though the provider had said "no"."""
    idp.rotate = False
    idp.change["/oauth2/token"] = lambda document: {k: v for k, v in document.items() if k != "refresh_token"}
    person = Person(iam, idp)
    person.is_in_groups("/cms")
    assert Browser(iam).log_in(person.sub).status_code == 403
    assert person.access() == (False, False)
    iam.put_forward(FRESH + 1)
    assert person.access() == (False, False)


def test_somebody_else_of_the_same_name_ends_nothing(iam: Hub, idp: IdP) -> None:
    person = Person(iam, idp)
    idp.put_user("an-impostor", preferred_username=person.name, **{"wlcg.groups": ["/cms"]})
    assert Browser(iam).log_in("an-impostor").status_code == 403
    assert person.access() == (True, True)


def test_a_name_that_got_another_owner_is_refused_at_a_re_check(iam: Hub, idp: IdP) -> None:
    """The binding is looked at each time, not only at the log-in."""
    person = Person(iam, idp)
    with sqlite3.connect(iam.directory / "hub.sqlite") as db:
        db.execute("UPDATE casa_hub_identities SET sub = 'somebody-else' WHERE username = ?", [person.name])
    iam.put_forward(RECHECK + 1)
    assert person.access() == (False, False)


# -- tokens are never lost ---------------------------------------------------------------------------------------------


@pytest.mark.both_hubs
def test_a_rotated_refresh_token_is_stored_at_once(iam: Hub, idp: IdP) -> None:
    person = Person(iam, idp)
    seen = {person.stored()["refresh_token"]}
    for _ in range(3):
        iam.put_forward(RECHECK + 1)
        assert person.access() == (True, True)
        stored = person.stored()
        assert stored["refresh_token"] == idp.token_answers[-1]["refresh_token"]
        assert stored["access_token"] == idp.token_answers[-1]["access_token"]
        seen.add(stored["refresh_token"])
    assert len(seen) == 4


def test_a_rotated_refresh_token_is_stored_though_nothing_else_works(iam: Hub, idp: IdP) -> None:
    person = Person(iam, idp)
    idp.answers["/userinfo"] = (500, {})
    iam.put_forward(RECHECK + 1)
    assert person.access() == (True, True)
    assert person.stored()["refresh_token"] == idp.token_answers[-1]["refresh_token"]
    idp.answers.clear()
    iam.put_forward(RECHECK + 1)
    assert person.access() == (True, True)
    assert idp.requests["refresh_token"] == 2


def test_tokens_beside_a_forged_id_token_are_not_used_but_the_refresh_token_is_kept(iam: Hub, idp: IdP) -> None:
    person = Person(iam, idp)
    before = person.stored()
    idp.change["/oauth2/token"] = lambda document: {**document, "id_token": "nonsense"}
    iam.put_forward(RECHECK + 1)
    assert person.access() == (True, True)  # can't say
    stored = person.stored()
    assert stored["access_token"] == before["access_token"]
    assert stored["refresh_token"] == idp.token_answers[-1]["refresh_token"] != before["refresh_token"]
    idp.change.clear()
    iam.put_forward(FRESH + 1)
    assert person.access() == (True, True)
    assert person.stored()["access_token"] == idp.token_answers[-1]["access_token"]


@pytest.mark.parametrize("odd", [{"token_type": "mac"}, {"access_token": "\ud800"}], ids=["no Bearer", "no token"])
def test_a_rotated_refresh_token_is_stored_though_its_answer_is_odd(iam: Hub, idp: IdP, odd: dict[str, str]) -> None:
    person = Person(iam, idp)
    before = person.stored()
    idp.change["/oauth2/token"] = lambda document: {**document, **odd}
    iam.put_forward(RECHECK + 1)
    assert person.access() == (True, True)  # can't say
    stored = person.stored()
    assert stored["access_token"] == before["access_token"]
    assert stored["refresh_token"] == idp.token_answers[-1]["refresh_token"] != before["refresh_token"]


def test_an_answer_without_a_refresh_token_keeps_the_old_one(iam: Hub, idp: IdP) -> None:
    idp.rotate = False
    person = Person(iam, idp)
    first = person.stored()["refresh_token"]
    idp.change["/oauth2/token"] = lambda document: {k: v for k, v in document.items() if k != "refresh_token"}
    for _ in range(2):
        iam.put_forward(RECHECK + 1)
        assert person.access() == (True, True)
        assert person.stored()["refresh_token"] == first


@pytest.mark.both_hubs
def test_whoever_asks_at_the_same_time_there_is_one_refresh(iam: Hub, idp: IdP) -> None:
    person = Person(iam, idp)
    iam.put_forward(RECHECK + 1)
    since = len(iam.log)
    browsers = [Browser(iam) for _ in range(10)]
    for browser in browsers:
        browser.cookies.update(person.browser.cookies)
    with idp.holding("refresh_token") as event, ThreadPoolExecutor(24) as pool:
        pages = [pool.submit(browser.is_in) for browser in browsers]
        calls = [pool.submit(person.api) for _ in range(10)]
        spawn = pool.submit(iam.api, "POST", f"/users/{person.name}/server")
        iam.wait_for_all(f"Refreshing auth for {person.name}", 20, since=since)
        event.set()
        assert all(page.result() for page in pages)
        assert {call.result() for call in calls} == {200}
        assert spawn.result().status_code in (201, 202)
    assert idp.requests["refresh_token"] == 1
    assert person.stored()["refresh_token"] == idp.token_answers[-1]["refresh_token"]
    assert iam.api("DELETE", f"/users/{person.name}/server").status_code in (202, 204, 400)


@pytest.mark.both_hubs
def test_a_log_in_during_a_refresh_wins_over_its_tokens(iam: Hub, idp: IdP) -> None:
    person = Person(iam, idp)
    iam.put_forward(RECHECK + 1)
    second = Browser(iam)
    with idp.holding("refresh_token") as event, ThreadPoolExecutor() as pool:
        page = pool.submit(person.browser.is_in)
        assert idp.arrived.wait(60)
        assert second.log_in(person.sub).status_code == 200
        newest = idp.token_answers[-1]
        since = len(iam.log)
        event.set()
        assert page.result()
        iam.wait_for_all(f"Tokens of an earlier log-in of {person.name} are dropped", 1, since=since)
    stored = person.stored()
    assert stored["refresh_token"] == newest["refresh_token"]
    assert stored["access_token"] == newest["access_token"]
    iam.put_forward(RECHECK + 1)
    assert person.access() == (True, True)
    assert idp.token_requests[-1]["refresh_token"] == newest["refresh_token"]


def test_a_no_to_an_earlier_log_in_doesn_t_end_a_newer_one(iam: Hub, idp: IdP) -> None:
    person = Person(iam, idp)
    iam.put_forward(RECHECK + 1)
    second = Browser(iam)
    with idp.holding("refresh_token") as event, ThreadPoolExecutor() as pool:
        page = pool.submit(person.browser.is_in)
        assert idp.arrived.wait(60)
        assert second.log_in(person.sub).status_code == 200
        idp.refresh_answer = refused(400, "invalid_grant", "Session not active")
        event.set()
        page.result()
    assert second.is_in()
    assert person.access() == (True, True)


# -- spawns ------------------------------------------------------------------------------------------------------------


@pytest.mark.both_hubs
def test_a_spawn_asks_unless_the_yes_is_fresh(iam: Hub, idp: IdP) -> None:
    person = Person(iam, idp)
    asked = []
    for wait in (FRESH - 20, 30, 0):  # fresh; old; fresh again
        iam.put_forward(wait)
        since = len(iam.log)
        assert iam.api("POST", f"/users/{person.name}/server").status_code in (201, 202)
        iam.wait_for_all(rf"Server {person.name}: is ready|User {person.name} took", 1, since=since)
        asked.append(idp.requests["refresh_token"])
        assert iam.api("DELETE", f"/users/{person.name}/server").status_code in (202, 204)
        gone(iam, person)
    assert asked == [0, 1, 1]


def gone(hub: Hub, person: Person) -> None:
    """Wait until the server has stopped."""
    deadline = time.monotonic() + 60
    while hub.api("GET", f"/users/{person.name}").json()["servers"]:
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.both_hubs
def test_a_spawn_of_somebody_who_is_out_is_refused_with_the_reason(iam: Hub, idp: IdP) -> None:
    person = Person(iam, idp)
    person.is_in_groups("/cms")
    iam.put_forward(FRESH + 1)  # pages aren't asked for yet
    since = len(iam.log)
    answer = person.browser.spawn()
    assert answer.status_code == 403
    assert "This hub is for members of /cms/uscms" in answer.text
    iam.wait_for_all("This hub is for members of /cms/uscms", 1, since=since)
    assert person.access() == (False, False)  # and everything knows it now
    # An administrator's spawn for them is none either.
    assert iam.api("POST", f"/users/{person.name}/server").status_code >= 400


@pytest.mark.both_hubs
def test_a_running_server_goes_on_while_its_user_has_to_log_in_again(iam: Hub, idp: IdP) -> None:
    person = Person(iam, idp)
    assert person.browser.spawn().status_code in (201, 202)
    iam.wait_for(rf"User {person.name} took", timeout=60)
    idp.refresh_answer = refused(400, "invalid_grant", "Session not active")
    iam.put_forward(RECHECK + 1)
    assert person.access() == (False, True)
    assert iam.api("GET", f"/users/{person.name}").json()["servers"][""]["ready"]
    assert requests.get(f"{iam.url}/user/{person.name}/env", timeout=30).status_code == 200
    iam.api("DELETE", f"/users/{person.name}/server")
    gone(iam, person)


# -- no refresh token, no auth state -----------------------------------------------------------------------------------


def test_without_a_refresh_token_a_log_in_counts_for_a_time(iam: Hub, idp: IdP) -> None:
    idp.rotate = False
    idp.change["/oauth2/token"] = lambda document: {k: v for k, v in document.items() if k != "refresh_token"}
    since = len(iam.log)
    person = Person(iam, idp)
    iam.wait_for_all(f"gave no refresh token for {person.name}.*offline_access", 1, since=since)
    iam.put_forward(MAX_AGE - 60)
    assert person.access() == (True, True)
    iam.put_forward(RECHECK + 1)
    assert person.access() == (False, False)
    assert person.browser.log_in(person.sub).status_code == 200
    assert person.access() == (True, True)


@pytest.mark.both_hubs
def test_a_restarted_hub_goes_on_and_one_that_lost_its_crypt_key_asks_for_a_log_in(make_hub: MakeHub, idp: IdP) -> None:
    hub = make_hub(ONLY_REQUESTS + PATIENT)
    with hub.running():
        person = Person(hub, idp)
        hub.put_forward(RECHECK + 1)
        assert person.access() == (True, True)
    with hub.running():  # the rotated token was stored
        assert person.access() == (True, True)
        assert idp.requests["refresh_token"] == 2
        hub.put_forward(RECHECK + 1)
        dead(person, refresh=(503, {}))
        assert person.access() == (True, True)
    with hub.running():  # the last "yes" is known from the database
        assert person.access() == (True, True)
        idp.reset()
        idp.rotate = True
    hub.environment["JUPYTERHUB_CRYPT_KEY"] = "0" * 64
    with hub.running():
        assert person.access() == (False, True)  # as what runs, until somebody should have logged in
        assert hub.api("POST", f"/users/{person.name}/server").status_code == 403
        assert person.browser.log_in(person.sub).status_code == 200
        assert person.access() == (True, True)
    # The same machine by another name is another issuer: it must not see the tokens of the first.
    asked = idp.requests["refresh_token"]
    config = hub.directory / "jupyterhub_config.py"
    config.write_text(config.read_text().replace("http://localhost:", "http://127.0.0.1:"))
    hub.put_forward(RECHECK + 1)
    with hub.running():
        assert person.access() == (False, True)
        assert idp.requests["refresh_token"] == asked
        assert person.browser.log_in(person.sub).status_code == 403  # and the name is not its to give


# -- the token on a server's disk --------------------------------------------------------------------------------------

LOCAL = """
c.JupyterHub.spawner_class = "casa-local"
c.Facility.credentials = ["bearer"]
c.Facility.required = ["bearer"]
c.Facility.bearer_token_file = "access_token"
c.LocalDelivery.directory = "servers"
c.LocalDelivery.network = "127.79.0.0/16"
c.TraefikRoutes.kind = "none"
"""


def test_a_new_access_token_reaches_the_running_server(make_hub: MakeHub, idp: IdP) -> None:
    """The old one may be dead from then on: IAM can clear the access tokens of a refresh."""
    hub = make_hub(ONLY_REQUESTS + PATIENT + LOCAL)
    with hub.running():
        person = Person(hub, idp)
        assert person.browser.spawn().status_code in (201, 202)
        hub.wait_for(rf"User {person.name} took", timeout=60)
        (file,) = hub.directory.glob("servers/*/access_token")
        assert file.read_text().strip() == person.stored()["access_token"]
        for userinfo in (None, (500, {})):  # also when nobody can say more than that the token is new
            before = file.read_text()
            if userinfo is not None:
                idp.answers["/userinfo"] = userinfo
            since = len(hub.log)
            hub.put_forward(RECHECK + 1)
            assert person.access() == (True, True)
            assert file.read_text() != before
            assert file.read_text().strip() == person.stored()["access_token"]
            assert file.stat().st_mode & 0o777 == 0o600
            assert "Traceback" not in hub.log[since:]
        idp.reset()
        hub.put_forward(RECHECK + 1)
        person.is_in_groups("/cms")
        before = file.read_text()
        assert person.access() == (False, False)
        assert file.read_text() == before  # but nothing new for somebody who is out
        hub.api("DELETE", f"/users/{person.name}/server")
        gone(hub, person)
