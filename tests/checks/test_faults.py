"""One thing of a sound facility is broken at a time: `casa-hub check` names it, with the remedy."""

from __future__ import annotations

import base64
import json
import os
import re
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from werkzeug.serving import WSGIRequestHandler

from casa_hub.checks import versions
from casa_hub.delivery.kubernetes.manifests import HUB, HUB_NAMESPACE, INSTANCE
from tests.checks.conftest import CLIENT_SECRET, DISCOVERY, SCOPES, Checked, Facility
from tests.support.kubernetes.api import eventually
from tests.support.kubernetes.control_plane import ControlPlane
from tests.support.proxycert import beside

ERROR, WARNING, UNSEEN = "error", "warning", "couldn't look"
CODES = {ERROR: 1, WARNING: 0, UNSEEN: 2}

Break = Callable[[Facility], Any]


@pytest.fixture(autouse=True)
def _sound(facility: Facility) -> Iterator[None]:
    facility.sound()
    honest = WSGIRequestHandler.date_time_string
    yield
    WSGIRequestHandler.date_time_string = honest


def told(facility: Facility, checked: Checked) -> Checked:
    """The same, without a secret in it and with a remedy to each finding."""
    for secret in facility.secrets():
        assert secret not in checked.printed
    for one in checked.bad:
        assert one["remedy"], one
    return checked


def test_a_sound_facility_has_no_fault(facility: Facility) -> None:
    checked = told(facility, facility.check())
    assert (checked.code, checked.bad) == (0, []), checked.printed
    looked = {one["check"] for one in checked.findings}
    assert looked == {"configuration", "issuer", "kubernetes", "traefik", "xcache", "htcondor"}


def test_an_old_xrootd_is_named_with_what_it_lets_happen(facility: Facility) -> None:
    """Debian's stable releases have one that is older than is safe."""
    program = facility.xcache.tree.program("xrootd")
    ran = subprocess.run([program, "-v"], capture_output=True, text=True)
    version = versions.parse(ran.stdout.strip() or ran.stderr.strip())
    assert version is not None, ran
    (finding,) = facility.check().xrootd_versions
    assert f"XRootD {versions.shown(version)}" in finding["problem"]
    assert finding["status"] == ("ok" if versions.is_safe(versions.XROOTD, version) else WARNING)
    assert finding["status"] == "ok" or "Upgrade to 5.9.6 or 6.1.0" in finding["remedy"]


def test_the_probe_leaves_nothing_behind(facility: Facility) -> None:
    def objects() -> list[str]:
        root = f"namespaces/{facility.namespace}"
        paths = (
            f"/api/v1/{root}/secrets",
            f"/api/v1/{root}/services",
            f"/apis/traefik.io/v1alpha1/{root}/ingressroutetcps",
        )
        return [one["metadata"]["name"] for path in paths for one in facility.plane.request("GET", path)["items"]]

    before = objects()
    checked = told(facility, facility.check("", "--probe"))
    assert (checked.code, checked.bad) == (0, []), checked.printed
    made = [one["thing"].split()[0] for one in checked.findings if one["check"] == "probe"]
    assert made == ["Secret", "Service", "IngressRouteTCP"]
    assert objects() == before


def test_an_xcache_that_answers_at_one_of_its_addresses_is_sound(facility: Facility) -> None:
    """XRootD 5 and 6 of the tests turn ::1 away; so may one elsewhere whose IPv6 isn't in order, and clients go on."""
    checked = told(facility, facility.check("c.XCache.host = 'localhost'"))
    assert (checked.code, checked.bad) == (0, []), checked.printed


