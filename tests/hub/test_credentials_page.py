"""The page "My credentials" of a real hub, as its users' browsers get it."""

from __future__ import annotations

import html
import io
import json
import re
import zipfile
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from urllib.parse import quote

import pytest
import requests
from cryptography import x509

from casa_hub.naming import Server
from casa_hub.web.credentials_page import RENEW_PAUSE
from tests.hub.conftest import MakeHub
from tests.support.facility_config import credentials, make_keys
from tests.support.hub import Browser, Hub
from tests.support.idp import IdP
from tests.support.local_servers import ended_with
from tests.support.person import Person
from tests.support.scale import one_for_both_hubs

PAGE = "/hub/casa/credentials"
#: A group that the operator allows, and that nobody's browser may run.
MARKUP = "/cms/<script>alert(1)"
CONFIG = """
c.JupyterHub.spawner_class = "casa-local"
c.JupyterHub.allow_named_servers = True
c.JupyterHub.tornado_settings = {"slow_spawn_timeout": 40, "slow_stop_timeout": 40}
c.TraefikRoutes.directory = "traefik"
c.LocalDelivery.directory = "servers"
c.LocalDelivery.network = "127.121.0.0/16"
""" + credentials("xcache", "htcondor", "dask", "bearer", required=())

MakePerson = Callable[..., Person]


@pytest.fixture(scope="module")
def hub(make_hub: MakeHub) -> Iterator[Hub]:
    hub = make_hub(CONFIG, proxy=True, provider="wlcg-iam", allowed_groups=["/cms/uscms", MARKUP])
    (hub.directory / "traefik").mkdir()
    make_keys(hub.directory)
    with ended_with(hub):
        yield hub.start()


@pytest.fixture
def make_person(hub: Hub, idp: IdP) -> MakePerson:
    return lambda **kwargs: Person(hub, idp, **kwargs)


def text_of(page: str) -> str:
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", page)).split())


def rows(page: str) -> dict[str, tuple[str, str]]:
    """Credential -> state and text of its row in the page."""
    found = re.findall(r'<tr data-credential="(\w+)" data-state="(\w+)">(.*?)</tr>', page, re.DOTALL)
    return {name: (state, text_of(row)) for name, state, row in found}


def page_of(browser: Browser) -> str:
    answer = browser.page(PAGE)
    assert answer.status_code == requests.codes.ok
    assert answer.headers["Cache-Control"] == "no-store"
    return answer.text


def form_token(browser: Browser) -> str:
    return re.findall(r'name="_xsrf" value="([^"]+)"', page_of(browser))[0]


def renew(browser: Browser, server: str = "", **data: str) -> requests.Response:
    data = {"server": server, "_xsrf": form_token(browser)} | data
    return browser.post(browser.hub.url + PAGE, data=data, timeout=60)


@pytest.mark.both_hubs
def test_the_page_shows_the_sign_in_and_what_a_server_holds(make_person: MakePerson) -> None:
    person = make_person()
    browser = person.browser
    page = page_of(browser)
    assert f"You are {person.name}, signed in by WLCG IAM" in text_of(page)
    assert "Let in as a member of /cms/uscms" in text_of(page)
    assert "No server of yours runs." in text_of(page)
    assert f'href="{PAGE}"' in browser.page("/hub/home").text  # in the navigation bar

    assert browser.spawn().status_code == requests.codes.created
    page = page_of(browser)
    found = rows(page)
    assert {name: state for name, (state, _) in found.items()} == dict.fromkeys(
        ("xcache", "htcondor", "dask", "bearer"), "good"
    )
    for name, words in {
        "xcache": ("read the facility's data through XCache", "BEARER_TOKEN_FILE", "xcache_token", "by itself"),
        "htcondor": ("submit jobs", "HTCondor's commands", "condor_token"),
        "dask": ("Dask cluster", "usercert.pem", "as long as the server may run"),
        "bearer": ("act as you", "A program that is told its file", "access_token", "new token of your sign-in"),
    }.items():
        for each in words:
            assert each in found[name][1], (name, each)
    assert f"tls://{person.name}.dask.example.org:8786" in page
    assert f"tls://{person.name}.dask-worker.example.org:8788" in page
    assert f'href="{browser.hub.url}/user/{person.name}/proxy/8785/status"' in page


def test_the_page_holds_nothing_secret(hub: Hub, make_person: MakePerson, idp: IdP) -> None:
    person = make_person()
    assert person.browser.spawn().status_code == requests.codes.created
    page = page_of(person.browser)
    files = [path for path in (hub.directory / "servers").glob("*/..data/*") if path.is_file()]
    assert len(files) > 4
    contents = [path.read_text(errors="replace").strip() for path in files if path.name != "ca.pem"]
    assert not [secret for secret in (*contents, *idp.secrets()) if secret in page]


