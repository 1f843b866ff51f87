"""A hub as a facility has it: a pod with this project's wheel in its image, and with the values that are shipped.

The identity provider and the proxy, which is Jupyter's own, are pods, too; Traefik runs beside them. What a person does
goes through the proxy, and a kernel tells what is in the server.

The values are files of ``helm-values`` with the places of this cluster over them, as somebody has them who has
replaced all with `example` in it. Where the chart is to be had (see `tests.support.helm`), all that it makes of them is
applied as it is; elsewhere plain manifests and a loader of our own stand in for it, and the tests' names say so.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import json
import os
import random
import secrets
import socket
import ssl
import subprocess
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jwt
import pytest
import requests
import yaml
from pymacaroons import Macaroon, Verifier

from casa_hub.delivery.kubernetes.manifests import SERVER
from casa_hub.demo.browser import Browser, Kernel
from casa_hub.demo.packages import Unavailable
from casa_hub.demo.traefik import DASK_PORT, Traefik
from tests.support.helm import HUB_CHART, ROOT, helm
from tests.support.kubernetes import build, release
from tests.support.kubernetes.api import eventually
from tests.support.kubernetes.cluster import Cluster
from tests.support.kubernetes.hub_image import NAME, TAG, add_hub_image
from tests.support.kubernetes.release import Object, merged

VALUES = ROOT / "helm-values"
SNIPPET = ROOT / "jupyterhub_config.d" / "casa_hub.py"
#: Seconds: a hub takes five to start, and a server too; on a machine that is busy with other things, ten times that.
LONG = 150
IDP_PORT = 9400
CLIENT_SECRET = "of the client, in no file of the release"
XCACHE_KEY = os.urandom(64)
#: As OKD gives one to a namespace, by this label here.
UID, ASSIGNED = random.randrange(10**9, 2**31), "casa-hub.test/assigned-user"
#: Of each of these a running server has one.
KINDS = (
    "/api/v1/namespaces/{}/pods",
    "/api/v1/namespaces/{}/secrets",
    "/api/v1/namespaces/{}/services",
    "/apis/traefik.io/v1alpha1/namespaces/{}/ingressroutetcps",
)

#: Prints what there is to work with in a server.
LOOK = """
import json, os, pathlib, stat
directory = pathlib.Path(os.environ["CERT_DIR"], "..data").resolve()  # what is there now
def describe(file):
    found = file.stat()
    return [file.read_text(), found.st_uid, oct(stat.S_IMODE(found.st_mode))]
files = {str(file.relative_to(directory)): describe(file) for file in directory.rglob("*") if file.is_file()}
print(json.dumps({"uid": os.getuid(), "host": os.environ["HOST_IP"], "files": files}))
"""
#: Starts a scheduler that is reached from outside.
SCHEDULER = """
import os
from distributed import Scheduler
from distributed.security import Security
files = {name: os.path.join(os.environ["CERT_DIR"], f"{name}.pem") for name in ("ca", "hostcert")}
security = Security(require_encryption=True, tls_ca_file=files["ca"],
                    tls_scheduler_cert=files["hostcert"], tls_scheduler_key=files["hostcert"])
