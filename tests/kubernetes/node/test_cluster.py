"""What the other tests here rely on: real pods, run by a real kubelet, in a network of their own."""

from __future__ import annotations

import http.client
import json
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

from tests.support.kubernetes.api import eventually
from tests.support.kubernetes.build import IMAGE
from tests.support.kubernetes.cluster import Cluster, cgroup_roots
from tests.support.peers import descendants, still_there

RESTRICTED = {
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "readOnlyRootFilesystem": True,
    "runAsNonRoot": True,
    "seccompProfile": {"type": "RuntimeDefault"},
}

# Copies a Secret from its volume, which is the kubelet's and readable for a group, to a private file.
COPY = """
import os, pathlib, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit())
source, target = pathlib.Path("/secret/token"), pathlib.Path("/private/token")
while True:
    fresh = target.with_name(".token")
    with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as out:
        out.write(source.read_bytes())
    fresh.replace(target)
    time.sleep(0.1)
"""
READ = """
import json, os, pathlib
path = pathlib.Path("/private/token")
stat = path.stat()
kinds = [line.split()[2] for line in open("/proc/mounts") if line.split()[1] == "/private"]
print(json.dumps([path.read_text(), oct(stat.st_mode & 0o777), stat.st_uid, os.getuid(), kinds]))
try:
    pathlib.Path("/etc/x").touch()
except OSError as error:
    print(error.strerror)
"""


def container(name: str, *command: str, **more: Any) -> dict[str, Any]:
    its = {"name": name, "image": IMAGE, "imagePullPolicy": "Never", "command": list(command)}
    return its | {"securityContext": RESTRICTED} | more


def create(cluster: Cluster, namespace: str, name: str, **spec: Any) -> dict[str, Any]:
    """The pod, once it is Ready."""
    user = {"runAsUser": 1000, "runAsGroup": 1000, "fsGroup": 1000}
    spec = {"terminationGracePeriodSeconds": 1, "securityContext": user} | spec
    body = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": name}}, "spec": spec}
    pods = f"/api/v1/namespaces/{namespace}/pods"
    cluster.plane.request("POST", pods, body)

    def ready() -> dict[str, Any]:
        pod = cluster.plane.request("GET", f"{pods}/{name}")
        conditions = pod["status"].get("conditions", [])
        return dict(pod) if any(c["type"] == "Ready" and c["status"] == "True" for c in conditions) else {}

    return eventually(ready, timeout=90)


def test_a_native_sidecar_keeps_a_private_copy_of_a_changing_secret(cluster: Cluster, namespace: str) -> None:
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "ada"}, "stringData": {"token": "first"}}
    path = f"/api/v1/namespaces/{namespace}/secrets/ada"
    cluster.plane.apply(path, secret)
    private = {"name": "private", "mountPath": "/private"}
    sidecar = container(
        "sidecar",
        "python3",
        "-c",
        COPY,
        restartPolicy="Always",
        startupProbe={"exec": {"command": ["test", "-s", "/private/token"]}, "periodSeconds": 1},
        volumeMounts=[private, {"name": "secret", "mountPath": "/secret", "readOnly": True}],
    )
    create(
        cluster,
        namespace,
        "ada",
        volumes=[
            {"name": "private", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}},
            {"name": "secret", "secret": {"secretName": "ada", "defaultMode": 0o440}},
        ],
        initContainers=[sidecar],
        containers=[container("main", "sleep", "infinity", volumeMounts=[private | {"readOnly": True}])],
    )
    seen, refused = cluster.exec(namespace, "ada", "python3", "-c", READ, container="main").splitlines()
    assert json.loads(seen) == ["first", "0o600", 1000, 1000, ["tmpfs"]]
    assert refused == "Read-only file system"

    cluster.plane.apply(path, secret | {"stringData": {"token": "second"}})
    read = partial(cluster.exec, namespace, "ada", "cat", "/private/token", container="main")
    eventually(lambda: read() == "second")
    cluster.plane.request("DELETE", f"/api/v1/namespaces/{namespace}/pods/ada")
    eventually(lambda: cluster.plane.gone(f"/api/v1/namespaces/{namespace}/pods/ada"))


