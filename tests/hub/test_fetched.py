"""What credentials are made of is fetched by a whole hub: for whom, when, and what happens while it goes on.

The provider's exchanged tokens stand for all that is fetched. It is slow, down, answers half, refuses one or all, and
rotates the refresh token meanwhile.
"""

from __future__ import annotations

import contextlib
import html
import json
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jwt
import pytest
import requests

from casa_hub.naming import Server
from casa_hub.testing.idp import EXCHANGE
from tests.hub.conftest import MakeHub
from tests.support.hub import Hub, casa_config
from tests.support.idp import IdP
from tests.support.local_servers import ended_with
from tests.support.person import Person
from tests.support.waiting import until

#: Seconds that a start waits here for what is fetched.
PATIENCE = 3.0
SERVICES = {name: {"audience": f"https://{name}.example.org", "scope": "openid"} for name in ("rucio", "panda")}
RUCIO, PANDA = (service["audience"] for service in SERVICES.values())
CONFIG = f"""
c.JupyterHub.spawner_class = "casa-local"
c.JupyterHub.cleanup_servers = False
c.JupyterHub.tornado_settings = {{"slow_spawn_timeout": 60, "slow_stop_timeout": 60}}
c.Facility.credentials = ["exchange"]
c.TokenExchange.services = {SERVICES!r}
c.Keeper.fetch_patience = {PATIENCE}
c.LocalDelivery.directory = "servers"
"""


@pytest.fixture(scope="module")
def hub(make_hub: MakeHub) -> Iterator[Hub]:
    hub = make_hub(CONFIG + 'c.LocalDelivery.network = "127.94.0.0/16"\n')
    with ended_with(hub):
        yield hub.start()


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as pool:
        yield pool


@pytest.fixture(autouse=True)
def _as_iam_does(hub: Hub, idp: IdP) -> Iterator[None]:
    """And no server of an earlier test asks during a later one."""
    idp.rotate = idp.frozen = True
    idp.exchange_life = 86400
    idp.held.clear()
    yield
    for user in hub.api("GET", "/users?state=ready").json():
        hub.api("DELETE", f"/users/{user['name']}/server")


def directory(hub: Hub, person: Person) -> Path:
    return hub.directory / "servers" / Server("", person.name).slug


def tokens(hub: Hub, person: Person) -> dict[str, str]:
    """Name of the service -> the token that the person's server has."""
    found = {name: directory(hub, person) / f"{name}_token" for name in SERVICES}
    return {name: file.read_text() for name, file in found.items() if file.exists()}


def subject(token: str) -> str:
    return str(jwt.decode(token, options={"verify_signature": False})["sub"])


def start(hub: Hub, person: Person) -> dict[str, str]:
    answer = person.browser.spawn()
    assert answer.status_code == 201, answer.text + hub.log[-3000:]
    return tokens(hub, person)


def stop(hub: Hub, person: Person) -> None:
    assert hub.api("DELETE", f"/users/{person.name}/server").status_code == 204


def kept(person: Person) -> dict[str, str]:
    """Name of the credential -> the token that is kept with the person's log-in."""
    return {name: one["value"] for name, one in person.stored()["casa"]["fetched"].items()}


def until_kept(person: Person, *names: str) -> dict[str, str]:
    until(lambda: kept(person).keys() == set(names), "what was fetched is kept")
    return kept(person)


def told(hub: Hub, person: Person, name: str) -> str:
    """Why the person's server is without a credential: in the log, and on the page "My credentials"."""
    why = hub.wait_for(rf'No exchange:{name} for \["", "{person.name}", ""\]: (.*)')[1]
    assert why in html.unescape(person.browser.page("/hub/casa/credentials").text)
    return why


@contextlib.contextmanager
def starting(pool: ThreadPoolExecutor, idp: IdP, person: Person) -> Iterator[Future[requests.Response]]:
    """A context in which the person's start waits for the provider, until its end or until `idp.hold` is set."""
    with idp.holding(EXCHANGE):
        answer = pool.submit(person.browser.spawn)
        until(lambda: person.sub in held(idp), "the provider is asked", 30)
        yield answer


def held(idp: IdP) -> set[str]:
    """For whom the provider was asked while it held its answers."""
    return {idp.owner(form["subject_token"]) for form in idp.held if "subject_token" in form}


# -- all is well


@pytest.mark.both_hubs  # the mock provider for newer Pythons is another one
def test_a_server_gets_what_was_fetched_and_the_next_start_asks_nobody(hub: Hub, idp: IdP) -> None:
    ada = Person(hub, idp)
    first = start(hub, ada)
    assert {name: subject(token) for name, token in first.items()} == {"rucio": ada.sub, "panda": ada.sub}
    assert {*until_kept(ada, "exchange:rucio", "exchange:panda").values()} == {*first.values()}
    stop(hub, ada)
    asked = idp.requests[EXCHANGE]
    assert start(hub, ada) == first
    assert idp.requests[EXCHANGE] == asked


