"""What the user reads while a server starts, and when it doesn't; what the log never holds."""

from __future__ import annotations

import base64
import json
import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

import pytest
import requests

from tests.kubernetes.hub.servers import NONE, Site, open_site
from tests.support.kubernetes import build
from tests.support.kubernetes.api import Api, eventually
from tests.support.kubernetes.control_plane import ControlPlane
from tests.support.kubernetes.pods import RunningPods
from tests.support.peers import require

LIMIT = "c.Spawner.consecutive_failure_limit = 5\n"
GATEWAY = 'c.TraefikRoutes.kind = "gateway"\nc.TraefikRoutes.gateway = "traefik/dask"\n'
ALL_REQUIRED = 'c.Facility.required = ["xcache", "bearer", "dask"]\n'
#: What Pod Security's "restricted" asks of KubeSpawner's part of the pod.
RESTRICTED = """
c.KubeSpawner.profile_list = [
    {"display_name": "Plain", "slug": "plain", "default": True},
    {
        "display_name": "Restricted",
        "slug": "restricted",
        "kubespawner_override": {
            "uid": 1000,
            "allow_privilege_escalation": False,
            "container_security_context": {
                "capabilities": {"drop": ["ALL"]},
                "runAsNonRoot": True,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
        },
    },
]
"""
#: A mint, and the first look at Kubernetes' events, that take until a test lets them go on.
SLOW = """
import asyncio
from kubespawner.spawner import EventReflector

async def until(name):
    Path(f"waits-{name}").touch()
    while not Path(name).exists():
        await asyncio.sleep(0.01)

class Slow(WithToken):
    async def access_token(self, user):
        await until("mint")
        return await super().access_token(user)

stock_start = EventReflector.start

async def slow_start(self):
    await until("list")
    await stock_start(self)

EventReflector.start = slow_start
c.JupyterHub.authenticator_class = Slow
"""
#: How the credentials begin that nobody sees a second time: macaroon, JWT, private key.
SECRETS = re.compile(r"MDA[0-9A-Za-z_-]{24,}|eyJ[0-9A-Za-z_-]{12,}\.|PRIVATE KEY")


