"""What a server finds in its pod on a real node: whose its files are, how they change, and what that costs."""

from __future__ import annotations

import json
import random
import subprocess
import threading
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import suppress
from pathlib import PurePosixPath
from typing import Any

import pytest
from kubernetes_asyncio.client import ApiClient
from kubernetes_asyncio.client.models import V1Pod
from kubespawner.objects import make_pod

from casa_hub.delivery.kubernetes.manifests import HubMark, Pod, Start, secret
from casa_hub.delivery.kubernetes.pod import Outfit, Sidecar, patch
from casa_hub.naming import Server
from casa_hub.record import ServerRecord
from tests.support.kubernetes.api import Api, eventually
from tests.support.kubernetes.cluster import Cluster

IMAGE = "casa-hub.test/singleuser:1"
DIRECTORY = PurePosixPath("/etc/cmsaf-secrets")
#: A server that does nothing, and ends when it is told.
IDLE = ["sh", "-c", "trap 'exit 0' TERM; sleep infinity & wait"]
#: What Pod Security "restricted" asks of KubeSpawner's own container.
RESTRICTED = {
    "allow_privilege_escalation": False,
    "container_security_context": {
        "runAsNonRoot": True,
        "capabilities": {"drop": ["ALL"]},
        "seccompProfile": {"type": "RuntimeDefault"},
    },
}

#: Prints what a process of the pod sees of a directory of files.
LOOK = """
import json, os, pathlib, stat, sys
directory = pathlib.Path(sys.argv[1])
def read(file):
    try:
        return file.read_text()
    except OSError as error:
        return error.strerror
def describe(path):
    found = os.stat(path)
    return [found.st_uid, oct(stat.S_IMODE(found.st_mode))]
try:
    directory.joinpath("written").touch()
    writable = True
except OSError:
    writable = False
current = directory / "..data"
print(json.dumps({
    "uid": os.getuid(),
    "writable": writable,
    "names": sorted(name for name in os.listdir(directory) if not name.startswith("..")),
    "files": {str(file.relative_to(current)): [read(file), *describe(file)] for file in current.resolve().rglob("*")
              if file.is_file() for file in [current / file.relative_to(current.resolve())]},
    "directories": [describe(current)] + [describe(one) for one in current.resolve().rglob("*") if one.is_dir()],
    "environment": os.environ.get("HOST_IP"),
}))
"""

#: Reads all files in a tight loop, by every path they have, until it has seen a version; prints what was odd.
WATCH = """
import json, os, sys, time
last, names, odd, seen, rounds = sys.argv[1], sys.argv[2:], [], [], 0
until = time.monotonic() + 200
while last not in seen and time.monotonic() < until:
    rounds += 1
    try:
        directory = os.open("/etc/cmsaf-secrets/..data", os.O_RDONLY | os.O_DIRECTORY)
        versions = set()
        for name in names:
            with os.fdopen(os.open(name, os.O_RDONLY, dir_fd=directory)) as file:
                versions.add(" ".join(sorted(set(file.read().split()))))
            for other in ("/etc/cmsaf-secrets/", "/etc/cmsaf-secrets/..data/", "/etc/cmsaf-secrets-chown/"):
                if not open(other + name).read():
                    odd.append(other + name + " is empty")
        os.close(directory)
    except OSError as error:
        odd.append(str(error))
        continue
    if len(versions) != 1:
        odd.append(sorted(versions))
    seen += versions - set(seen)
    if rounds == 1:
        open("/tmp/watching", "w").close()
print(json.dumps({"odd": odd[:10], "seen": seen, "rounds": rounds}))
"""


def files(version: object) -> dict[str, bytes]:
    content = f"{version}\n".encode()
    return {
        "xcache_token": content,
        "hostcert.pem": content * 20_000,
        ".servicex": content,
        "condor_tokens.d/condor_token": content,
    }


