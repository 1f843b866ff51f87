"""The proxy of X.509 at a whole hub, from the person's token to the file; and what people are told without one."""

from __future__ import annotations

import html
import re
import stat
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from casa_hub.credentials.x509 import SCOPE
from casa_hub.demo.proxies import Authority, key
from casa_hub.naming import Server
from casa_hub.processes import signed_in
from tests.hub.conftest import MakeHub
from tests.support.hub import CLIENT_SECRET, Hub
from tests.support.idp import IdP
from tests.support.local_servers import ended_with
from tests.support.person import Person
from tests.support.proxycert import Proxies, Reply, beside, served

HOUR = timedelta(hours=1)
ALICE = Authority().certify("Alice A. Liddell")

CONFIG = """
c.JupyterHub.spawner_class = "casa-local"
c.JupyterHub.tornado_settings = {{"slow_spawn_timeout": 60, "slow_stop_timeout": 60}}
c.Facility.credentials = ["x509"]
c.LocalDelivery.directory = "servers"
c.LocalDelivery.network = "127.{net}.0.0/16"
"""
SCOPES = ["openid", "profile", "email", "offline_access", "wlcg.groups", SCOPE]


@pytest.fixture(scope="module")
def hub(make_hub: MakeHub) -> Iterator[Hub]:
    hub = make_hub(CONFIG.format(net=92) + "c.X509.lifetime = 3600\n", scope=SCOPES)
    with ended_with(hub):
        yield hub.start()


@pytest.fixture
def proxies(idp: IdP) -> Proxies:
    made = beside(idp)
    idp.answers["/iam/proxycert"] = made.iam("hub", CLIENT_SECRET)
    return made


def started(hub: Hub, person: Person) -> Path:
    """The directory of the files of a server that starts in any case."""
    assert person.browser.spawn().status_code == 201, hub.log[-3000:]
    return hub.directory / "servers" / Server("", person.name).slug


def stop(hub: Hub, person: Person) -> None:
    assert hub.api("DELETE", f"/users/{person.name}/server").status_code == 204


def missing(hub: Hub, person: Person) -> str:
    """What the person is told on the page "My credentials" and the operator in the log."""
    assert not (started(hub, person) / "x509_proxy").exists()
    [told] = re.findall(rf'No x509 for \["", "{person.name}", ""\]: (.*)', hub.log)
    page = person.browser.page("/hub/casa/credentials").text
    assert told in html.unescape(page)
    return str(told)


def test_a_server_gets_a_proxy_of_what_the_person_has_stored_at_iam(hub: Hub, idp: IdP, proxies: Proxies) -> None:
    alice = Person(hub, idp)
    proxies.stored[alice.sub] = ALICE.proxy(100 * HOUR)
    directory = started(hub, alice)
    file = directory / "x509_proxy"
    assert [file.read_text()] == proxies.handed_out
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert proxies.asked == [(alice.sub, {"lifetimeSecs": "3600"})]
    process = signed_in(directory / "process")
    assert process is not None
    assert process.environment()["X509_USER_PROXY"] == str(file)
    assert "X509_CERT_DIR" not in process.environment()
    # By these the certificate is known to whoever has to revoke it.
    assert '"issuer": "/DC=test/CN=Alice A. Liddell' in hub.log
    # The next server has the same one: it is kept with the log-in, and IAM isn't asked again.
    stop(hub, alice)
    assert (started(hub, alice) / "x509_proxy").read_text() == proxies.handed_out[0]
    assert len(proxies.asked) == 1


def _always(status: int, body: dict[str, Any]) -> Callable[[Reply], Reply]:
    return lambda _: (status, body)


def _with_other_key(reply: Reply) -> Reply:
    status, body = reply
    sound = ALICE.proxy(HOUR)
    return status, body | {"certificate_chain": replace(sound, key=key(9)).pem}


TOLD: dict[str, tuple[Callable[[Reply], Reply] | None, str]] = {
    "nothing is stored": (None, 'press "Add managed proxy certificate"'),
    "it is switched off": (_always(404, {}), "IAM does so with proxycert.enabled=true"),
    "the token is dead": (_always(401, {"error": "invalid_token"}), "your token is refused. Log out and in again"),
    "it is another's key": (_with_other_key, "a private key that doesn't belong to its certificate"),
}


@pytest.mark.parametrize(("change", "words"), TOLD.values(), ids=TOLD)
def test_a_server_starts_without_a_proxy_and_says_what_to_do(
    hub: Hub, idp: IdP, proxies: Proxies, change: Callable[[Reply], Reply] | None, words: str
) -> None:
    person = Person(hub, idp)
    if change is not None:
        proxies.stored[person.sub] = ALICE.proxy(HOUR)
        proxies.change = change
    assert words in missing(hub, person)


def test_a_token_without_the_scope_makes_no_proxy(hub: Hub, idp: IdP, proxies: Proxies) -> None:
    """The client isn't registered for it: the log-in goes on, and IAM leaves the scope out."""

    def without(document: dict[str, Any]) -> dict[str, Any]:
        return document | {"scope": document["scope"].replace(SCOPE, "")}

    idp.change["/oauth2/token"] = without
    person = Person(hub, idp)
    proxies.stored[person.sub] = ALICE.proxy(HOUR)
    assert "CasaOAuthenticator.scope and the client's registration must have that scope" in missing(hub, person)


def test_who_stores_a_proxy_gets_it_in_the_next_server(hub: Hub, idp: IdP, proxies: Proxies) -> None:
    person = Person(hub, idp)
    assert "has no proxy" in missing(hub, person)
    proxies.stored[person.sub] = ALICE.proxy(HOUR)
    stop(hub, person)
    assert (started(hub, person) / "x509_proxy").exists()


def test_a_service_of_the_facility_is_asked_by_https_with_its_own_authority(
    make_hub: MakeHub, idp: IdP, tmp_path: Path
) -> None:
    proxies = beside(idp)
    with served(proxies.service(), tmp_path / "service") as at:
        config = f"c.X509.source = 'service'\nc.X509.url = '{at.url}/redeem'\nc.X509.ca_file = {str(at.ca_file)!r}\n"
        hub = make_hub(CONFIG.format(net=93) + config)
        with ended_with(hub):
            hub.start()
            alice, bob = Person(hub, idp), Person(hub, idp)
            proxies.stored[alice.sub] = ALICE
            assert [(started(hub, alice) / "x509_proxy").read_text()] == proxies.handed_out
            assert "the service has no certificate of yours" in missing(hub, bob)
            assert {sub for sub, _ in proxies.asked} == {alice.sub, bob.sub}
    assert not [line for line in proxies.handed_out[0].splitlines()[1:] if line[:40] in hub.log]