def test_an_xcache_that_takes_tokens_is_sound_and_says_what_it_refuses(facility: Facility) -> None:
    if not facility.xcache.issuer:
        pytest.skip("this XRootD has no plug-in for tokens")
    checked = told(facility, facility.check(facility.by_token))
    said = {one["problem"]: one["status"] for one in checked.findings if one["thing"].startswith("XCache 127.0.0.1")}
    for problem in (
        "accepts this hub's macaroons",
        "refuses a forged macaroon",
        "accepts this hub's tokens",
        "refuses a forged token",
    ):
        assert said.pop(problem) == "ok"
    # Older ones compare the beginnings of paths as text.
    whole_names = facility.xcache.version >= (5, 6, 9)
    [(problem, status)] = said.items()
    assert (status, "opens nothing beside a token's path" in problem) == ("ok" if whole_names else WARNING, whole_names)
    # Beside it nothing is wrong; only the issuer's pages can't be seen, because no hub runs here.
    assert {one["check"] for one in checked.bad} <= {"xcache", "facility-issuer"}
    assert checked.code == 2


def test_a_provider_that_refuses_a_token_that_nobody_has_is_sound(facility: Facility) -> None:
    proxies = beside(facility.idp)
    facility.idp.answers["/iam/proxycert"] = proxies.iam("hub", CLIENT_SECRET)
    both = EXCHANGE + PROXIES + 'c.Facility.credentials += ["exchange"]\n'
    checked = told(facility, facility.check(both))
    said = {one["thing"]: one["problem"] for one in checked.findings if one["check"] in {"exchange", "x509"}}
    assert "only a log-in shows whether for this audience" in said.pop("exchange:rucio, exchange:tape")
    assert "only a log-in shows whether it makes proxies" in said.pop(f"{facility.idp.issuer}/iam/proxycert")
    assert list(said.values()) == ["offers token exchange"]
    assert [one for one in checked.bad if one["check"] in {"exchange", "x509"}] == []
    assert proxies.asked == []  # for nobody


def test_a_servicex_that_answers_is_sound(facility: Facility) -> None:
    checked = told(facility, facility.check(SERVICEX.format(url=facility.idp.issuer)))
    # Its client and XRootD's want two things of one variable, which nobody can put right.
    assert [one["thing"] for one in checked.bad] == ["Facility.bearer_token_file"]
    assert [one["problem"] for one in checked.findings if one["check"] == "servicex"] == ["answers"]


SERVICEX = """
c.Facility.credentials = ["xcache", "htcondor", "dask", "servicex"]
c.ServiceX.endpoint = "{url}"
c.ServiceX.type = "uproot"
"""


@dataclass(frozen=True)
class Fault:
    """Something broken, and what must be said of it."""

    name: str
    #: Breaks it; text that is returned is configuration.
    broken: Break | str
    check: str
    #: Begins so.
    thing: str
    #: Part of problem and remedy.
    words: str
    status: str = ERROR
    options: tuple[str, ...] = ()


def changed(path: str, **change: Any) -> Break:
    """A document of the identity provider's says something else; None: nothing."""

    def broken(facility: Facility) -> None:
        before = facility.idp.change.get(path, dict)
        facility.idp.change[path] = lambda document: {
            name: value for name, value in {**before(document), **change}.items() if value is not None
        }

    return broken


def answered(path: str, status: int, body: Any) -> Break:
    def broken(facility: Facility) -> None:
        facility.idp.answers[path] = (status, body)

    return broken


def refreshed(status: int, code: str, description: str = "") -> Break:
    def broken(facility: Facility) -> None:
        facility.idp.refresh_answer = (status, {"error": code, "error_description": description})

    return broken


def sent_back(facility: Facility) -> None:
    def answer(environ: Any, start_response: Any) -> list[bytes]:
        where = "https://hub.example.org/hub/oauth_callback?error=invalid_scope&state=x"
        start_response("302 Found", [("Location", where), ("Content-Length", "0")])
        return [b""]

    facility.idp.answers["/oauth2/authorize"] = answer


def late(facility: Facility) -> None:
    WSGIRequestHandler.date_time_string = lambda self, timestamp=None: "Fri, 01 Mar 2024 12:00:00 GMT"


def key(name: str, content: bytes, mode: int = 0o600) -> Callable[[Facility], str]:
    """A key file of the facility's own, named by the setting `name`."""

    def broken(facility: Facility) -> str:
        file = facility.directory / "a-key"
        file.unlink(missing_ok=True)
        file.touch(mode=0o600)
        file.write_bytes(content)
        file.chmod(mode)
        return f"c.{name} = {str(file)!r}\n"

    return broken