@pytest.fixture(scope="module")
def site(plane: Api, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with open_site(plane, tmp_path_factory, LIMIT) as one:
        yield one


@pytest.fixture(scope="module")
def strict(plane: Api, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A namespace that takes only the safest pods, and a hub that starts no server without its credentials."""
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    with open_site(plane, tmp_path_factory, LIMIT + RESTRICTED + ALL_REQUIRED, namespace_labels=labels) as one:
        yield one


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """A cluster without the kinds of Traefik and of the Gateway API."""
    programs = require(build.programs)
    with ControlPlane(programs, tmp_path_factory.mktemp("bare") / "work") as one:
        yield one


@pytest.fixture(autouse=True)
def empty(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    for name in {"site", "strict"} & set(request.fixturenames):
        site = request.getfixturevalue(name)
        give_token(site, None)
        site.clear()


def messages(events: list[dict[str, Any]]) -> list[str]:
    return [event["message"] for event in events]


def give_token(site: Site, token: str | None) -> None:
    path = site.hub.directory / "token"
    if token is None:
        path.unlink(missing_ok=True)
    else:
        path.write_text(token)


class Pods:
    """Tells whether any pod was created since."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.version = site.plane.request("GET", site.pods)["metadata"]["resourceVersion"]

    def created(self) -> list[str]:
        query = f"watch=1&timeoutSeconds=1&resourceVersion={self.version}"
        lines = self.site.plane.kubectl("get", "--raw", f"{self.site.pods}?{query}").splitlines()
        seen = map(json.loads, lines)
        return [event["object"]["metadata"]["name"] for event in seen if event["type"] == "ADDED"]


# -- steps


@pytest.mark.both_hubs
def test_each_step_is_a_sentence_and_the_percentage_rises(site: Site) -> None:
    give_token(site, None)
    events = site.ready("ada")
    said = messages(events)
    assert said[-1].startswith("Server ready at")
    for sentence in (
        r"XCache.*, valid until \d\d:\d\d UTC|XCache.*, valid until [\d-]+ \d\d:\d\d UTC",
        r"HTCondor token.*, valid until",
        r"Dask certificates.*, valid until",
        r"Starting without bearer: access token: is missing.*Log out and in again",
        r"Pod created",
    ):
        assert any(re.match(sentence, each) for each in said), (sentence, said)
    percent = [event["progress"] for event in events]
    assert percent == sorted(percent)
    assert percent[-1] == 100
    site.stop("ada")

    again = messages(site.ready("ada"))  # and not what the start before was told
    assert len(set(again)) == len(again) == len(said)
    site.stop("ada")


def listening(site: Site, user: str) -> tuple[list[dict[str, Any]], threading.Thread]:
    """What the page of a start is told, as it comes, and who takes it down."""
    heard: list[dict[str, Any]] = []

    def listen() -> None:
        url = f"{site.hub.url}/hub/api/users/{user}/servers//progress"
        headers = {"Authorization": f"token {site.hub.api_token}"}
        with requests.get(url, headers=headers, stream=True, timeout=120) as answer:
            lines = answer.iter_lines(chunk_size=1, decode_unicode=True)
            heard.extend(json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: "))

    listener = threading.Thread(target=listen)
    listener.start()
    return heard, listener


@pytest.mark.both_hubs
def test_the_spawn_page_shows_the_events_of_kubernetes_too(
    plane: Api, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with open_site(plane, tmp_path_factory, pods=False) as site:
        site.begin("ada")
        pod = eventually(lambda: site.list("pods") and site.list("pods")[0])
        heard, listener = listening(site, "ada")
        # The pod is there before all that it owns is, and before that is said.
        eventually(lambda: any(each["message"].startswith("Pod created") for each in heard))
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        reference = {key: pod["metadata"][key] for key in ("name", "namespace", "uid")}
        event = {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": "pulling"},
            "involvedObject": {"apiVersion": "v1", "kind": "Pod", **reference},
            "type": "Normal",
            "reason": "Pulling",
            "message": "Pulling image none.test/singleuser:1",
            "firstTimestamp": now,
            "lastTimestamp": now,
        }
        plane.request("POST", f"/api/v1/namespaces/{site.namespace}/events", event)
        eventually(lambda: any("Pulling image" in each["message"] for each in heard))
        with RunningPods(plane, site.namespace, tmp_path_factory.mktemp("pods")):
            listener.join(120)
            assert heard[-1].get("ready"), heard
        said = messages(heard)
        [pulling] = [each for each in heard if "Pulling image" in each["message"]]
        [created] = [each for each in heard if each["message"].startswith("Pod created")]
        assert said.index(created["message"]) < said.index(pulling["message"])
        percent = [each["progress"] for each in heard]
        assert percent == sorted(percent)


# -- failures


def test_without_its_kind_of_route_a_server_starts_if_dask_is_optional(
    bare: ControlPlane, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with open_site(bare, tmp_path_factory, GATEWAY, pods=False) as site:
        site.begin("ada")
        heard, listener = listening(site, "ada")
        eventually(lambda: any(each.startswith("Starting without TLSRoute") for each in messages(heard)))
        with RunningPods(bare, site.namespace, tmp_path_factory.mktemp("pods")):  # not sooner: it would be told no more
            listener.join(120)
            assert heard[-1].get("ready"), heard
        [said] = [each for each in messages(heard) if each.startswith("Starting without TLSRoute")]
        assert f"TLSRoute {site.namespace}/casa-ada-" in said
        assert "gateway.networking.k8s.io/v1 TLSRoute must be installed" in said
        assert len(site.list("secrets")) == len(site.list("services")) == 1
        assert "No TLSRoute for" in site.hub.log


def test_without_its_kind_of_route_no_server_starts_if_dask_is_required(
    bare: ControlPlane, tmp_path_factory: pytest.TempPathFactory
) -> None:
    config = LIMIT + GATEWAY + 'c.Facility.required = ["dask"]\n'
    with open_site(bare, tmp_path_factory, config) as site:
        for _ in range(6):
            said = site.fails("ada")
            assert f"TLSRoute {site.namespace}/casa-ada-" in said
            assert "must be installed" in said
            eventually(lambda: site.list("pods") == [])
        eventually(lambda: site.list("secrets") == site.list("services") == [])
        assert site.hub.api("GET", "/users/ada").ok
        assert "consecutive" not in site.hub.log


@pytest.mark.both_hubs
def test_without_a_required_credential_no_pod_is_created(strict: Site) -> None:
    give_token(strict, None)
    pods = Pods(strict)
    for _ in range(6):  # more than the hub bears of failures that may be its own
        said = strict.fails("ada")
        assert "access token: is missing: the hub holds none for this user. Log out and in again." in said
    assert pods.created() == []
    assert "consecutive" not in strict.hub.log

    give_token(strict, "an-access-token")
    strict.ready("ada", options={"profile": "restricted"})
    pod = strict.pod("ada")  # the sidecar is as safe as the rest
    assert set(strict.of(pod)) == set(NONE)
    strict.stop("ada")


@pytest.mark.both_hubs
def test_a_spawn_that_fails_while_its_page_opens_is_no_trouble_for_the_next(
    plane: Api, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with open_site(plane, tmp_path_factory, SLOW + ALL_REQUIRED) as site:
        site.begin("ada")
        with ThreadPoolExecutor(1) as pool:
            page = pool.submit(site.progress, "ada")
            eventually((site.hub.directory / "waits-list").exists)
            (site.hub.directory / "mint").touch()
            assert page.result()[-1]["failed"]
        (site.hub.directory / "list").touch()
        give_token(site, "an-access-token")
        site.settle("ada")
        site.ready("ada")


def test_a_pod_that_the_namespace_refuses_is_told_with_the_reason(strict: Site) -> None:
    give_token(strict, "an-access-token")
    for _ in range(6):
        said = strict.fails("ada", options={"profile": "plain"})
        assert f"Pod {strict.namespace}/jupyter-ada: an admission policy of the cluster refuses it" in said
        assert 'violates PodSecurity "restricted' in said
        assert "casa-hub-files" not in said  # what is wrong is not ours
    assert strict.list("pods") == []
    assert "JUPYTERHUB_API_TOKEN" not in strict.hub.log  # KubeSpawner would log the whole pod
    assert "consecutive" not in strict.hub.log
    assert strict.hub.api("GET", "/users/ada").ok


@pytest.mark.parametrize("resource", ["pods", "secrets"])
def test_a_quota_that_is_used_up_is_told(site: Site, resource: str) -> None:
    quotas = f"/api/v1/namespaces/{site.namespace}/resourcequotas"
    quota = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "small"}}
    site.plane.request("POST", quotas, {**quota, "spec": {"hard": {resource: "0"}}})
    eventually(lambda: site.plane.request("GET", f"{quotas}/small")["status"].get("used"))
    try:
        said = site.fails("ada")
        kind, name = ("Pod", "jupyter-ada") if resource == "pods" else ("Secret", "casa-ada-")
        assert f"{kind} {site.namespace}/{name}" in said
        assert "a quota of the namespace is used up" in said
        assert f"exceeded quota: small, requested: {resource}=1, used: {resource}=0, limited: {resource}=0" in said
        eventually(lambda: site.list("pods") == [])
    finally:
        site.plane.request("DELETE", f"{quotas}/small")
    assert "consecutive" not in site.hub.log
    site.ready("ada")
    site.stop("ada")


def test_files_that_are_too_large_for_a_secret_are_told_before_there_is_a_pod(site: Site) -> None:
    give_token(site, "x" * (1024 * 1024))
    pods = Pods(site)
    try:
        said = site.fails("ada")
        assert re.search(rf"Secret {site.namespace}/casa-ada-[0-9a-f]{{8}}: the files have \d+ bytes", said), said
        assert "the largest is access_token with 1048576" in said
        assert pods.created() == []
    finally:
        give_token(site, None)
    site.ready("ada")
    site.stop("ada")


@pytest.mark.both_hubs
def test_an_api_server_that_is_away_counts_and_ends_the_hub_after_a_few(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """A new hub may do better than one which has lost its way to the API server: as JupyterHub has it."""
    programs = require(build.programs)
    config = "c.Spawner.consecutive_failure_limit = 2\nc.KubeSpawner.k8s_api_request_retry_timeout = 1\n"
    with (
        ControlPlane(programs, tmp_path_factory.mktemp("away") / "work") as away,
        open_site(away, tmp_path_factory, config, pods=False, namespace="default") as site,
    ):
        site.make_user("ada")
        site.begin("bob")
        eventually(lambda: site.list("pods"))  # KubeSpawner's own watch is there
        away.stop()
        said = site.fails("ada")
        assert f"Pod {site.namespace}/jupyter-ada: the Kubernetes API server gave no answer" in said
        site.hub.api("POST", "/users/ada/servers/")
        site.hub.wait_for(r"Aborting due to 2 consecutive spawn failures")
        assert site.hub.process is not None
        assert site.hub.process.wait(60) != 0


# -- secrets


def pieces(content: bytes) -> set[str]:
    """Each line of a file that could be a secret, as it is and as Kubernetes shows it."""
    text = content.decode()
    lines = {line for line in text.splitlines() if len(line) >= 12 and not line.startswith("-----")}
    return lines | {base64.b64encode(content).decode()[:60]}


def test_no_secret_is_in_the_log_the_pod_or_any_other_object(site: Site) -> None:
    token = "eyJhbGciOiJub25lIn0.eyJzdWIiOiJhZGEifQ.c2lnbmF0dXJl"
    give_token(site, token)
    site.ready("ada")
    pod = site.pod("ada")
    files = site.files(pod)
    assert files["access_token"].decode() == token
    assert {"xcache_token", "condor_token", "access_token", "hostcert.pem", "usercert.pem"} <= set(files)

    # Renewed, refused, in the way: the hub speaks of it all.
    newer = token + "-newer"
    give_token(site, newer)
    user = site.token_of("ada")
    eventually(
        lambda: site.hub.api("GET", "/user", token=user).ok and site.files(pod)["access_token"] == newer.encode()
    )
    files |= {f"renewed {name}": content for name, content in site.files(pod).items()}
    site.stop("ada")
    way = {"name": "jupyter-ada", "annotations": {"hub.jupyter.org/username": "eve"}}
    spec = {"containers": [{"name": "notebook", "image": "none.test/old:1"}]}
    site.plane.request("POST", site.pods, {"apiVersion": "v1", "kind": "Pod", "metadata": way, "spec": spec})
    said = site.fails("ada")
    site.plane.request("DELETE", f"{site.pods}/jupyter-ada")
    site.ready("ada")
    files |= {f"again {name}": content for name, content in site.files(site.pod("ada")).items()}

    everything = {"hub's log": site.hub.log, "spawn page": said, "first pod": json.dumps(pod)}
    for plural in ("pods", "services", "events"):
        everything[plural] = json.dumps(site.list(plural))
    everything["routes"] = json.dumps(site.ours()["IngressRouteTCP"])
    metadata = [secret["metadata"] for secret in site.list("secrets")]
    everything["metadata of the Secret"] = json.dumps(metadata)
    # The program of a scheduler is no secret: it is a part of this package, whose lines a traceback may show.
    secret = {name: content for name, content in files.items() if not name.endswith("dask_fresh_token.py")}
    for where, text in everything.items():
        found = [name for name, content in secret.items() for piece in pieces(content) if piece in text]
        assert not found, (where, found)
        unknown = SECRETS.search(text)
        assert unknown is None, (where, unknown[0][:20])
    give_token(site, None)
    site.stop("ada")
