"""What `casa-hub check` makes of what others answer: pure."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import jwt
import pytest
import yaml

from casa_hub.checks import cluster, hub, issuer, runner, servicex, xcache
from casa_hub.checks.findings import Finding, Status, error, from_problem, ok, unseen, warning
from casa_hub.checks.htcondor import read as read_pool
from casa_hub.checks.htcondor import read_forged as read_forged_at_pool
from casa_hub.checks.htcondor import read_token as read_token_at_pool
from casa_hub.checks.nobody import forged
from casa_hub.checks.rights import needed
from casa_hub.checks.web import Answer, clock
from casa_hub.credentials.htcondor import HTCondor
from casa_hub.credentials.xcache import XCache
from casa_hub.delivery.kubernetes.manifests import HUB, HUB_NAMESPACE
from casa_hub.delivery.kubernetes.routes import ROUTES
from casa_hub.errors import Problem, Severity
from casa_hub.identity.errors import OIDCError
from casa_hub.identity.verdicts import of_token_answer
from casa_hub.issuer.settings import FacilityIssuer
from casa_hub.issuer.tokens import new_private_key
from tests.support.kubernetes.hub import CHART_RULES, granted_by

ROLE = Path(__file__).parents[3] / "helm-values" / "role.yaml"
CALLBACK = "https://hub.example.org/hub/oauth_callback"


def answer(status: int, document: Any = None, **headers: str) -> Answer:
    return Answer(status, headers, json.dumps(document).encode(), 0.0)


def statuses(findings: list[Finding]) -> list[Status]:
    return [one.status for one in findings]


# -- findings ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("findings", "code", "text"),
    [
        ([], 0, "Sound: 0 ok"),
        ([ok("a", "b")], 0, "Sound: 1 ok"),
        ([ok("a", "b"), warning("a", "b", "c")], 0, "1 warning; 1 ok"),
        ([unseen("a", "b", "c")], 2, "1 couldn't be looked at; 0 ok"),
        (
            [error("a", "b", "c"), error("d", "e", "f"), unseen("a", "b", "c")],
            1,
            "2 errors, 1 couldn't be looked at; 0 ok",
        ),
    ],
)
def test_the_exit_code_and_the_last_line(findings: list[Finding], code: int, text: str) -> None:
    assert runner.exit_code([findings, []]) == code
    assert runner.summary([findings, []]) == text


def test_a_problem_of_the_hub_s_start_is_a_finding() -> None:
    assert from_problem(Problem(Severity.WARNING, "a", "is odd.", "Correct it.")) == warning(
        "a", "is odd", "Correct it."
    )
    assert str(error("a", "is odd", "Correct it.")) == "error: a: is odd. Correct it."


async def test_a_check_that_fails_hides_nothing_and_shows_no_secret() -> None:
    async def look(site: Any) -> Any:
        yield ok("a", "b")
        raise ValueError("a-secret")

    found = await runner._all("it", look, None)  # type: ignore[arg-type]
    assert statuses(found) == [Status.OK, Status.UNSEEN]
    assert "ValueError" in str(found[1])
    assert "a-secret" not in str(found)


def test_what_others_say_can_t_move_a_terminal_s_cursor() -> None:
    assert "\x1b" not in runner._line(error("a\x1b[2J", "b\r", "c"))


# -- clocks ------------------------------------------------------------------------------------------------------------

NOON = 1709294400.0  # 2024-03-01 12:00:00 UTC


@pytest.mark.parametrize(
    ("ours", "expected", "words"),
    [
        (0, [Status.OK], ""),
        (4, [Status.OK], ""),
        (-20, [Status.WARNING], "20 s ahead of"),
        (300, [Status.ERROR], "300 s behind this machine's: it fails"),
    ],
)
def test_clocks(ours: float, expected: list[Status], words: str) -> None:
    found = clock("x", answer(200, date="Fri, 01 Mar 2024 12:00:00 GMT"), NOON + ours, fails="it fails")
    assert statuses(found) == expected
    assert words in str(found[0])


@pytest.mark.parametrize("headers", [{}, {"Date": "noon"}])
def test_a_server_that_doesn_t_tell_its_time(headers: dict[str, str]) -> None:
    assert clock("x", answer(200, **headers), NOON, fails="") == []


# -- issuer ------------------------------------------------------------------------------------------------------------


def page(status: int, location: str = "") -> Answer:
    return answer(status, location=location)


@pytest.mark.parametrize(
    ("own", "nobodys", "status", "words"),
    [
        (page(200), page(400), Status.OK, "is registered"),
        (page(302, "https://idp/login"), page(400), Status.OK, "is registered"),
        # IAM: first of all, who is it?
        (page(302, "https://idp/login"), page(302, "https://idp/login"), Status.OK, "only after a log-in"),
        (page(400), page(400), Status.ERROR, "must be registered"),
        (page(302, CALLBACK + "?error=invalid_scope&state=x"), page(400), Status.ERROR, "invalid_scope"),
        (page(503), page(503), Status.UNSEEN, "status 503"),
    ],
)
def test_an_authorization_request(own: Answer, nobodys: Answer, status: Status, words: str) -> None:
    found = issuer.authorization(own, nobodys, CALLBACK)
    assert (found.status, words in str(found)) == (status, True), found


def test_an_error_code_that_is_none_is_cut_down() -> None:
    found = issuer.authorization(page(302, CALLBACK + "?error=%1b[2J<script>&x=1"), page(400), CALLBACK)
    assert "2Jscript" in found.problem
    assert "<" not in found.problem


def test_a_group_by_name_is_what_the_provider_offers() -> None:
    """IAM shows optional groups only to who asks for them: wlcg.groups:/cms/production."""
    scopes = ("openid", "wlcg.groups:/cms/production", "storage.read:/")
    document = {"scopes_supported": ["openid", "wlcg.groups", "storage.read"]}
    assert statuses(issuer.offered(document, scopes, basic_auth=True)) == [Status.OK]


@pytest.mark.parametrize(
    ("document", "basic_auth", "expected"),
    [
        ({}, True, []),
        ({}, False, [Status.ERROR]),
        ({"scopes_supported": ["openid", "wlcg.groups"]}, True, [Status.OK]),
        ({"scopes_supported": ["openid"]}, True, [Status.WARNING]),
        ({"grant_types_supported": ["authorization_code"]}, True, [Status.WARNING]),
        ({"token_endpoint_auth_methods_supported": ["client_secret_post"]}, True, [Status.ERROR]),
        ({"token_endpoint_auth_methods_supported": ["client_secret_post"]}, False, []),
        # What neither setting can do is nothing that the other one would.
        ({"token_endpoint_auth_methods_supported": ["private_key_jwt"]}, True, []),
    ],
)
def test_what_a_provider_offers(document: dict[str, Any], basic_auth: bool, expected: list[Status]) -> None:
    assert statuses(issuer.offered(document, ("openid", "wlcg.groups"), basic_auth=basic_auth)) == expected


def refused(status: int, code: str, description: str = "") -> OIDCError:
    said = of_token_answer(status, {"error": code, "error_description": description})
    return OIDCError("https://idp/token", said)


SECRET, GRANT = "client_id and client_secret must be those", "the grant type refresh_token must be allowed"


@pytest.mark.parametrize(
    ("answered", "status", "words"),
    [
        (refused(400, "invalid_grant", "Invalid refresh token"), Status.OK, "whether the client may refresh"),
        (refused(401, "invalid_token", "Refresh token for value x was not found"), Status.OK, "or is suspended"),
        (refused(401, "invalid_client"), Status.ERROR, SECRET),
        (refused(401, "unauthorized", "Bad credentials"), Status.ERROR, SECRET),
        (refused(401, "unauthorized", "Full authentication is required"), Status.ERROR, SECRET),
        (refused(401, "unauthorized_client", "Invalid client or Invalid client credentials"), Status.ERROR, SECRET),
        (refused(401, "invalid_client", "Invalid client or Invalid client credentials"), Status.ERROR, SECRET),
        (refused(400, "unauthorized_client"), Status.ERROR, GRANT),
        (refused(401, "invalid_client", "Unauthorized grant type"), Status.ERROR, GRANT),
        (refused(400, "unsupported_grant_type"), Status.ERROR, GRANT),
        (refused(401, "invalid_client", "Client is suspended: hub"), Status.ERROR, "put the client back into service"),
        (refused(400, "invalid_scope", "x"), Status.ERROR, "scopes, grant types"),
        (refused(500, "server_error"), Status.UNSEEN, "HTTP 500"),
    ],
)
def test_what_a_refused_refresh_says_of_the_client(answered: OIDCError, status: Status, words: str) -> None:
    found = issuer.client("https://idp/token", answered)
    assert (found.status, words in str(found)) == (status, True), found
    # The provider's own words, for those who know it.
    assert status is not Status.ERROR or "operator must act (" in found.problem


@pytest.mark.parametrize(
    ("provider", "supported", "scopes", "words"),
    [
        ("keycloak", True, ("openid", "offline_access"), "sends none for log-ins with the scope offline_access"),
        ("keycloak", True, ("openid",), "/hub/backchannel-logout"),
        ("keycloak", False, ("openid", "offline_access"), ""),
        ("oidc", True, ("openid", "offline_access"), ""),
    ],
)
def test_what_becomes_of_a_log_out_at_the_provider_is_told_and_is_no_fault(
    provider: str, supported: bool, scopes: tuple[str, ...], words: str
) -> None:
    """Whether somebody wants it, nobody sees; `offline_access` is the default, so a warning would be everybody's."""
    found = issuer.log_outs({"backchannel_logout_supported": supported}, scopes, provider=provider)
    assert [(one.status, words in one.problem) for one in found] == ([(Status.OK, True)] if words else [])