def test_pods_and_tests_reach_a_service_and_nothing_else(cluster: Cluster, namespace: str) -> None:
    probe = {"httpGet": {"path": "/hostname", "port": 8080}, "periodSeconds": 1}
    serve = container("main", "python3", "-m", "http.server", "--directory", "/etc", "8080", readinessProbe=probe)
    web = create(cluster, namespace, "web", containers=[serve])
    service = cluster.plane.apply(
        f"/api/v1/namespaces/{namespace}/services/web",
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "web"},
            "spec": {"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": 8080}]},
        },
    )
    create(cluster, namespace, "client", containers=[container("main", "sleep", "infinity")])
    fetch = (
        "import urllib.request as r\n"
        f"try: print(r.urlopen('http://web.{namespace}.svc/hostname', timeout=2).read().decode())\n"
        "except OSError as error: print(error)"
    )
    eventually(lambda: cluster.exec(namespace, "client", "python3", "-c", fetch).strip() == "web")
    for host, port in ((service["spec"]["clusterIP"], 80), (web["status"]["podIP"], 8080)):
        connection = http.client.HTTPConnection(host, port, timeout=30)
        connection.request("GET", "/hostname")
        assert connection.getresponse().read() == b"web\n"
    assert {name[:4] for _, name in socket.if_nameindex()} == {"lo", "veth"}


def test_a_pod_calls_the_api_with_its_own_token(cluster: Cluster, namespace: str) -> None:
    create(cluster, namespace, "caller", containers=[container("main", "sleep", "infinity")])
    call = """
import pathlib, ssl, sys, urllib.error, urllib.request
account = pathlib.Path("/var/run/secrets/kubernetes.io/serviceaccount")
context = ssl.create_default_context(cafile=account / "ca.crt")
headers = {"Authorization": "Bearer " + (account / "token").read_text()}
request = urllib.request.Request("https://kubernetes.default.svc" + sys.argv[1], headers=headers)
try:
    urllib.request.urlopen(request, context=context, timeout=30)
except urllib.error.HTTPError as error:
    print(error.code, error.read().decode())
"""
    path = f"/api/v1/namespaces/{namespace}/secrets"
    answer = cluster.exec(namespace, "caller", "python3", "-c", call, path)
    assert answer.startswith("403")
    assert f"system:serviceaccount:{namespace}:default" in answer


def test_a_pod_that_would_be_root_does_not_start(cluster: Cluster, namespace: str) -> None:
    spec = {"securityContext": {"runAsUser": 0}, "containers": [container("main", "sleep", "infinity")]}
    body = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "root"}, "spec": spec}
    pods = f"/api/v1/namespaces/{namespace}/pods"
    cluster.plane.request("POST", pods, body)

    def reason() -> str:
        [status] = cluster.plane.request("GET", f"{pods}/root")["status"].get("containerStatuses", [{}])
        return str(status.get("state", {}).get("waiting", {}).get("reason", ""))

    eventually(lambda: reason() == "CreateContainerConfigError")


START = """
import sys, time
from pathlib import Path
from tests.support.kubernetes import build
from tests.support.kubernetes.cluster import Cluster
with Cluster(**build.node_parts(), work_dir=Path(sys.argv[1])):
    print("up", flush=True)
    time.sleep(600)
"""


def test_of_a_cluster_whose_tests_are_killed_nothing_is_left(tmp_path: Path) -> None:
    root = Path(__file__).parents[3]
    command = [sys.executable, "-c", START, str(tmp_path / "work")]
    with subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True) as tests:
        assert tests.stdout is not None
        assert tests.stdout.readline() == "up\n"
        started = descendants(tests.pid)
        assert {"kubelet", "kube-apiserver", "containerd"} <= {process.name for process in started}
        groups = [each / f"casa-hub-test-{tests.pid}" for each in cgroup_roots()]
        assert all(group.exists() for group in groups)
        tests.kill()
        assert still_there(started, 90) == []
        assert not [group for group in groups if group.exists()]