def nobody_there(facility: Facility) -> None:
    facility.use_account(facility.kubeconfig.read_text().replace(facility.plane.url, f"https://{facility.nowhere}"))


def unknown_account(facility: Facility) -> None:
    document = json.loads(facility.kubeconfig.read_text())
    document["users"][0]["user"]["token"] = "x" * 30
    facility.use_account(json.dumps(document))


def with_rules(*rules: dict[str, Any]) -> Break:
    def broken(facility: Facility) -> None:
        account = facility.plane.make_account("other-hub", facility.namespace, list(rules))
        facility.use_account(account.read_text())

    return broken


def rule(group: str, *resources: str, verbs: str = "get list watch create patch delete") -> dict[str, Any]:
    return {"apiGroups": [group], "resources": list(resources), "verbs": verbs.split()}


PODS = rule("", "pods", "events", "services", "persistentvolumeclaims")
ROUTES = rule("traefik.io", "ingressroutetcps")

CONFIGURATION = [
    Fault(
        "a key that doesn't exist",
        "c.XCache.sitename = 'x'",
        "configuration",
        "XCache.sitename",
        "there is no such setting. Did you mean site_name?",
    ),
    Fault(
        "a section that doesn't exist",
        "c.Facilty.hub_id = 'x'",
        "configuration",
        "Facilty",
        "Did you mean Facility?",
    ),
    Fault(
        "a credential that doesn't exist",
        "c.Facility.credentials = ['xcach']",
        "configuration",
        "Facility.credentials",
        "Did you mean xcache?",
    ),
    Fault(
        "a value of a wrong type",
        "c.Facility.hub_id = 7",
        "configuration",
        "the configuration",
        "'hub_id' trait",
    ),
    Fault(
        "half of a pair",
        "c.Facility.credentials = ['servicex']\nc.ServiceX.endpoint = 'https://servicex.invalid'",
        "configuration",
        "ServiceX.type",
        "is not set",
    ),
    Fault(
        "a required credential that isn't enabled",
        "c.Facility.required = ['bearer']",
        "configuration",
        "Facility.required",
        "Add it there.",
    ),
    Fault(
        "no client secret",
        "c.CasaOAuthenticator.client_secret = ''",
        "configuration",
        "CasaOAuthenticator.client_secret",
        "is not set",
    ),
    Fault("no crypt key", "c.CryptKeeper.keys = []", "configuration", "CryptKeeper.keys", "openssl rand -hex 32"),
    Fault(
        "an issuer without https",
        "c.CasaOAuthenticator.issuer = 'http://idp.example.org'",
        "configuration",
        "CasaOAuthenticator.issuer",
        "is not https",
    ),
    Fault(
        "a key file that isn't there",
        "c.XCache.key_file = '/nowhere/xcache'",
        "configuration",
        "XCache.key_file (/nowhere/xcache)",
        "does not exist. Put XRootD's macaroons.secretkey there",
    ),
    Fault(
        "a key in a wrong alphabet",
        key("XCache.key_file", base64.urlsafe_b64encode(b"\xff" * 60) + b"\n"),
        "configuration",
        "XCache.key_file",
        "url-safe",
    ),
    Fault(
        "a key that everybody can read",
        key("Dask.secret_file", b"A" * 44 + b"\n", 0o644),
        "configuration",
        "Dask.secret_file",
        "can be read by everybody",
        WARNING,
    ),
]