# -- Kubernetes --------------------------------------------------------------------------------------------------------


def test_the_table_of_rights_is_the_chart_s_and_ours_and_no_more() -> None:
    """What helm-values/role.yaml grants is tried verb by verb in tests/kubernetes/hub/test_permissions.py."""
    ours = next(each for each in yaml.safe_load_all(ROLE.read_text()) if each["kind"] == "Role")
    used = {right for kind in ROUTES for right in needed(kind, secrets=True, routes=True, policies=True, claims=True)}
    assert used - granted_by(CHART_RULES) == granted_by(ours["rules"])


def test_rights_of_what_is_not_used_are_not_asked_for() -> None:
    few = needed("traefik", secrets=False, routes=False, policies=True, claims=False)
    assert {right.resource for right in few} == {"pods", "events"}
    inside = needed("none", secrets=True, routes=True, policies=False, claims=False)
    assert {right.resource for right in inside} == {"pods", "events", "secrets", "services"}


def test_a_right_that_is_missing_or_unknown() -> None:
    rights = needed("traefik", secrets=True, routes=True, policies=False, claims=False)
    assert statuses(cluster.read_rights(dict.fromkeys(rights, True), "ns")) == [Status.OK]
    (found,) = cluster.read_rights({right: right.verb != "patch" or not right.group for right in rights}, "ns")
    assert found.thing == "the hub's right to ingressroutetcps.traefik.io"
    assert "may not patch them in namespace ns" in found.problem
    (found,) = cluster.read_rights(dict.fromkeys(rights, None), "")
    assert found.status is Status.UNSEEN