scheduler = await Scheduler(protocol="tls", port=8786, security=security, dashboard=False)
"""


def values(name: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((VALUES / f"{name}.yaml").read_text())
    return found


def with_the_snippet() -> dict[str, Any]:
    """cms.yaml less what the snippet finds, and the snippet."""
    found = values("cms")
    del found["hub"]["config"]["JupyterHub"]
    for section, key in ("XCache", "key_file"), ("HTCondor", "key_file"), ("Dask", "secret_file"):
        del found["hub"]["config"][section][key]
    mounted = {"mountPath": f"{release.PLACE}/jupyterhub_config.d/90-casa-hub.py", "stringData": SNIPPET.read_text()}
    found["hub"]["extraFiles"] = {"casa_hub": mounted}
    return found


@dataclass(frozen=True)
class Variant:
    values: Callable[[], dict[str, Any]]
    group: str
    #: Of the namespace.
    labels: Mapping[str, str] = field(default_factory=dict)
    #: Whom pods run as: container -> uid.
    users: Mapping[str, int] = field(
        default_factory=lambda: {"hub": 1000, "chp": 65534, "idp": 1000, "notebook": 1000, "casa-hub-files": 1000}
    )


VARIANTS = {
    "the snippet": Variant(with_the_snippet, "/cms/uscms"),
    "hub.config only": Variant(functools.partial(values, "cms"), "/cms/uscms"),
    "a random uid, restricted": Variant(
        functools.partial(values, "atlas"),
        "/atlas/usatlas",
        {"pod-security.kubernetes.io/enforce": "restricted", ASSIGNED: str(UID)},
        dict.fromkeys(("hub", "chp", "idp", "notebook", "casa-hub-files"), UID),
    ),
}


def here(issuer: str, url: str) -> dict[str, Any]:
    """The places of this cluster, as values."""
    image = {"name": NAME, "tag": TAG, "pullPolicy": "Never"}
    name, _, tag = build.IMAGE.partition(":")
    client = {"issuer": issuer, "allow_insecure_issuer": True, "oauth_callback_url": f"{url}/hub/oauth_callback"}
    return {
        "hub": {"image": image, "db": {"type": "sqlite-memory"}, "config": {"CasaOAuthenticator": client}},
        "proxy": {"chp": {"image": image}},
        "singleuser": {
            "image": {"name": name, "tag": tag, "pullPolicy": "Never"},
            "startTimeout": LONG,
            "cpu": {"guarantee": 0.05},
            "memory": {"limit": "1G", "guarantee": "64M"},
            "storage": {
                "type": "none",
                "extraVolumes": [{"name": "home", "emptyDir": {}}],
                "extraVolumeMounts": [{"name": "home", "mountPath": "/home/jovyan"}],
            },
        },
        "scheduling": {"userScheduler": {"enabled": False}},
        "cull": {"enabled": False},  # a package of its own
        "prePuller": {"hook": {"enabled": False}, "continuous": {"enabled": False}},
    }


@dataclass(frozen=True)
class Hub:
    """A release in a namespace of its own."""

    cluster: Cluster
    namespace: str
    url: str
    issuer: str

    def of_ada(self, kind: str) -> list[Object]:
        """Objects of her server."""
        found = self.cluster.plane.request("GET", kind.format(self.namespace))["items"]
        notes = [each["metadata"].get("annotations", {}).get(SERVER, "[]") for each in found]
        return [each for each, whose in zip(found, notes, strict=True) if json.loads(whose)[1:] == ["ada", ""]]

    def processes(self) -> dict[str, dict[str, str]]:
        """Of each container's first process, ``status`` (man 5 proc)."""
        pods = self.cluster.plane.request("GET", f"/api/v1/namespaces/{self.namespace}/pods")["items"]
        found = {}
        for pod in pods:
            for container in [*pod["spec"].get("initContainers", []), *pod["spec"]["containers"]]:
                name, command = container["name"], ("cat", "/proc/1/status")
                text = self.cluster.exec(self.namespace, pod["metadata"]["name"], *command, container=name)
                found[name] = {
                    key: value.strip() for key, _, value in (line.partition(":") for line in text.split("\n"))
                }
        return found

    def log(self) -> str:
        return self.cluster.plane.kubectl("logs", "--namespace", self.namespace, "deployment/hub", "--tail=-1")

    def wait(self) -> None:
        """Until hub, proxy and identity provider are ready."""
        for name in ("idp", "proxy", "hub"):
            command = ["rollout", "status", "--namespace", self.namespace, f"deployment/{name}", f"--timeout={LONG}s"]
            self.cluster.plane.kubectl(*command)
        # The node's packet filter hears of ready pods a little later.
        for url in (f"{self.url}/hub/health", f"{self.issuer}/.well-known/openid-configuration"):
            eventually(lambda url=url: answers(url), 30)  # type: ignore[misc]

    @contextlib.contextmanager
    def explained(self) -> Iterator[None]:
        """What goes wrong here is told with the state of the pods and the hub's log."""
        try:
            yield
        except BaseException as error:
            for command in (["describe", "pods"], ["logs", "deployment/hub"]):
                options = {"check": False, "stderr": subprocess.STDOUT}
                told = self.cluster.plane.kubectl(*command, "--namespace", self.namespace, **options)
                error.add_note(told[-6000:])
            raise