def test_the_spawn_page_says_what_is_asked_for_and_then_what_is_missing_and_what_to_do(
    hub: Hub, idp: IdP, pool: ThreadPoolExecutor
) -> None:
    ada = Person(hub, idp)
    idp.exchange_answers[PANDA] = (503, {})
    url = f"{hub.url}/hub/api/users/{ada.name}/server/progress"
    sentences = []
    with (
        starting(pool, idp, ada),
        requests.get(url, headers={"Authorization": f"token {hub.api_token}"}, stream=True, timeout=60) as answer,
    ):
        for line in answer.iter_lines():
            if line.startswith(b"data:"):
                event = json.loads(line.removeprefix(b"data:"))
                sentences.append(str(event.get("message", "")))
                if sentences[-1].startswith("Asking for"):
                    idp.hold[EXCHANGE].set()
                if event.get("ready") or event.get("failed"):
                    break
    assert "Asking for a token for Rucio and a token for Panda" in sentences
    why = told(hub, ada, "panda")
    assert "HTTP status 503. If it stays so" in why
    assert [sentence for sentence in sentences if why in sentence]


def test_people_who_start_at_once_are_never_given_each_other_s(hub: Hub, idp: IdP, pool: ThreadPoolExecutor) -> None:
    people = [Person(hub, idp) for _ in range(5)]
    list(pool.map(lambda one: start(hub, one), people))
    for person in people:
        has = until_kept(person, "exchange:rucio", "exchange:panda")
        assert {subject(token) for token in has.values()} == {person.sub}
        # On a busy machine some of it comes to the running server.
        until(lambda one=person: tokens(hub, one).keys() == {"rucio", "panda"}, "both are there")  # type: ignore[misc]
        assert {*tokens(hub, person).values()} == {*has.values()}


# -- while servers run


def test_what_was_fetched_is_renewed_in_the_running_server_before_it_expires(hub: Hub, idp: IdP) -> None:
    idp.exchange_life = 8
    ada = Person(hub, idp)
    first = start(hub, ada)
    ends = time.time() + 8
    until(lambda: all(tokens(hub, ada)[name] != first[name] for name in SERVICES), "both are new", 30)
    assert time.time() < ends
    assert {subject(token) for token in tokens(hub, ada).values()} == {ada.sub}
    stop(hub, ada)


def test_a_hub_that_restarts_asks_for_nothing_anew(hub: Hub, idp: IdP) -> None:
    ada = Person(hub, idp)
    first = start(hub, ada)
    until_kept(ada, "exchange:rucio", "exchange:panda")
    assert hub.stop() == 0
    asked = [form["audience"] for form in idp.token_requests if form.get("subject_token")]
    hub.start()
    again = Person(hub, idp)  # who needs two, so that the hub has worked
    start(hub, again)
    assert tokens(hub, ada) == first
    stop(hub, ada)
    assert start(hub, ada) == first
    new = [form for form in idp.token_requests if form.get("subject_token")][len(asked) :]
    askers = {idp.owner(form["subject_token"]) for form in new}
    assert again.sub in askers
    assert ada.sub not in askers


def test_a_user_who_is_deleted_during_a_fetch_leaves_nothing_to_the_next_one(hub: Hub, idp: IdP) -> None:
    """The database gives the number of the last user to the next one."""
    idp.exchange_life = 6
    ada = Person(hub, idp)
    start(hub, ada)
    with idp.holding(EXCHANGE):
        until(lambda: ada.sub in held(idp), "the renewal asks", 30)
        assert hub.api("DELETE", f"/users/{ada.name}").status_code == 204
        idp.exchange_life = 86400
        bob = Person(hub, idp)
        answer = bob.browser.spawn()
        assert answer.status_code == 201, answer.text
        assert tokens(hub, bob) == {}
    until(lambda: tokens(hub, bob).keys() == {"rucio", "panda"}, "the running server has both")
    assert {subject(token) for token in tokens(hub, bob).values()} == {bob.sub}
    assert {subject(token) for token in kept(bob).values()} == {bob.sub}


# -- the provider fails


def test_a_start_waits_only_so_long_for_a_slow_provider_and_the_running_server_gets_it(
    hub: Hub, idp: IdP, pool: ThreadPoolExecutor
) -> None:
    ada = Person(hub, idp)
    began = time.monotonic()
    with starting(pool, idp, ada) as answer:
        assert answer.result(60).status_code == 201
        assert time.monotonic() - began < PATIENCE + 15
        assert tokens(hub, ada) == {}
        why = told(hub, ada, "rucio")
        assert "no answer after 3 seconds. The hub waits for it, and the running server gets it" in why
    until(lambda: tokens(hub, ada).keys() == {"rucio", "panda"}, "the running server has both")
    assert {subject(token) for token in tokens(hub, ada).values()} == {ada.sub}


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ((503, {}), "HTTP status 503. If it stays so"),
        ((200, '{"access_token": "ha'), "has none. Ask the identity provider's administrators"),
        ((400, {"error": "access_denied", "error_description": "no"}), "."),
    ],
    ids=["down", "half an answer", "refused"],
)
def test_one_that_can_t_be_fetched_is_told_with_what_to_do_and_the_other_is_there(
    hub: Hub, idp: IdP, answer: Any, words: str
) -> None:
    ada = Person(hub, idp)
    idp.exchange_answers[PANDA] = answer
    assert start(hub, ada).keys() == {"rucio"}
    assert words in told(hub, ada, "panda")