@pytest.mark.parametrize(
    ("version", "sidecar", "status"),
    [
        ("v1.36.3", True, Status.OK),
        ("v1.29.0-eks-1", True, Status.OK),
        ("v1.28.9", True, Status.ERROR),
        ("v1.28.9", False, Status.OK),
        ("", True, Status.UNSEEN),
    ],
)
def test_versions_of_kubernetes(version: str, sidecar: bool, status: Status) -> None:
    assert cluster.read_version({"gitVersion": version}, sidecar=sidecar).status is status


def test_kinds_of_routes() -> None:
    assert cluster.read_kinds("traefik", ["ingressroutetcps"], []).status is Status.OK
    older = cluster.read_kinds("gateway", [], ["v1alpha2", "v1beta1"])
    assert (older.status, "the cluster has v1alpha2, v1beta1" in older.problem) == (Status.ERROR, True)


OWN = ("cms", "hub", "a")


@pytest.mark.parametrize(
    ("own", "seen", "expected"),
    [
        (OWN, [], [Status.OK]),
        (OWN, [OWN], [Status.OK]),
        (OWN, [("atlas", "hub", "b")], [Status.OK]),
        (OWN, [("cms", "hub", "b")], [Status.WARNING]),
        (OWN, [("cms", "elsewhere", "b")], [Status.OK]),
        # Before its first start nobody knows this hub's own.
        (("cms", "hub", ""), [("cms", "hub", "b")], [Status.OK]),
        (("cms", "hub", ""), [("cms", "hub", "b"), ("cms", "hub", "c")], [Status.WARNING]),
        (("", "hub", "a"), [("", "hub", "a")], [Status.OK]),
        (("", "hub", "a"), [("atlas", "hub", "b")], [Status.WARNING]),
    ],
)
def test_other_hubs(own: Any, seen: Any, expected: list[Status]) -> None:
    assert statuses(cluster.read_hubs(own, seen)) == expected