ISSUER = [
    Fault(
        "an issuer that isn't there",
        lambda facility: f"c.CasaOAuthenticator.issuer = 'http://{facility.nowhere}'",
        "issuer",
        "http://127.0.0.1",
        "can't be reached",
    ),
    Fault(
        "an issuer of another name",
        changed(DISCOVERY, issuer="http://localhost:1"),
        "issuer",
        "http://localhost",
        "Set CasaOAuthenticator.issuer to the name that the provider gives itself",
    ),
    Fault(
        "a provider without userinfo",
        changed(DISCOVERY, userinfo_endpoint=None),
        "issuer",
        "http://localhost",
        "the document has no userinfo_endpoint",
    ),
    Fault("no key set", answered("/jwks", 404, {}), "issuer", "http://localhost", "no key set (status 404)"),
    Fault(
        "a key set without a key", answered("/jwks", 200, {"keys": []}), "issuer", "http://localhost", "can verify a"
    ),
    Fault("another clock", late, "issuer", "clock of issuer", "behind this machine's"),
    Fault(
        "a redirect URI that isn't registered",
        answered("/oauth2/authorize", 400, "<html>Invalid redirect URI"),
        "issuer",
        "redirect URI https://hub.example.org/hub/oauth_callback",
        "this very redirect URI must be registered",
    ),
    Fault("a scope that isn't allowed", sent_back, "issuer", "client at hub.example.org", "invalid_scope"),
    Fault(
        "a scope that isn't offered",
        changed(DISCOVERY, scopes_supported=SCOPES[:-1]),
        "issuer",
        "CasaOAuthenticator.scope",
        "doesn't offer wlcg.groups",
        WARNING,
    ),
    Fault(
        "no offline access",
        changed(DISCOVERY, scopes_supported=[one for one in SCOPES if one != "offline_access"]),
        "issuer",
        "CasaOAuthenticator.scope",
        "may be no refresh token",
        WARNING,
    ),
    Fault(
        "no refresh tokens",
        changed(DISCOVERY, grant_types_supported=["authorization_code"]),
        "issuer",
        "issuer http://localhost",
        "gives no refresh tokens",
        WARNING,
    ),
    Fault(
        "client credentials sent in another way",
        changed(DISCOVERY, token_endpoint_auth_methods_supported=["client_secret_post"]),
        "issuer",
        "CasaOAuthenticator.basic_auth",
        "Set it to False",
    ),
    Fault(
        "a wrong client secret",
        refreshed(401, "invalid_client"),
        "issuer",
        "http://localhost",
        "CasaOAuthenticator.client_id and client_secret must be those of the registration",
    ),
    Fault(
        "a wrong client secret, as INDIGO IAM says it",
        refreshed(401, "unauthorized", "Bad credentials"),
        "issuer",
        "http://localhost",
        "CasaOAuthenticator.client_id and client_secret must be those of the registration",
    ),
    Fault(
        "a client without the refresh grant, as INDIGO IAM says it",
        refreshed(401, "invalid_client", "Unauthorized grant type"),
        "issuer",
        "http://localhost",
        "the grant type refresh_token must be allowed",
    ),
    Fault(
        "a client without the refresh grant",
        refreshed(400, "unauthorized_client"),
        "issuer",
        "http://localhost",
        "the grant type refresh_token must be allowed",
    ),
    Fault(
        "a token end point that fails",
        answered("/oauth2/token", 500, {}),
        "issuer",
        "http://localhost",
        "gave no usable answer (HTTP 500)",
        UNSEEN,
    ),
]

KUBERNETES = [
    Fault("no API server", nobody_there, "kubernetes", "the Kubernetes API server", "can't be reached"),
    Fault("an account that is gone", unknown_account, "kubernetes", "the Kubernetes API server", "doesn't know this"),
    Fault(
        "one verb that is missing",
        with_rules(PODS, ROUTES, rule("", "secrets", verbs="get list create delete")),
        "kubernetes",
        "the hub's right to secrets",
        "may not patch them",
    ),
    Fault(
        "no right to routes",
        with_rules(PODS, rule("", "secrets")),
        "kubernetes",
        "the hub's right to ingressroutetcps.traefik.io",
        "may not get, list, create, patch, delete them",
    ),
    Fault(
        "another version of Traefik",
        "c.TraefikRoutes.kind = 'traefik-v2'",
        "kubernetes",
        "ingressroutetcps.traefik.containo.us/v1alpha1",
        "nothing of traefik.containo.us is installed",
    ),
    Fault(
        "no Gateway API",
        "c.TraefikRoutes.kind = 'gateway'\nc.TraefikRoutes.gateway = 'a/b'",
        "kubernetes",
        "tlsroutes.gateway.networking.k8s.io/v1",
        "Install the CustomResourceDefinitions",
    ),
]