@pytest.fixture(scope="module", params=["the chart", "a loader of our own in place of the chart"])
def objects_of(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., list[Object]]:
    """What is applied for values in a namespace."""
    scratch = tmp_path_factory.mktemp("chart")
    try:
        helm()
        found = HUB_CHART.find(scratch)
    except Unavailable as missing:
        if request.param == "the chart":
            pytest.skip(str(missing))
        return release.of_our_own
    if request.param != "the chart":
        pytest.skip("the chart is here, and nothing has to stand in for it")
    return functools.partial(release.of_chart, found, scratch)


@pytest.fixture(scope="module")
def hubs(
    cluster: Cluster, objects_of: Callable[..., list[Object]], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Hub]]:
    """All start at once."""
    add_hub_image(cluster, tmp_path_factory.mktemp("image"))
    with cluster.network():
        apply(cluster, release.assigned_user(ASSIGNED, UID))
        made = {name: install(cluster, variant, objects_of) for name, variant in VARIANTS.items()}
        provider = {"providers.kubernetesCRD": "true", "providers.kubernetesCRD.disableClusterScopeResources": "true"}
        provider["providers.kubernetesCRD.namespaces"] = ",".join(hub.namespace for hub in made.values())
        environment = {"KUBECONFIG": str(cluster.plane.kubeconfig)}
        where = tmp_path_factory.mktemp("traefik")
        traefik = Traefik(where, address="127.0.0.1", provider=provider, environment=environment).start()
    yield made
    traefik.stop()
    with cluster.network():
        for hub in made.values():
            cluster.plane.delete_namespace(hub.namespace)


def apply(cluster: Cluster, objects: list[Object], namespace: str = "default") -> None:
    command = ["apply", "--server-side", "--namespace", namespace, "--filename=-"]
    cluster.plane.kubectl(*command, input=json.dumps({"apiVersion": "v1", "kind": "List", "items": objects}))


def install(cluster: Cluster, variant: Variant, objects_of: Callable[..., list[Object]]) -> Hub:
    """By hand what helm-values/README.md says, then the release."""
    namespace = cluster.plane.make_namespace(variant.labels)
    keys = {
        "xcache": base64.b64encode(XCACHE_KEY) + b"\n",
        "condor": os.urandom(64).replace(b"\0", b"\1"),
        "dask": base64.b64encode(os.urandom(48)) + b"\n",
    }
    own = {
        "values.yaml": yaml.safe_dump({"hub": {"config": {"CasaOAuthenticator": {"client_secret": CLIENT_SECRET}}}}),
        "hub.config.JupyterHub.cookie_secret": secrets.token_hex(32),
        "hub.config.CryptKeeper.keys": secrets.token_hex(32),
    }
    accounts = {"ada": [variant.group], "guest": ["/elsewhere"]}
    idp = release.identity_provider(
        f"{NAME}:{TAG}",
        IDP_PORT,
        *(json.dumps({"sub": n, "preferred_username": n, "wlcg.groups": g}) for n, g in accounts.items()),
    )
    by_hand = [
        release.secret("casa-hub-keys", keys),
        release.secret("casa-hub", {name: text.encode() for name, text in own.items()}),
        idp,
        release.service("idp", "idp", IDP_PORT, IDP_PORT),
        # As an ingress would lead to the proxy.
        release.service("door", "proxy", 80, 8000),
    ]
    apply(cluster, by_hand, namespace)
    cluster.plane.kubectl("apply", "--namespace", namespace, "-k", str(VALUES))
    address = {
        name: cluster.plane.request("GET", f"/api/v1/namespaces/{namespace}/services/{name}")["spec"]["clusterIP"]
        for name in ("idp", "door")
    }
    url = f"http://{address['door']}"
    issuer = f"http://{address['idp']}:{IDP_PORT}"
    apply(cluster, objects_of(merged(variant.values(), here(issuer, url)), namespace), namespace)
    return Hub(cluster, namespace, url, issuer)