@pytest.mark.parametrize(
    ("hub_id", "namespace", "spec", "expected"),
    [
        ("atlas", "servers", {"hostnames": ["ada.dask.example.org"]}, Status.ERROR),
        ("atlas", "elsewhere", {"hostnames": ["ada.dask.example.org"]}, Status.ERROR),
        ("atlas", "servers", {"routes": [{"match": "HostSNI(`ada.dask.example.org`)"}]}, Status.ERROR),
        ("atlas", "servers", {"hostnames": ["ada.dask.atlas.example.org"]}, Status.OK),
        ("cms", "servers", {"hostnames": ["ada.dask.example.org"]}, Status.OK),
        # Of older hooks, say: while their servers run on, beside this hub's; and at another facility.
        (None, "servers", {"hostnames": ["ada.dask.example.org"]}, Status.OK),
        (None, "elsewhere", {"hostnames": ["ada.dask.example.org"]}, Status.ERROR),
        (None, "elsewhere", None, Status.OK),
    ],
)
def test_routes_of_others(hub_id: str | None, namespace: str, spec: Any, expected: Status) -> None:
    labels = {HUB: hub_id, HUB_NAMESPACE: "hub"} if hub_id else None
    route = {"metadata": {"labels": labels, "namespace": namespace}, "spec": spec}
    (found,) = cluster.read_routes([("cms", "hub")], "servers", [route], (".dask.example.org",), "there")
    assert found.status is expected


def test_routes_that_could_not_be_looked_at_are_not_called_sound() -> None:
    assert cluster.read_routes([("cms", "hub")], "servers", [], (".dask.example.org",), "") == []


# -- XCache, HTCondor, ServiceX, the hub -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "own", "forged"),
    [
        (404, Status.OK, Status.ERROR),
        (403, Status.ERROR, Status.OK),
        (401, Status.ERROR, Status.OK),
        (502, Status.ERROR, Status.UNSEEN),
        (200, Status.ERROR, Status.ERROR),
        (307, Status.UNSEEN, Status.UNSEEN),  # a redirector in front of several caches
    ],
)
def test_answers_of_an_xcache(status: int, own: Status, forged: Status) -> None:
    minter = XCache(site_name="T3_XX")
    assert xcache.read(minter, "x:1094", answer(status), "macaroon").status is own
    assert xcache.read_forged("x:1094", answer(status), "macaroon").status is forged
    by_token = XCache(credential="token", host="x")
    assert xcache.read(by_token, "x:1094", answer(status), "token").status is own
    assert xcache.read_forged("x:1094", answer(status), "token").status is forged