TRAEFIK = [
    Fault(
        "no wildcard",
        "c.Dask.domain = 'none.test'",
        "traefik",
        "DNS name casa-hub-check.dask.none.test",
        "Make a DNS record *.dask.none.test",
    ),
    Fault(
        "no wildcard for workers",
        "c.Dask.domain = 'half.test'",
        "traefik",
        "DNS name casa-hub-check.dask-worker.half.test",
        "Make a DNS record *.dask-worker.half.test",
    ),
    Fault(
        "no entry points",
        "c.Dask.domain = 'closed.test'",
        "traefik",
        "Traefik at casa-hub-check.dask.closed.test:8786",
        "needs the entry point dask at port 8786",
    ),
]

XCACHE = [
    Fault(
        "another key",
        key("XCache.key_file", base64.b64encode(os.urandom(48)) + b"\n"),
        "xcache",
        "XCache 127.0.0.1",
        "refuses this hub's macaroons (status 403). XCache.key_file must be its macaroons.secretkey",
    ),
    Fault("another site", "c.XCache.site_name = 'T3_XX'", "xcache", "XCache 127.0.0.1", "XCache.site_name (T3_XX)"),
    Fault(
        "no XCache",
        lambda facility: f"c.XCache.port = {facility.nowhere.partition(':')[2]}",
        "xcache",
        "XCache 127.0.0.1",
        "can't be reached",
    ),
    Fault(
        "an XCache without HTTP",
        lambda facility: f"c.XCache.port = {facility.xcache.origin.port}",
        "xcache",
        "XCache 127.0.0.1",
        "Give the XCache an HTTP door",
        UNSEEN,
    ),
    Fault(
        "an XCache for everybody",
        lambda facility: f"c.XCache.port = {facility.open_xrootd}",
        "xcache",
        "XCache 127.0.0.1",
        "everybody can read",
    ),
    Fault(
        "no right to read",
        "c.XCache.activities = ['LIST']",
        "xcache",
        "XCache 127.0.0.1",
        "DOWNLOAD must be in XCache.activities",
    ),
    Fault(
        "another audience",
        lambda facility: facility.by_token + "c.XCache.audience = 'https://other.test'\n",
        "xcache",
        "XCache 127.0.0.1",
        "refuses this hub's tokens (status 403). In its scitokens.cfg, issuer must be http",
    ),
    Fault(
        "another issuer",
        lambda facility: facility.by_token + "c.FacilityIssuer.vo = 'other'\n",
        "xcache",
        "XCache 127.0.0.1",
        "/other, audience https://",
    ),
    Fault(
        "tokens without an issuer",
        "c.XCache.credential = 'both'",
        "configuration",
        "XCache.credential",
        "Set FacilityIssuer.keys and FacilityIssuer.vo.",
    ),
]

HTCONDOR = [
    Fault(
        "another key",
        key("HTCondor.key_file", os.urandom(64)),
        "htcondor",
        "HTCondor pool",
        "doesn't accept this hub's IDTOKENs. HTCondor.key_file must be the pool's key POOL byte by byte",
    ),
    Fault("a key id that isn't there", "c.HTCondor.key_id = 'other'", "htcondor", "HTCondor pool", "key other byte"),
    Fault(
        "another trust domain", "c.HTCondor.trust_domain = 'x.test'", "htcondor", "HTCondor pool", "(x.test) the pool's"
    ),
    Fault("another schedd", "c.HTCondor.schedd = 'x'", "htcondor", "HTCondor.schedd", "Choose one of schedd@localhost"),
    Fault(
        "no pool",
        lambda facility: f"c.HTCondor.collector = {facility.nowhere!r}",
        "htcondor",
        "HTCondor pool",
        "can't be reached. Check HTCondor.collector",
    ),
]

SERVICES = [
    Fault(
        "no ServiceX",
        lambda facility: SERVICEX.format(url=f"http://{facility.nowhere}"),
        "servicex",
        "ServiceX http://127.0.0.1",
        "Check ServiceX.endpoint",
    ),
    Fault(
        "something else than a ServiceX",
        lambda facility: SERVICEX.format(url=f"{facility.idp.issuer}/elsewhere"),
        "servicex",
        "ServiceX http://localhost",
        "doesn't say that it is a ServiceX",
        WARNING,
    ),
]

