"""What operators and users see of credentials that somebody else gives: exchanged tokens, S3, proxies of X.509."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from casa_hub.audit import PREFIX
from casa_hub.credentials.tokens import unverified_claims
from casa_hub.demo.proxies import Authority
from casa_hub.issuer.tokens import new_private_key
from casa_hub.naming import Server
from casa_hub.operate import SCOPE
from tests.hub.conftest import MakeHub
from tests.support import forked
from tests.support.hub import CLIENT_SECRET, Hub
from tests.support.idp import IdP
from tests.support.local_servers import ended_with
from tests.support.person import Person
from tests.support.proxycert import beside

TOKEN = "token-of-the-operator-9876543210"
RUCIO, TAPE = "exchange:rucio", "exchange:tape"
REFUSED = (401, {"error": "invalid_client", "error_description": "Unauthorized grant type"})
ADMIN = ["/cms", "/cms/uscms", "/cms/admins"]
ALICE = Authority().certify("Alice A. Liddell")

CONFIG = f"""
c.JupyterHub.spawner_class = "casa-local"
c.JupyterHub.tornado_settings = {{"slow_spawn_timeout": 60, "slow_stop_timeout": 60}}
c.JupyterHub.services.append({{"name": "operator", "api_token": "{TOKEN}"}})
c.JupyterHub.load_roles.append({{"name": "operator", "services": ["operator"], "scopes": ["{SCOPE}"]}})
c.Facility.credentials = ["exchange", "s3", "x509"]
c.Facility.bearer_token_file = "tape_token"
c.TokenExchange.services = {{
    "rucio": {{"preset": "rucio"}},
    "tape": {{"audience": "https://tape.example.org", "scope": "storage.stage:/"}},
}}
c.S3.endpoint = "https://s3.example.org"
c.S3.role_arn = "arn:aws:iam:::role/physicist"
c.FacilityIssuer.keys = "issuer"
c.FacilityIssuer.vo = "cms"
c.FacilityIssuer.url = "https://hub.example.org/hub/casa/issuer"
c.X509.lifetime = 3600
c.LocalDelivery.directory = "servers"
c.LocalDelivery.network = "127.94.0.0/16"
"""
SCOPES = ["openid", "profile", "email", "offline_access", "wlcg.groups", "proxy:generate"]


@pytest.fixture(scope="module")
def hub(make_hub: MakeHub) -> Iterator[Hub]:
    hub = make_hub(CONFIG, scope=SCOPES, admin_groups=["/cms/admins"])
    (hub.directory / "issuer").mkdir()
    (hub.directory / "issuer/1.pem").write_bytes(new_private_key()[1])
    with ended_with(hub):
        yield hub.start()


@pytest.fixture
def person(hub: Hub, idp: IdP) -> Person:
    """Somebody who gets all, in a server that runs."""
    proxies = beside(idp)
    idp.answers["/iam/proxycert"] = proxies.iam("hub", CLIENT_SECRET)
    made = Person(hub, idp, groups=ADMIN)
    proxies.stored[made.sub] = ALICE.proxy(timedelta(hours=100))
    return made


def started(person: Person) -> Path:
    assert person.browser.spawn().status_code == 201, person.hub.log[-3000:]
    return person.hub.directory / "servers" / Server("", person.name).slug


def events(person: Person, action: str) -> dict[str, dict[str, Any]]:
    """The last event of the audit of each credential of this person."""
    told = [json.loads(line.partition(PREFIX)[2]) for line in person.hub.log.splitlines() if PREFIX in line]
    mine = [one for one in told if (one["username"], one["action"]) == (person.name, action)]
    return {one["credential"]: one for one in mine}


def expected(directory: Path) -> dict[str, tuple[dict[str, str], float]]:
    """Identifiers and end of what a server has, read from its files by others than the hub."""
    found: dict[str, tuple[dict[str, str], float]] = {}
    for name, file, keys in (
        (RUCIO, "rucio_token", ("iss", "jti", "aud")),
        (TAPE, "tape_token", ("iss", "jti", "aud")),
        ("s3", "s3_token", ("jti", "sub", "aud")),
    ):
        claims = unverified_claims((directory / file).read_text())
        found[name] = {key: claims[key] for key in keys}, claims["exp"]
    proxy = x509.load_pem_x509_certificate((directory / "x509_proxy").read_bytes())
    found["x509"] = {"serial": f"{proxy.serial_number:x}"}, proxy.not_valid_after_utc.timestamp()
    return found


def operate(hub: Hub, *arguments: str) -> Any:
    return forked.run("casa_hub.cli", [*arguments, "-f", "jupyterhub_config.py"], hub.directory, hub.environment)


def ask(hub: Hub, method: str, operation: str, **body: Any) -> Any:
    answer = hub.api(method, f"/casa-hub/{operation}", token=TOKEN, json=body)
    assert answer.ok, answer.text
    return answer.json()


def page(person: Person, path: str = "/hub/casa/credentials") -> str:
    answer = person.browser.page(path)
    assert answer.status_code == 200, answer.text
    return html.unescape(answer.text)


def row(text: str, name: str) -> str:
    [found] = re.findall(rf'<tr data-credential="{name}".*?</tr>', text, re.DOTALL)
    return " ".join(re.sub(r"<[^>]*>", " ", found).split())


def test_the_audit_names_each_by_what_others_log_and_by_its_end(person: Person) -> None:
    directory = started(person)
    first = expected(directory)
    assert ask(person.hub, "POST", "renew", users=[person.name])["failed"] == {}
    second = expected(directory)
    for action, of_files in (("minted", first), ("renewed", second)):
        told = events(person, action)
        assert told.keys() == of_files.keys()
        for name, (identifiers, end) in of_files.items():
            assert identifiers.items() <= told[name]["identifiers"].items()
            assert datetime.fromisoformat(told[name]["expires_at"]).timestamp() == pytest.approx(end, abs=1)
    subject = events(person, "minted")["x509"]["identifiers"]["subject"]
    assert subject.startswith("/") and "Alice A. Liddell" in subject  # noqa: PT018
    assert all(first[name][0] != second[name][0] for name in first), "the same ones"


def test_the_person_sees_for_whom_each_is_until_when_and_when_the_next_one_comes(person: Person) -> None:
    started(person)
    text = page(person)
    for name, title, audience in (
        (RUCIO, "Rucio token", "rucio"),
        (TAPE, "Tape token", "https://tape.example.org"),
        ("s3", "S3 token", "https://s3.example.org"),
    ):
        seen = row(text, name)
        assert title in seen
        assert f"For {audience}" in seen
        assert re.search(r"20\d\d-\d\d-\d\d \d\d:\d\d UTC .* UTC, by itself", seen.replace(" ,", ","))
    assert "As /" in row(text, "x509")


def test_one_of_several_is_renewed_by_its_name(person: Person) -> None:
    directory = started(person)
    before = expected(directory)
    done = operate(person.hub, "renew", person.name, "--credential", RUCIO)
    assert "Renewed: 1 servers." in done.stdout, done.stdout + done.stderr
    after = expected(directory)
    assert {name for name in before if before[name] != after[name]} == {RUCIO}
    wrong = person.hub.api("POST", "/casa-hub/renew", token=TOKEN, json={"credentials": ["exchange:rucoi"]})
    assert wrong.status_code == 404
    assert "Did you mean exchange:rucio?" in wrong.json()["message"]


def test_a_refusal_is_told_with_its_remedy_on_every_page_and_told_from_an_outage(person: Person, idp: IdP) -> None:
    idp.exchange_answers["rucio"] = REFUSED
    idp.exchange_answers["https://tape.example.org"] = (503, {})
    started(person)
    text = page(person)
    assert "this hub's client may not exchange tokens" in row(text, RUCIO)
    assert "The hub tries again by itself." in row(text, TAPE)
    told = ask(person.hub, "GET", "status")["fetches"]
    mine = {one["credential"]: one for one in told if one["credential"] in {RUCIO, TAPE}}
    assert (mine[RUCIO]["why"], mine[TAPE]["why"]) == ("refused", "outage")
    assert mine[RUCIO]["users"] >= 1
    status = operate(person.hub, "status")
    assert status.returncode == 1
    facility = page(person, "/hub/casa/admin")
    for said in (" ".join(status.stdout.split()), " ".join(re.sub(r"<[^>]*>", " ", facility).split())):
        [refused] = re.findall(r"Refused: exchange:rucio for \d+ users?\. Rucio token: [^.]*\. ", said)
        assert "may not exchange tokens" in refused
        assert re.search(r"No usable answer: exchange:tape for \d+ users?\.", said)
        assert "Tell the operator" not in said.partition("Refused: exchange:rucio")[2].partition(". Missing")[0]


def test_nobody_takes_such_a_credential_to_a_laptop(person: Person) -> None:
    """They are for servers. The name is told like one that isn't there, whatever is in it."""
    for name in (RUCIO, "exchange%3Arucio", "exchange:none", "x509"):
        answer = person.hub.api("POST", f"/casa/credentials/{name}", token=person.token, json={})
        assert answer.status_code in (403, 404)
        assert "None" not in answer.json()["message"]