class Servers:
    """Pods as KubeSpawner makes them and `patch` changes them, and their Secrets."""

    def __init__(self, cluster: Cluster, namespace: str, serialize: Callable[[V1Pod], dict[str, Any]]) -> None:
        self.cluster = cluster
        self.plane: Api = cluster.plane
        self.namespace = namespace
        self.pods = f"/api/v1/namespaces/{namespace}/pods"
        self._serialize = serialize
        self._made: dict[str, tuple[Start, Pod]] = {}

    def create(self, name: str, sidecar: Sidecar | None, **options: Any) -> None:
        """The pod first and the Secret after it, as in a spawn."""
        start = Start(Server("", name, ""), f"{random.getrandbits(128):032x}", self.namespace, HubMark(self.namespace))
        options = {"image_pull_policy": "Never", "env": {}, **RESTRICTED, **options}
        pod = make_pod(name, options.pop("cmd", IDLE), 8888, IMAGE, **options)
        outfit = Outfit(start.name, list(files(1)), DIRECTORY, {"HOST_IP": "ada.dask.example.org"}, {}, {})
        patch(pod, outfit, sidecar)
        made = self.plane.request("POST", self.pods, self._serialize(pod))
        self._made[name] = start, Pod(name, made["metadata"]["uid"])
        self.update(name, files(1))

    def update(self, name: str, content: Mapping[str, bytes]) -> None:
        start, pod = self._made[name]
        record = ServerRecord(start.server.identity, start.start_id, 0, {}, {})
        self.plane.apply(
            f"/api/v1/namespaces/{self.namespace}/secrets/{start.name}", secret(start, pod, content, record)
        )

    def ready(self, name: str) -> bool:
        conditions = self.plane.request("GET", f"{self.pods}/{name}")["status"].get("conditions", [])
        return any(one["type"] == "Ready" and one["status"] == "True" for one in conditions)

    def start(self, name: str, sidecar: Sidecar | None, **options: Any) -> float:
        """Seconds until it is ready."""
        begin = time.monotonic()
        self.create(name, sidecar, **options)
        eventually(lambda: self.ready(name), 90)
        return time.monotonic() - begin

    def delete(self, name: str) -> float:
        """Seconds until it is gone."""
        begin = time.monotonic()
        self.plane.request("DELETE", f"{self.pods}/{name}")
        eventually(lambda: self.plane.gone(f"{self.pods}/{name}"), 90)
        return time.monotonic() - begin

    def python(self, name: str, program: str, *arguments: str) -> Any:
        return json.loads(
            self.cluster.exec(self.namespace, name, "python3", "-c", program, *arguments, container="notebook")
        )

    def look(self, name: str, directory: str = str(DIRECTORY)) -> dict[str, Any]:
        return dict(self.python(name, LOOK, directory))


@pytest.fixture
async def serialize() -> AsyncIterator[Callable[[V1Pod], dict[str, Any]]]:
    async with ApiClient() as client:
        yield client.sanitize_for_serialization


@pytest.fixture
def namespace_labels() -> dict[str, str]:
    return {"pod-security.kubernetes.io/enforce": "restricted"}


@pytest.fixture
def servers(cluster: Cluster, namespace: str, serialize: Callable[[V1Pod], dict[str, Any]]) -> Servers:
    return Servers(cluster, namespace, serialize)


def expected(version: object, uid: int, mode: str) -> dict[str, list[Any]]:
    return {path: [content.decode(), uid, mode] for path, content in files(version).items()}


NAMES = sorted({path.partition("/")[0] for path in files(1)})


@pytest.mark.parametrize("options", [{}, {"fs_gid": 100}, {"fs_gid": 0}], ids=["no group", "fsGroup 100", "fsGroup 0"])
def test_the_files_are_the_users_own_and_nobody_elses(options: dict[str, Any], servers: Servers) -> None:
    """HTCondor and XRootD's ztn take no other. In a namespace with Pod Security "restricted"."""
    uid = random.randrange(1, 2**31)
    servers.start("ada", Sidecar(), uid=uid, **options)
    for directory in ("/etc/cmsaf-secrets", "/etc/cmsaf-secrets-chown"):
        found = servers.look("ada", directory)
        assert found["uid"] == uid
        assert found["files"] == expected(1, uid, "0o600")
        assert found["directories"] == [[uid, "0o700"]] * 2
        assert found["names"] == NAMES
        assert not found["writable"]
        assert found["environment"] == "ada.dask.example.org"


def test_a_uid_that_only_the_pod_says(servers: Servers) -> None:
    uid = random.randrange(1, 2**31)
    servers.start("ada", Sidecar(), pod_security_context={"runAsUser": uid})
    assert servers.look("ada")["files"] == expected(1, uid, "0o600")


def test_the_images_own_user(servers: Servers) -> None:
    servers.start("ada", Sidecar())
    found = servers.look("ada")
    assert found["uid"] > 0
    assert found["files"] == expected(1, found["uid"], "0o600")