#: Each has a service or a party of its own to break.
EXCHANGE = """
c.Facility.credentials = ["xcache", "htcondor", "dask", "exchange"]
c.TokenExchange.services = {"rucio": {"preset": "rucio"}, "tape": {"audience": "tape", "scope": "storage.stage:/"}}
"""
PROXIES = """
c.Facility.credentials = ["xcache", "htcondor", "dask", "x509"]
c.CasaOAuthenticator.scope = [*"openid profile email offline_access wlcg.groups".split(), "proxy:generate"]
"""


def s3_at(url: str) -> Callable[[Facility], str]:
    """An S3 there, with a token of the facility's own issuer."""
    return lambda facility: (
        f"""
c.Facility.credentials = ["xcache", "htcondor", "dask", "s3"]
c.FacilityIssuer.keys = {str(facility.keys)!r}
c.FacilityIssuer.url = "https://{facility.nowhere}/hub/casa/issuer"
c.FacilityIssuer.vo = "cms"
c.S3.endpoint = {url.format(nowhere=facility.nowhere, idp=facility.idp.issuer)!r}
c.S3.role_arn = "arn:aws:iam:::role/physicist"
"""
    )


S3_BY_EXCHANGE = """
c.Facility.credentials = ["xcache", "htcondor", "dask", "s3"]
c.S3.source, c.S3.audience, c.S3.scope = "exchange", "s3", "s3.read"
c.S3.endpoint = "http://127.0.0.1:9"
c.S3.role_arn = "arn:aws:iam:::role/physicist"
"""


def exchanged(
    audience: str, status: int, code: str, description: str = "", *, more: str = EXCHANGE
) -> Callable[[Facility], str]:
    """The identity provider answers so to an exchange for this audience."""

    def broken(facility: Facility) -> str:
        facility.idp.exchange_answers[audience] = (status, {"error": code, "error_description": description})
        return more

    return broken


def proxycert(status: int, **body: str) -> Callable[[Facility], str]:
    """INDIGO IAM's end point for proxies answers so."""

    def broken(facility: Facility) -> str:
        facility.idp.answers["/iam/proxycert"] = (status, body)
        return PROXIES

    return broken


def without_exchange(facility: Facility) -> str:
    changed(DISCOVERY, grant_types_supported=["authorization_code", "refresh_token"])(facility)
    return EXCHANGE


FETCHED = [
    Fault(
        "a client without the grant, as INDIGO IAM says it",
        exchanged("rucio", 401, "invalid_client", "Unauthorized grant type"),
        "exchange",
        "exchange:rucio",
        "this hub's client may not exchange tokens",
    ),
    Fault(
        "a client without the grant, as Keycloak says it",
        exchanged("tape", 400, "invalid_request", "Standard token exchange is not enabled for the requested client"),
        "exchange",
        "exchange:tape",
        "In Keycloak, the client needs Standard token exchange",
    ),
    Fault(
        "a scope that isn't the client's",
        exchanged("tape", 400, "invalid_scope", "Invalid scope: storage.stage:/"),
        "exchange",
        "exchange:tape",
        "may not ask for the scope storage.stage:/",
    ),
    Fault(
        "a scope of an S3's token that isn't the client's",
        exchanged("s3", 400, "invalid_scope", more=S3_BY_EXCHANGE),
        "exchange",
        "s3",
        "may not ask for the scope s3.read",
    ),
    Fault("no grant in the discovery", without_exchange, "exchange", "issuer http://", "token-exchange", WARNING),
    Fault(
        "an exchange that fails",
        exchanged("tape", 503, "temporarily_unavailable"),
        "exchange",
        "exchange:tape",
        "it was answered with HTTP status 503",
        UNSEEN,
    ),
    Fault(
        "an IAM without proxies",
        proxycert(404),
        "x509",
        "http://localhost",
        "In INDIGO IAM it needs proxycert.enabled=true",
    ),
    Fault(
        "an IAM that refuses the client",
        proxycert(401, error="unauthorized", error_description="Bad credentials"),
        "x509",
        "http://localhost",
        "CasaOAuthenticator.client_id and client_secret",
    ),
    Fault(
        "no service of proxies",
        lambda facility: PROXIES + f"c.X509.source = 'service'\nc.X509.url = 'http://{facility.nowhere}/redeem'\n",
        "x509",
        "http://127.0.0.1",
        "Check X509.url",
    ),
    Fault(
        "a service that asks for no token",
        lambda facility: PROXIES + f"c.X509.source = 'service'\nc.X509.url = '{facility.idp.issuer}/servicex'\n",
        "x509",
        "http://localhost",
        "answers a token that nobody has as if it were somebody's",
    ),
    Fault("no S3", s3_at("http://{nowhere}"), "s3", "S3 http://127.0.0.1", "Check S3.endpoint"),
    Fault("something else than an STS", s3_at("{idp}"), "s3", "STS http://localhost", "is no STS that takes tokens"),
]