def test_a_server_starts_where_all_is_refused(hub: Hub, idp: IdP) -> None:
    ada = Person(hub, idp)
    idp.exchange_answers |= dict.fromkeys((RUCIO, PANDA), (400, {"error": "invalid_target"}))
    assert start(hub, ada) == {}
    assert told(hub, ada, "rucio")
    assert told(hub, ada, "panda")
    assert kept(ada) == {}


def test_who_has_it_from_an_earlier_start_doesn_t_wait_for_a_provider_that_is_away(hub: Hub, idp: IdP) -> None:
    ada = Person(hub, idp)
    first = start(hub, ada)
    until_kept(ada, "exchange:rucio", "exchange:panda")
    stop(hub, ada)
    with idp.holding(EXCHANGE):
        began = time.monotonic()
        assert start(hub, ada) == first
        assert time.monotonic() - began < 15
        assert ada.sub not in held(idp)


# -- who may see it


def test_no_token_is_shown_to_an_administrator_without_the_scope_for_it(hub: Hub, idp: IdP) -> None:
    ada = Person(hub, idp)
    found = {*start(hub, ada).values(), *until_kept(ada, "exchange:rucio", "exchange:panda").values()}
    model = hub.api("GET", f"/users/{ada.name}", token=ada.token).text
    assert not [token for token in found if token in model]
    database = b"".join(file.read_bytes() for file in hub.directory.glob("hub.sqlite*"))
    assert not [token for token in found if token.encode() in database]


# -- what is required


def test_without_a_required_one_no_server_starts_and_the_reason_is_told(tmp_path: Path, idp: IdP) -> None:
    required = 'c.Facility.required = ["exchange:rucio"]\nc.LocalDelivery.network = "127.95.0.0/16"\n'
    hub = Hub(tmp_path, casa_config(idp.issuer) + CONFIG + required, proxy=False)
    with ended_with(hub):
        hub.start()
        ada = Person(hub, idp)
        idp.exchange_answers |= dict.fromkeys((RUCIO, PANDA), (503, {}))
        answer = ada.browser.spawn()
        assert answer.status_code == 500
        assert "HTTP status 503" in answer.text
        del idp.exchange_answers[RUCIO]
        assert start(hub, ada).keys() == {"rucio"}


# -- what a while later is so: from here on the hub's clock is ahead of the provider's


def test_a_provider_that_rotates_the_refresh_token_meanwhile_costs_no_log_in(
    hub: Hub, idp: IdP, pool: ThreadPoolExecutor
) -> None:
    ada = Person(hub, idp)
    before = ada.stored()["refresh_token"]
    with starting(pool, idp, ada) as answer:
        hub.put_forward(3000)  # the access token is due, and each re-check rotates the refresh token
        assert ada.access() == (True, True)
        rotated = ada.stored()["refresh_token"]
        assert rotated != before
        idp.hold[EXCHANGE].set()
        assert answer.result(60).status_code == 201
    until_kept(ada, "exchange:rucio", "exchange:panda")
    assert ada.stored()["refresh_token"] == rotated
    hub.put_forward(3000)
    assert ada.access() == (True, True)


def test_nobody_is_asked_for_who_is_no_member_any_more_and_what_was_kept_is_gone(hub: Hub, idp: IdP) -> None:
    ada = Person(hub, idp)
    start(hub, ada)
    until_kept(ada, "exchange:rucio", "exchange:panda")
    stop(hub, ada)
    asked = idp.requests[EXCHANGE]
    ada.is_in_groups("/other")
    hub.put_forward(400)
    assert hub.api("POST", f"/users/{ada.name}/server", token=ada.token).status_code == 403
    until(lambda: hub.api("GET", f"/users/{ada.name}").json()["auth_state"] is None, "the log-in is gone")
    assert idp.requests[EXCHANGE] == asked


def test_who_leaves_during_a_start_has_no_server_and_nothing_is_kept(
    hub: Hub, idp: IdP, pool: ThreadPoolExecutor
) -> None:
    ada = Person(hub, idp)
    with starting(pool, idp, ada) as answer:
        ada.is_in_groups("/other")
        hub.put_forward(400)
        assert ada.access() == (False, False)
        idp.hold[EXCHANGE].set()
        answer.result(60)
    until(lambda: hub.api("GET", f"/users/{ada.name}").json()["servers"] == {}, "there is no server")
    until(lambda: hub.api("GET", f"/users/{ada.name}").json()["auth_state"] is None, "the log-in is gone")
    assert tokens(hub, ada) == {}