@pytest.mark.timeout(2 * LONG + 60)
@pytest.mark.parametrize("name", VARIANTS)
def test_a_person_logs_in_works_and_leaves(name: str, hubs: dict[str, Hub], tmp_path: Path) -> None:
    hub, variant = hubs[name], VARIANTS[name]
    with hub.explained():
        use(hub, variant, tmp_path)


def use(hub: Hub, variant: Variant, scratch: Path) -> None:
    hub.wait()

    assert Browser(hub.url).log_in("guest").status_code == 403
    ada = Browser(hub.url)
    assert ada.log_in("ada").status_code == 200
    ada.spawn("ada")
    assert [len(hub.of_ada(kind)) for kind in KINDS] == [1] * len(KINDS)
    processes = hub.processes()
    assert {name: set(map(int, status["Uid"].split())) for name, status in processes.items()} == {
        name: {uid} for name, uid in variant.users.items()
    }
    # None may ever be more than it is.
    assert {(status["NoNewPrivs"], int(status["CapBnd"], 16)) for status in processes.values()} == {("1", 0)}

    kernel = Kernel(ada, "ada")
    seen = json.loads(kernel.run(LOOK))
    assert seen["uid"] == variant.users["notebook"]
    assert {(uid, mode) for _, uid, mode in seen["files"].values()} == {(seen["uid"], "0o600")}
    files = {path: text for path, (text, _, _) in seen["files"].items()}
    macaroon = Macaroon.deserialize(files["xcache_token"].strip())
    everything = Verifier()
    everything.satisfy_general(lambda _: True)
    assert everything.verify(macaroon, XCACHE_KEY)
    idtoken = jwt.decode(files["condor_tokens.d/condor_token"].strip(), options={"verify_signature": False})
    assert (idtoken["sub"], idtoken["iss"]) == ("ada@example.org", "pool.example.org")

    kernel.run(SCHEDULER)
    certificate = scratch / "usercert.pem"
    certificate.write_text(files["usercert.pem"])
    assert greeting(seen["host"], files["ca.pem"], certificate)
    with pytest.raises(ssl.SSLError):
        greeting(seen["host"], files["ca.pem"])

    ada.stop("ada")
    for kind in KINDS:
        eventually(lambda kind=kind: not hub.of_ada(kind), timeout=30)  # type: ignore[misc]
    log = hub.log()
    assert "JupyterHub is now running" in log
    assert "Traceback" not in log
    assert not [text for text in (CLIENT_SECRET, *files.values()) if text.strip() in log]


def answers(url: str) -> bool:
    try:
        return requests.get(url, timeout=10).status_code == requests.codes.ok
    except requests.ConnectionError:
        return False


def greeting(host: str, authority: str, certificate: Path | None = None) -> bytes:
    """The first bytes that a scheduler says to who may come in."""
    context = ssl.create_default_context(cadata=authority)
    if certificate:
        context.load_cert_chain(certificate)
    with (
        socket.create_connection(("127.0.0.1", DASK_PORT), timeout=20) as plain,
        context.wrap_socket(plain, server_hostname=host) as encrypted,
    ):
        return encrypted.recv(8)