def test_a_refused_token_is_compared_with_what_the_xcache_s_file_must_say() -> None:
    minter = XCache(credential="token", host="x.example.org", path="/store/user/{username}")
    minter.issuer = FacilityIssuer(url="https://hub.example.org/hub/casa/issuer", vo="cms")
    found = xcache.read(minter, "x.example.org:1094", answer(403), "token")
    for words in (
        "scitokens.cfg, issuer must be https://hub.example.org/hub/casa/issuer/cms",
        "audience https://x.example.org:1094",
        "base_path /",
        "XCache.path (/store/user/{username})",
        "https://hub.example.org/hub/casa/issuer/cms/.well-known/openid-configuration",
    ):
        assert words in found.remedy


@pytest.mark.parametrize(
    ("path", "status", "expected", "words"),
    [
        ("/store", 403, Status.OK, "opens nothing beside"),
        ("/store", 404, Status.WARNING, "one for /store opens /store2"),
        ("/store/user/{username}", 404, Status.ERROR, "the token of al opens the directory of alice"),
        ("/store/user/{username}/", 404, Status.ERROR, "the token of al opens the directory of alice"),
        # What stands behind the user's name is beside that user's own.
        ("/store/user/{username}/data", 404, Status.WARNING, "Upgrade its XRootD"),
    ],
)
def test_a_token_that_opens_what_is_beside_its_path(path: str, status: int, expected: Status, words: str) -> None:
    found = xcache.read_beside(XCache(credential="token", path=path), "x:1094", answer(status))
    assert found is not None
    assert found.status is expected
    assert words in str(found)


def test_a_failure_beside_a_token_s_path_means_nothing() -> None:
    assert xcache.read_beside(XCache(credential="token"), "x:1094", answer(500)) is None


@pytest.mark.parametrize("rsa_bits", [None, 2048])
def test_a_forged_token_differs_from_the_own_one_in_its_signature_only(rsa_bits: int | None) -> None:
    """Else it would be refused for another reason, and the check would prove nothing."""
    key, _ = new_private_key(rsa_bits=rsa_bits)
    own = key.sign({"iss": "https://x", "sub": "a", "scope": "storage.read:/x"})
    other = forged(own)
    options = {"verify_signature": False}
    assert jwt.decode(other, options=options) == jwt.decode(own, options=options)
    assert jwt.get_unverified_header(other) == jwt.get_unverified_header(own)
    with pytest.raises(jwt.InvalidSignatureError):
        jwt.decode(other, jwt.PyJWK(dict(key.jwk)), algorithms=["ES256", "RS256"])


def test_what_an_xcache_is_tried_with_lets_write_nothing(tmp_path: Path) -> None:
    """It goes to whoever answers, because the certificate isn't verified."""
    _, content = new_private_key()
    (tmp_path / "1.pem").write_bytes(content)
    (tmp_path / "xcache.key").write_bytes(base64.b64encode(b"k" * 64) + b"\n")
    activities = ["READ_METADATA", "DOWNLOAD", "UPLOAD", "DELETE"]
    minter = XCache(credential="both", host="x", site_name="T2", activities=activities)
    minter.key_file = str(tmp_path / "xcache.key")
    minter.issuer = FacilityIssuer(keys=str(tmp_path), vo="cms", url="https://hub.example.org")
    own, forged, beside = xcache._tokens(minter, "/store/probe")
    assert own.credential == beside.credential
    for one in (own, forged):
        claims = jwt.decode(one.credential, options={"verify_signature": False})
        assert (claims["scope"], claims["exp"] - claims["iat"]) == ("storage.read:/store/probe", 60)
    for one in xcache._macaroons(minter, "/store/probe"):
        caveats = base64.urlsafe_b64decode(one.credential + "=" * (-len(one.credential) % 4))
        assert b"activity:READ_METADATA,DOWNLOAD\n" in caveats


POOL = {"authorized": True, "method": "TOKEN", "user": "casa-hub-check@pool.test", "schedds": ["one", "two"]}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, [Status.OK]),
        ({"error": "Failed communication with collector."}, [Status.ERROR]),
        # A pool that lets named accounts write only: the key is right.
        ({"authorized": False}, [Status.WARNING]),
        ({"authorized": False, "method": "FS"}, [Status.ERROR]),
        ({"method": "FS"}, [Status.ERROR]),
        ({"schedds": ["two"]}, [Status.OK, Status.ERROR]),
        ({"user": "nobody@pool.test"}, [Status.OK, Status.WARNING]),
    ],
)
def test_answers_of_a_pool(change: dict[str, Any], expected: list[Status]) -> None:
    minter = HTCondor(collector="cm", schedd="one", uid_domain="pool.test", trust_domain="pool.test")
    assert statuses(read_pool(minter, {**POOL, **change})) == expected