FAULTS = CONFIGURATION + ISSUER + KUBERNETES + TRAEFIK + XCACHE + HTCONDOR + SERVICES + FETCHED


@pytest.mark.parametrize("fault", [pytest.param(fault, id=f"{fault.check}-{fault.name}") for fault in FAULTS])
def test_a_fault_is_named_with_its_remedy(facility: Facility, fault: Fault) -> None:
    config = fault.broken if isinstance(fault.broken, str) else fault.broken(facility)
    check_named(facility, fault, facility.check(config or "", *fault.options))


def check_named(facility: Facility, fault: Fault, checked: Checked) -> None:
    told(facility, checked)
    said = [
        (one["status"], f"{one['problem']}. {one['remedy']}")
        for one in checked.bad
        if one["check"] == fault.check and one["thing"].startswith(fault.thing)
    ]
    assert [status for status, text in said if fault.words in text] == [fault.status], checked.bad
    assert checked.code == CODES[fault.status], checked.bad


def test_servers_that_never_answer_are_told_in_seconds(facility: Facility) -> None:
    """All at once. They are connected to, and say nothing: as behind a firewall that swallows packets."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as silent:
        port = silent.getsockname()[1]
        where = f"127.0.0.1:{port}"
        facility.use_account(facility.kubeconfig.read_text().replace(facility.plane.url, f"https://{where}"))
        config = (
            EXCHANGE
            + s3_at(f"http://{where}")(facility)
            + SERVICEX.format(url=f"http://{where}")
            + (
                'c.Facility.credentials += ["exchange", "s3", "x509"]\n'
                f"c.CasaOAuthenticator.issuer = 'http://{where}'\nc.XCache.port = {port}\n"
                f"c.HTCondor.collector = {where!r}\n"
            )
        )
        begin = time.monotonic()
        checked = told(facility, facility.check(config))
        assert time.monotonic() - begin < 30  # one after the other they would take ten seconds each
    silences = {one["check"] for one in checked.bad if one["problem"].startswith("no answer within")}
    assert silences == {"issuer", "kubernetes", "xcache", "htcondor", "servicex", "exchange", "s3", "x509"}, checked.bad
    (waiting,) = re.findall("casa-hub: still looking at (.*) \\.\\.\\.\n", checked.printed)
    assert silences <= set(waiting.split(", "))


# -- in the cluster ----------------------------------------------------------------------------------------------------


@contextmanager
def made(plane: ControlPlane, path: str, body: dict[str, Any]) -> Iterator[None]:
    plane.request("POST", path, body)
    where = f"{path}/{body['metadata']['name']}"
    try:
        yield
    finally:
        plane.request("DELETE", where)
        eventually(lambda: plane.gone(where))


def labels(hub: str, instance: str = "0" * 12) -> dict[str, str]:
    return {HUB: hub, HUB_NAMESPACE: "default", INSTANCE: instance}


def pod(facility: Facility, hub: str) -> tuple[str, dict[str, Any]]:
    body = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "jupyter-other", "labels": labels(hub)},
        "spec": {"containers": [{"name": "notebook", "image": "none.test/x:1"}]},
    }
    return f"/api/v1/namespaces/{facility.namespace}/pods", body


def test_another_hub_of_the_same_name(facility: Facility) -> None:
    fault = Fault("", "", "kubernetes", "Facility.hub_id", "Give each hub its own Facility.hub_id", WARNING)
    with made(facility.plane, *pod(facility, "test")):
        check_named(facility, fault, facility.check())


def test_another_hub_and_no_name(facility: Facility) -> None:
    fault = Fault("", "", "kubernetes", "Facility.hub_id", "is not set, and other hubs", WARNING)
    with made(facility.plane, *pod(facility, "other")):
        assert facility.check().bad == []
        check_named(facility, fault, facility.check("c.Facility.hub_id = ''"))


def test_another_hub_with_the_same_domain(facility: Facility) -> None:
    fault = Fault("", "", "kubernetes", "Dask.domain", "other of namespace default")
    body = {
        "apiVersion": "traefik.io/v1alpha1",
        "kind": "IngressRouteTCP",
        "metadata": {"name": "casa-other", "labels": labels("other")},
        "spec": {"routes": [{"match": "HostSNI(`ada.dask.sound.test`)"}]},
    }
    path = f"/apis/traefik.io/v1alpha1/namespaces/{facility.namespace}/ingressroutetcps"
    with made(facility.plane, path, body):
        check_named(facility, fault, facility.check())
        assert facility.check("c.Dask.domain = 'closed.test'", "--local").bad == []


@contextmanager
def elsewhere(facility: Facility, **metadata: Any) -> Iterator[None]:
    """Another namespace, with a route below this hub's domain."""
    namespace = facility.plane.make_namespace()
    body = {
        "apiVersion": "traefik.io/v1alpha1",
        "kind": "IngressRouteTCP",
        "metadata": {"name": "dask-ada", **metadata},
        "spec": {"routes": [{"match": "HostSNI(`ada.dask.sound.test`)"}]},
    }
    facility.plane.request("POST", f"/apis/traefik.io/v1alpha1/namespaces/{namespace}/ingressroutetcps", body)
    try:
        yield
    finally:
        facility.plane.delete_namespace(namespace)
        eventually(lambda: facility.plane.gone(f"/api/v1/namespaces/{namespace}"), 60)


