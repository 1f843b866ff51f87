"""The hub with the rights of the chart and of `helm-values/role.yaml`: enough, and none of them too much."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from casa_hub.checks.rights import Right
from tests.kubernetes.hub.servers import KINDS, NONE, OPERATOR, Site, open_site
from tests.support.kubernetes.api import Api, eventually
from tests.support.kubernetes.hub import CHART_RULES, granted_by

#: One version of JupyterHub is enough: rights are the API server's affair.
ROLE_FILE = Path(__file__).parents[3] / "helm-values" / "role.yaml"
RBAC = "/apis/rbac.authorization.k8s.io/v1/namespaces/{}"
GATEWAY = 'c.TraefikRoutes.kind = "gateway"\nc.TraefikRoutes.gateway = "traefik/dask"\n'
#: Nothing but Traefik may come to the Dask ports.
POLICY = 'c.TraefikRoutes.network_policy_peers = [{"podSelector": {"matchLabels": {"app": "traefik"}}}]\n'
ENDED_STAY = "c.KubeSpawner.delete_stopped_pods = False\nc.Spawner.poll_interval = 1\n"


def documents() -> dict[str, Any]:
    return {each["kind"]: each for each in yaml.safe_load_all(ROLE_FILE.read_text())}


def rules(granted: set[Right]) -> list[dict[str, Any]]:
    return [{"apiGroups": [g], "resources": [r], "verbs": [v]} for g, r, v in sorted(granted)]


class Account:
    """The hub's ServiceAccount with the chart's Role and ours."""

    def __init__(self, plane: Api, namespace: str, unused: frozenset[str]) -> None:
        """`unused`: API groups whose rules an operator has deleted from the manifest."""
        self.plane, self.namespace = plane, namespace
        role, binding = documents()["Role"], documents()["RoleBinding"]
        role["rules"] = [rule for rule in role["rules"] if not unused & set(rule["apiGroups"])]
        self.all = granted_by(CHART_RULES) | granted_by(role["rules"])
        self.kubeconfig = plane.make_account("hub", namespace, CHART_RULES)
        rbac = RBAC.format(namespace)
        plane.apply(f"{rbac}/roles/casa-hub", role)
        plane.apply(f"{rbac}/rolebindings/casa-hub", binding)
        for right in self.all:
            eventually(functools.partial(self.may, right))

    def may(self, right: Right) -> bool:
        body = {
            "spec": {
                "user": f"system:serviceaccount:{self.namespace}:hub",
                "resourceAttributes": {"namespace": self.namespace, **right._asdict()},
            }
        }
        answer = self.plane.request("POST", "/apis/authorization.k8s.io/v1/subjectaccessreviews", body)
        return bool(answer["status"]["allowed"])

    def take(self, right: Right) -> None:
        assert right in self.all
        self._grant(self.all - {right})
        eventually(lambda: not self.may(right))

    def give_back(self, right: Right) -> None:
        self._grant(self.all)
        eventually(lambda: self.may(right))

    def _grant(self, granted: set[Right]) -> None:
        chart = granted_by(CHART_RULES)
        for name, some in (("hub", granted & chart), ("casa-hub", granted - chart)):
            role = {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": {"name": name}}
            self.plane.apply(f"{RBAC.format(self.namespace)}/roles/{name}", {**role, "rules": rules(some)})


TRAEFIK, TRAEFIK_2, GATEWAY_API, POLICIES = (
    "traefik.io",
    "traefik.containo.us",
    "gateway.networking.k8s.io",
    "networking.k8s.io",
)
ALL_GROUPS = frozenset({TRAEFIK, TRAEFIK_2, GATEWAY_API, POLICIES})


def opened(
    plane: Api, directories: pytest.TempPathFactory, groups: set[str], config: str
) -> Iterator[tuple[Site, Account]]:
    namespace = plane.make_namespace()
    try:
        account = Account(plane, namespace, ALL_GROUPS - groups)
        with open_site(
            plane, directories, config + ENDED_STAY + OPERATOR, namespace=namespace, kubeconfig=account.kubeconfig
        ) as site:
            yield site, account
    finally:
        plane.delete_namespace(namespace)


@pytest.fixture(scope="module")
def traefik(plane: Api, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Site, Account]]:
    yield from opened(plane, tmp_path_factory, {TRAEFIK, POLICIES}, POLICY)


@pytest.fixture(scope="module")
def traefik_2(plane: Api, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Site, Account]]:
    yield from opened(plane, tmp_path_factory, {TRAEFIK_2}, 'c.TraefikRoutes.kind = "traefik-v2"\n')


@pytest.fixture(scope="module")
def gateway(plane: Api, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Site, Account]]:
    yield from opened(plane, tmp_path_factory, {GATEWAY_API}, GATEWAY)


# -- what needs a right: each does it, and returns what is said where a person looks for it


def spawn_refused(site: Site) -> str:
    """The user's page; and the next try works."""
    return site.fails("ada")