def test_a_missing_credential_says_why_and_comes_with_renew_now(hub: Hub, make_person: MakePerson) -> None:
    person = make_person()
    key = hub.directory / "htcondor.key"
    content = key.read_bytes()
    key.unlink()
    try:
        assert person.browser.spawn().status_code == requests.codes.created
        state, text = rows(page_of(person.browser))["htcondor"]
        assert state == "missing"
        assert "HTCondor.key_file" in text
        assert "The hub tries again by itself." in text
        assert "Valid until" not in text
    finally:
        key.write_bytes(content)
    answer = renew(person.browser)
    assert "Renewed." in text_of(answer.text)
    assert rows(answer.text)["htcondor"][0] == "good"


def test_renew_now_renews_that_server_only_and_not_twice_at_once(hub: Hub, make_person: MakePerson) -> None:
    person = make_person()
    slugs = {}
    for name in ("", "other"):
        before = set((hub.directory / "servers").iterdir()) if (hub.directory / "servers").exists() else set()
        assert person.browser.spawn(name).status_code == requests.codes.created
        [slugs[name]] = set((hub.directory / "servers").iterdir()) - before

    def macaroons() -> dict[str, str]:
        return {name: (directory / "xcache_token").read_text() for name, directory in slugs.items()}

    first = macaroons()
    assert "Renewed." in text_of(renew(person.browser, "other").text)
    now = macaroons()
    assert now["other"] != first["other"]
    assert now[""] == first[""]
    assert "renewed a moment ago" in text_of(renew(person.browser, "other").text)
    assert macaroons() == now
    hub.put_forward(RENEW_PAUSE)
    assert "Renewed." in text_of(renew(person.browser, "other").text)
    assert macaroons()["other"] != now["other"]
    assert "doesn't run any more" in text_of(renew(person.browser, "no such server").text)


def test_a_credential_that_is_missing_for_good_brings_no_renewals_without_a_pause(
    hub: Hub, make_person: MakePerson
) -> None:
    """Each takes one of the few places of all servers."""
    person = make_person()
    key = hub.directory / "htcondor.key"
    content = key.read_bytes()
    key.unlink()
    try:
        assert person.browser.spawn().status_code == requests.codes.created
        assert "Not all could be renewed" in text_of(renew(person.browser).text)
        assert "renewed a moment ago" in text_of(renew(person.browser).text)
    finally:
        key.write_bytes(content)


def download(browser: Browser, server: str = "", **data: str) -> requests.Response:
    data = {"server": server, "_xsrf": form_token(browser)} | data
    return browser.post(browser.hub.url + "/hub/casa/bundle", data=data, timeout=60)


def files_of(answer: requests.Response) -> dict[str, bytes]:
    assert answer.status_code == requests.codes.ok, answer.text
    assert answer.headers["Content-Type"] == "application/zip"
    assert answer.headers["Cache-Control"] == "no-store"
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@pytest.mark.both_hubs
def test_one_click_downloads_the_bundle_of_a_server(hub: Hub, make_person: MakePerson) -> None:
    person = make_person()
    assert person.browser.spawn().status_code == requests.codes.created
    found = files_of(download(person.browser))
    assert set(found) == {"ca.pem", "usercert.pem", "connect.py", "README.txt"}
    assert f"tls://{person.name}.dask.example.org:8786" in found["connect.py"].decode()
    authority = x509.load_pem_x509_certificate(found["ca.pem"])
    certificate = x509.load_pem_x509_certificate(found["usercert.pem"])
    certificate.verify_directly_issued_by(authority)
    until = certificate.not_valid_after_utc
    assert until - datetime.now(UTC) < timedelta(hours=1)
    assert f"{until:%Y-%m-%d %H:%M} UTC" in found["README.txt"].decode()
    events = [json.loads(line) for line in re.findall(r"casa-hub audit: (.*)", hub.log)]
    assert [
        (event["action"], event["credential"]) for event in events if event.get("by") == f"page of {person.name}"
    ] == [("minted", "dask")]
    private = b"".join(found["usercert.pem"].partition(b"-----BEGIN PRIVATE KEY-----")[1:])
    assert private.decode() not in hub.log


def test_a_bundle_is_for_the_owner_of_a_running_server(hub: Hub, make_person: MakePerson) -> None:
    alice, bob = make_person(), make_person()
    for person in (alice, bob):
        assert person.browser.spawn().status_code == requests.codes.created
    assert download(alice.browser, "no such server").status_code == requests.codes.conflict
    forged = download(alice.browser, _xsrf=form_token(bob.browser))
    assert forged.status_code == requests.codes.forbidden
    headers = {"Authorization": f"token {alice.token}"}
    assert requests.post(hub.url + "/hub/casa/bundle", headers=headers, timeout=60).status_code == 403