def test_a_reader_in_the_pod_sees_one_whole_set_at_every_moment(servers: Servers) -> None:
    servers.start("ada", Sidecar(), uid=4321)
    seen: dict[str, Any] = {}

    def watch() -> None:
        seen.update(servers.python("ada", WATCH, "5", *files(1)))

    watcher = threading.Thread(target=watch)
    watcher.start()
    look = ["ls", "/tmp"]
    eventually(lambda: "watching" in servers.cluster.exec(servers.namespace, "ada", *look, container="notebook"))
    for version in range(2, 6):
        servers.update("ada", files(version))
        token = ["cat", "/etc/cmsaf-secrets/..data/xcache_token"]
        assert watcher.is_alive() or version == 5
        eventually(
            lambda version=version, token=token: (
                servers.cluster.exec(  # type: ignore[misc]
                    servers.namespace, "ada", *token, container="notebook"
                )
                == f"{version}\n"
            )
        )
    watcher.join()
    assert not seen["odd"]
    assert seen["seen"] == ["1", "2", "3", "4", "5"]
    assert seen["rounds"] > 100
    assert servers.look("ada")["files"] == expected(5, 4321, "0o600")


def test_a_sidecar_that_is_started_again_takes_nothing_away(servers: Servers) -> None:
    servers.start("ada", Sidecar(), uid=4321)

    def restarts() -> int:
        (status,) = servers.plane.request("GET", f"{servers.pods}/ada")["status"]["initContainerStatuses"]
        return int(status["restartCount"]) if status["started"] else 0

    with suppress(subprocess.CalledProcessError):  # it goes down with the container
        servers.cluster.exec(servers.namespace, "ada", "sh", "-c", "kill 1", container="casa-hub-files")
    while not restarts():
        assert servers.look("ada")["files"] == expected(1, 4321, "0o600")
    servers.update("ada", files(2))
    eventually(lambda: servers.look("ada")["files"] == expected(2, 4321, "0o600"))


@pytest.mark.parametrize(
    ("options", "mode"), [({}, "0o444"), ({"fs_gid": 100}, "0o440")], ids=["no group", "with fsGroup"]
)
def test_a_plain_mount_is_readable_and_at_the_same_paths(options: dict[str, Any], mode: str, servers: Servers) -> None:
    servers.start("ada", None, uid=4321, **options)
    for directory in ("/etc/cmsaf-secrets", "/etc/cmsaf-secrets-chown"):
        found = servers.look("ada", directory)
        assert found["files"] == expected(1, 0, mode)
        assert found["names"] == NAMES
        assert not found["writable"]
    servers.update("ada", files(2))
    eventually(lambda: servers.look("ada")["files"] == expected(2, 0, mode))


def test_an_image_that_starts_as_root_and_goes_on_as_the_user(
    cluster: Cluster, plane: Api, serialize: Callable[[V1Pod], dict[str, Any]]
) -> None:
    """As Jupyter's docker-stacks do with NB_UID; "restricted" doesn't allow such images."""
    drop = f"import os; os.setgid(100); os.setuid(int(os.environ['NB_UID'])); os.execvp({IDLE[0]!r}, {IDLE!r})"
    namespace = plane.make_namespace()
    servers = Servers(cluster, namespace, serialize)
    try:
        options = {"cmd": ["python3", "-c", drop], "uid": 0, "env": {"NB_UID": "2345"}}
        servers.start("ada", Sidecar(), container_security_context={}, **options)
        found = servers.look("ada")
        assert found["uid"] == 0  # an exec is the image's user; the files are who it goes on as
        assert found["files"] == expected(1, 2345, "0o600")
    finally:
        plane.delete_namespace(namespace)


def test_a_server_that_ends_by_itself_ends_its_pod(servers: Servers) -> None:
    """As after "Shut Down" in JupyterLab: no container stays behind to keep the pod alive."""
    servers.create("ada", Sidecar(), uid=4321, cmd=["sleep", "2"])
    pod = f"{servers.pods}/ada"
    eventually(lambda: servers.plane.request("GET", pod)["status"]["phase"] == "Succeeded", 90)


def test_the_sidecar_ends_when_its_pod_is_to_end(servers: Servers) -> None:
    """A signal that isn't heard keeps a deleted pod for its grace period: 30 s."""
    servers.start("ada", Sidecar(), uid=4321)
    assert servers.delete("ada") < 25