@pytest.mark.parametrize(
    ("change", "group", "expected"),
    [
        ({}, "", [Status.OK]),
        ({"error": "Failed to start command."}, "", [Status.ERROR]),
        ({"authorized": False}, "", [Status.ERROR]),
        ({"method": "FS"}, "", [Status.ERROR]),
        ({"schedds": ["two"]}, "", [Status.OK, Status.ERROR]),
        ({"user": "casa-hub-check@another.domain"}, "", [Status.OK]),
        # Everybody is one account: fine if that is declared.
        ({"user": "submituser@pool.test"}, "", [Status.OK, Status.WARNING]),
        ({"user": "submituser@pool.test"}, "group_cms", [Status.OK]),
    ],
)
def test_answers_of_a_pool_to_a_token(change: dict[str, Any], group: str, expected: list[Status]) -> None:
    minter = HTCondor(credential="token", collector="cm", schedd="one", accounting_group=group)
    assert statuses(read_token_at_pool(minter, {**POOL, "method": "SCITOKENS", **change})) == expected


def test_answers_of_a_pool_to_a_forged_token() -> None:
    assert read_forged_at_pool("pool", {"error": "Failed communication with collector."}).status is Status.OK
    assert read_forged_at_pool("pool", {**POOL, "method": "SCITOKENS"}).status is Status.ERROR
    assert read_forged_at_pool("pool", None).status is Status.UNSEEN


@pytest.mark.parametrize(
    ("status", "known", "expected"),
    [(200, True, Status.OK), (200, False, Status.WARNING), (404, True, Status.WARNING), (502, False, Status.ERROR)],
)
def test_answers_of_a_servicex(status: int, known: bool, expected: Status) -> None:
    assert servicex.read("https://servicex.example.org", status, known=known).status is expected


STATUS: dict[str, Any] = {
    "held_back": [],
    "client_refused": [],
    "overdue": [],
    "unkept": {},
    "unsure": {},
    "dask_secrets": {"b": 2},
}


def test_what_the_running_hub_says() -> None:
    assert statuses(hub.read(STATUS)) == [Status.OK]
    (found,) = hub.read({**STATUS, "overdue": [{}, {}]})
    assert (found.status, found.problem[:2]) == (Status.WARNING, "2 ")
    assert hub.read_secrets(["a"], STATUS) == []
    words = [one.problem for one in hub.read_secrets(["a", "b", "c"], STATUS)]
    assert words[0].startswith("for new servers")
    assert words[1:] == ["in use by 2 running servers; it must stay", "in use by no running server; it may be removed"]
    assert "nobody knows" in hub.read_secrets(["a", "c"], {**STATUS, "unsure": {"x": "y"}})[1].problem


def test_what_the_running_hub_says_of_the_issuer_s_keys() -> None:
    """By its database it alone knows since when verifiers know each of them."""
    assert hub.read_issuer_keys(STATUS) == []
    keys = [
        {"key": "FacilityIssuer.keys: 1.pem", "kid": "a", "signs": True, "signs_from": ""},
        {"key": "FacilityIssuer.keys: 2.pem", "kid": "b", "signs": False, "signs_from": "2026-12-03T12:00:00+00:00"},
    ]
    assert [str(one) for one in hub.read_issuer_keys({**STATUS, "issuer_keys": keys})] == [
        "ok: FacilityIssuer.keys: 1.pem: signs.",
        "ok: FacilityIssuer.keys: 2.pem: is published, and signs from 2026-12-03 12:00 UTC.",
    ]
    assert statuses(hub.read_issuer_keys({**STATUS, "issuer_keys": keys[1:]})) == [Status.OK, Status.ERROR]