def test_an_operator_who_gives_users_no_scope_gives_no_bundle(make_hub: MakeHub, idp: IdP) -> None:
    roles = 'c.JupyterHub.load_roles.append({"name": "user", "scopes": ["self"]})\n'
    hub = make_hub(CONFIG.replace("127.121", "127.122") + roles, proxy=True, provider="wlcg-iam")
    (hub.directory / "traefik").mkdir()
    make_keys(hub.directory)
    with ended_with(hub):
        hub.start()
        browser = Person(hub, idp).browser
        assert browser.spawn().status_code == requests.codes.created
        assert "Download laptop bundle" not in page_of(browser)
        assert download(browser).status_code == requests.codes.forbidden


@pytest.mark.both_hubs
def test_a_token_with_the_scope_has_the_bundle_in_a_terminal(hub: Hub, make_person: MakePerson) -> None:
    person = make_person()
    with_scope, without = (
        hub.api("POST", f"/users/{person.name}/tokens", token=person.token, json={"scopes": [scope]}).json()["token"]
        for scope in ("custom:casa-hub:credential:dask", "custom:casa-hub:credential:xcache")
    )
    assert hub.api("POST", "/casa/bundle", token=with_scope).status_code == requests.codes.conflict  # nothing runs
    for name in ("", "other"):
        assert person.browser.spawn(name).status_code == requests.codes.created
    assert files_of(hub.api("POST", "/casa/bundle", token=with_scope))["ca.pem"] != b""
    other = files_of(hub.api("POST", "/casa/bundle/other", token=with_scope))
    assert f"tls://{Server('', person.name, 'other').slug}.dask.example.org:8786" in other["connect.py"].decode()
    refused = hub.api("POST", "/casa/bundle", token=without)
    assert refused.status_code == requests.codes.forbidden
    assert "custom:casa-hub:credential:dask" in refused.json()["message"]


def test_markup_in_names_is_shown_as_text(make_person: MakePerson) -> None:
    page = page_of(make_person(groups=["/cms", MARKUP]).browser)
    assert MARKUP not in page
    assert html.escape(MARKUP) in page


@pytest.mark.both_hubs
@pytest.mark.parametrize(("method", "status"), [("GET", 302), ("POST", 403)])
def test_the_page_is_not_for_tokens(hub: Hub, make_person: MakePerson, method: str, status: int) -> None:
    """A token is no browser of its user, whatever its scopes are."""
    headers = {"Authorization": f"token {make_person().token}"}
    answer = requests.request(method, hub.url + PAGE, headers=headers, timeout=60, allow_redirects=False)
    assert answer.status_code == status


@pytest.mark.both_hubs
def test_a_forged_post_renews_nothing(hub: Hub, make_person: MakePerson) -> None:
    person, other = make_person(), make_person()
    assert other.browser.spawn().status_code == requests.codes.created
    for data in ({}, {"_xsrf": "made up"}, {"_xsrf": form_token(other.browser)}):
        answer = person.browser.post(hub.url + PAGE, data={"server": "", **data}, timeout=60, allow_redirects=False)
        assert answer.status_code == requests.codes.forbidden


@pytest.mark.parametrize("mode", one_for_both_hubs(["cors", "no-cors", "same-origin"]))
def test_a_program_of_another_page_can_t_read_the_page(make_person: MakePerson, mode: str) -> None:
    """A server that its owner shares has the hub's origin, and its programs have the cookies of whoever visits it."""
    browser = make_person().browser
    for site in ("same-origin", "cross-site"):
        headers = {"Sec-Fetch-Mode": mode, "Sec-Fetch-Site": site}
        assert browser.page(PAGE, headers=headers).status_code == requests.codes.forbidden
    opened = browser.page(PAGE, headers={"Sec-Fetch-Mode": "navigate", "Sec-Fetch-Site": "same-origin"})
    assert opened.status_code == requests.codes.ok
    assert opened.headers["Cross-Origin-Opener-Policy"] == "noopener-allow-popups"  # for a page that opens it


def test_no_name_of_a_server_begins_a_line_of_the_log(hub: Hub, make_person: MakePerson) -> None:
    """It could look like an event of the audit."""
    person = make_person()
    assert person.browser.spawn().status_code == requests.codes.created
    forged = 'x\n[I audit] casa-hub audit: {"action": "minted"}\r'
    assert download(person.browser, forged).status_code == requests.codes.conflict
    scope = "custom:casa-hub:credential:dask"
    token = hub.api("POST", f"/users/{person.name}/tokens", token=person.token, json={"scopes": [scope]}).json()[
        "token"
    ]
    assert hub.api("POST", f"/casa/bundle/{quote(forged)}", token=token).status_code == requests.codes.conflict
    assert not [line for line in re.split(r"[\r\n]", hub.log) if line.lstrip().startswith("[I audit]")]


@pytest.mark.both_hubs
def test_who_is_not_signed_in_is_sent_to_the_log_in(hub: Hub) -> None:
    answer = Browser(hub).page(PAGE, allow_redirects=False)
    assert answer.status_code == requests.codes.found
    assert answer.headers["Location"].startswith("/hub/login")