def spawn_without(site: Site) -> str:
    """The user's page, of a server that starts all the same."""
    events = site.ready("ada")
    site.stop("ada")
    return "\n".join(event["message"] for event in events)


def spawn_with_a_pod_in_the_way(site: Site) -> str:
    metadata = {"name": "jupyter-ada", "annotations": {"hub.jupyter.org/username": "ada"}}
    spec = {"containers": [{"name": "notebook", "image": "none.test/old:1"}]}
    site.plane.request("POST", site.pods, {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})
    said = site.fails("ada")
    site.plane.request("DELETE", f"{site.pods}/jupyter-ada")
    return said


def end_of_a_pod(site: Site) -> str:
    """The hub's log: nobody waits for anything by then."""
    return logged(site, end)


def end(site: Site) -> None:
    site.ready("ada")
    pod = site.pod("ada")
    site.end("ada")
    site.plane.request("DELETE", f"{site.pods}/{pod['metadata']['name']}")


def ask_until(site: Site, condition: Callable[[], bool], access_token: str = "an-access-token") -> None:
    """Requests of the user, for one of which the hub renews what it knows of her (at most once a second)."""
    token = site.token_of("ada")
    (site.hub.directory / "token").write_text(access_token)

    def asked() -> bool:
        assert site.hub.api("GET", "/user", token=token).ok
        return condition()

    try:
        eventually(asked)
    finally:
        (site.hub.directory / "token").unlink()


def collect(site: Site) -> str:
    """What the operator's command says."""
    return str(site.hub.api("POST", "/casa-hub/gc", json={}).json().get("message", ""))


def sweep(site: Site) -> str:
    return logged(site, Site.restart, until="an earlier hub may have left")


def logged(site: Site, act: Callable[[Site], None], until: str = "") -> str:
    """What the hub's log has from an act on; `until` something is said."""
    since = len(site.hub.log)
    act(site)
    if until:
        site.hub.wait_for_all(until, 1, since=since)
    return site.hub.log[since:]


Act = Callable[[Site], str]

CORE: list[tuple[Right, Act]] = [
    (Right("", "pods", "create"), spawn_refused),
    (Right("", "pods", "get"), spawn_with_a_pod_in_the_way),
    (Right("", "pods", "delete"), spawn_with_a_pod_in_the_way),
    (Right("", "secrets", "create"), spawn_refused),
    (Right("", "secrets", "patch"), spawn_refused),
    (Right("", "secrets", "get"), end_of_a_pod),
    (Right("", "secrets", "delete"), end_of_a_pod),
    (Right("", "services", "create"), spawn_without),
    (Right("", "services", "patch"), spawn_without),
    (Right("", "services", "get"), end_of_a_pod),
    (Right("", "services", "delete"), end_of_a_pod),
    (Right("", "secrets", "list"), collect),
    (Right("", "services", "list"), collect),
]


def route_cases(group: str, resource: str) -> list[tuple[Right, Act]]:
    acts = {
        "create": spawn_without,
        "patch": spawn_without,
        "get": end_of_a_pod,
        "list": collect,
        "delete": end_of_a_pod,
    }
    return [(Right(group, resource, verb), act) for verb, act in acts.items()]


TRAEFIK_CASES = route_cases(TRAEFIK, "ingressroutetcps") + route_cases(POLICIES, "networkpolicies")
TRAEFIK_2_CASES = route_cases(TRAEFIK_2, "ingressroutetcps")
GATEWAY_CASES = route_cases(GATEWAY_API, "tlsroutes")
#: Of the chart's rights, those that KubeSpawner's own watch needs too: seen at the hub's start.
AT_START: list[tuple[Right, Act]] = [
    (Right("", "pods", "list"), sweep),
]


def cases(*some: list[tuple[Right, Act]]) -> Any:
    return pytest.mark.parametrize(
        ("right", "act"),
        [
            pytest.param(right, act, id="-".join(filter(None, (*right, act.__name__))))
            for each in some
            for right, act in each
        ],
    )