def domain(checked: Checked) -> list[str]:
    return [one["problem"] for one in checked.findings if one["thing"] == "Dask.domain"]


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        ({"labels": labels("other")}, "servers of another hub (other of namespace default) have host names below"),
        ({}, "that is not a casa_hub hub has host names below the same domain"),
    ],
    ids=["another hub", "something else"],
)
def test_the_same_domain_in_another_namespace(facility: Facility, metadata: dict[str, Any], words: str) -> None:
    """An administrator's account sees it; the hub's own, which may not look there, says so and calls nothing wrong."""
    with elsewhere(facility, **metadata):
        checked = told(facility, facility.check())
        assert (checked.code, checked.bad) == (0, []), checked.printed
        assert [text.partition("; ")[2] for text in domain(checked)] == [
            "this account may not list those of other namespaces"
        ]
        facility.use_account(facility.plane.kubeconfig.read_text())
        fault = Fault("", "", "kubernetes", "Dask.domain", words)
        check_named(facility, fault, facility.check())
    assert domain(facility.check()) == ["nobody else has routes below it in the cluster"]


def test_a_quota_that_is_used_up_is_seen_by_the_probe(facility: Facility) -> None:
    body = {
        "apiVersion": "v1",
        "kind": "ResourceQuota",
        "metadata": {"name": "none"},
        "spec": {"hard": {"services": "0"}},
    }
    path = f"/api/v1/namespaces/{facility.namespace}/resourcequotas"
    fault = Fault("", "", "probe", "Service ", "exceeded quota")
    with made(facility.plane, path, body):
        eventually(lambda: facility.plane.request("GET", f"{path}/none").get("status", {}).get("hard"))
        assert facility.check().bad == []
        check_named(facility, fault, facility.check("", "--probe"))