def check_without(site: Site, account: Account, right: Right, act: Act) -> None:
    account.take(right)
    try:
        said = act(site)
        assert f"may not {right.verb} {right.resource} there" in said, said
        assert f"needs the verb {right.verb} on {right.resource}" in said
    finally:
        account.give_back(right)
    eventually(lambda: site.list("pods") == [])
    eventually(lambda: site.ours() == NONE)


# -- tests


def test_the_manifest_grants_what_is_tested_here_and_nothing_else() -> None:
    granted = granted_by(documents()["Role"]["rules"])
    tested = {right for right, _ in CORE + TRAEFIK_CASES + TRAEFIK_2_CASES + GATEWAY_CASES + AT_START}
    assert granted == tested - granted_by(CHART_RULES)


def test_everything_works_with_the_two_roles(traefik: tuple[Site, Account]) -> None:
    site, _ = traefik
    since = len(site.hub.log)
    site.ready("ada")
    pod = site.pod("ada")
    assert {kind: len(objects) for kind, objects in site.ours().items()} == dict.fromkeys(KINDS, 1)
    assert "access_token" not in site.files(pod)

    ask_until(site, lambda: site.files(pod).get("access_token", b"") == b"an-access-token")
    site.restart()  # a hub that didn't start the server knows its record by the Secret
    ask_until(site, lambda: site.files(pod).get("access_token", b"") == b"a-newer-one", "a-newer-one")

    site.stop("ada")
    eventually(lambda: site.ours() == NONE)

    site.ready("ada")
    ended = site.pod("ada")
    site.end("ada")
    assert site.pod("ada")["metadata"]["uid"] == ended["metadata"]["uid"]  # it stays, to be looked at
    assert site.ours() == NONE
    site.ready("ada")  # and is replaced
    pod = site.pod("ada")
    assert pod["metadata"]["uid"] != ended["metadata"]["uid"]

    site.stop("ada")
    site.hub.stop()
    site.make_half(pod)
    site.hub.start()
    eventually(lambda: site.list("pods") == [])
    assert "forbidden" not in site.hub.log[since:]
    assert "may not" not in site.hub.log[since:]


@cases(CORE, TRAEFIK_CASES, AT_START)
def test_a_right_that_is_missing_is_named(traefik: tuple[Site, Account], right: Right, act: Act) -> None:
    check_without(*traefik, right, act)


def test_a_renewal_that_is_not_allowed_is_named_and_the_server_goes_on(traefik: tuple[Site, Account]) -> None:
    site, account = traefik
    right = Right("", "secrets", "patch")
    site.ready("ada")
    since = len(site.hub.log)
    account.take(right)
    try:
        ask_until(site, lambda: "No new bearer for" in site.hub.log[since:])
        assert "may not patch secrets there" in site.hub.log[since:]
        assert site.hub.api("GET", "/users/ada").json()["servers"][""]["ready"]
    finally:
        account.give_back(right)
    ask_until(site, lambda: "access_token" in site.files(site.pod("ada")))
    site.stop("ada")


def test_a_stop_that_is_not_allowed_is_named_and_works_when_it_is(traefik: tuple[Site, Account]) -> None:
    site, account = traefik
    right = Right("", "pods", "delete")
    site.ready("ada")
    since = len(site.hub.log)
    account.take(right)
    try:
        site.hub.api("DELETE", "/users/ada/servers/")
        site.hub.wait_for_all(r'cannot delete resource \\?"pods', 1, since=since)
        site.settle("ada")
        # JupyterHub takes it for stopped: nobody comes to that pod any more, and it is left no secret and no route.
        left = site.pod("ada")
        eventually(lambda: site.ours() == NONE)
    finally:
        account.give_back(right)
    site.ready("ada")  # in its place
    pod = site.pod("ada")
    assert pod["metadata"]["uid"] != left["metadata"]["uid"]
    assert set(site.of(pod)) == set(KINDS)
    site.stop("ada")
    assert site.list("pods") == []


@cases(TRAEFIK_2_CASES)
def test_a_right_that_is_missing_for_traefik_2(traefik_2: tuple[Site, Account], right: Right, act: Act) -> None:
    check_without(*traefik_2, right, act)


@cases(GATEWAY_CASES)
def test_a_right_that_is_missing_for_the_gateway(gateway: tuple[Site, Account], right: Right, act: Act) -> None:
    check_without(*gateway, right, act)
