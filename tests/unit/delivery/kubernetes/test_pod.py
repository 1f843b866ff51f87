"""The patch of a server's pod, on pods as KubeSpawner makes them and as operators' hooks leave them."""

from __future__ import annotations

import copy
import re
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kubernetes_asyncio.client import ApiClient
from kubernetes_asyncio.client.models import V1Container, V1EnvVar, V1Pod, V1PodSecurityContext, V1SecurityContext
from kubespawner.objects import make_pod

from casa_hub.credentials.base import bad_path
from casa_hub.delivery.kubernetes.manifests import key
from casa_hub.delivery.kubernetes.pod import RESOURCES, Outfit, Sidecar, patch
from casa_hub.errors import DeliveryError

pytestmark = pytest.mark.both_hubs

OUTFIT = Outfit(
    secret="casa-ada-0123abcd",
    paths=["xcache_token", "condor_tokens.d/condor_token", ".servicex"],
    directory=PurePosixPath("/etc/cmsaf-secrets"),
    environment={"CERT_DIR": "/etc/cmsaf-secrets", "HOST_IP": "ada.dask.example.org"},
    labels={"casa-hub/start-id": "0" * 32},
    annotations={"casa-hub/record": "{}"},
)
MOUNTS = [
    {"name": "casa-hub-files", "mountPath": "/etc/cmsaf-secrets", "readOnly": True},
    {"name": "casa-hub-files", "mountPath": "/etc/cmsaf-secrets-chown", "readOnly": True},
]
ENVIRONMENT = [
    {"name": "CERT_DIR", "value": "/etc/cmsaf-secrets"},
    {"name": "HOST_IP", "value": "ada.dask.example.org"},
]

Serialize = Callable[[V1Pod], dict[str, Any]]


@pytest.fixture
async def serialize() -> AsyncIterator[Serialize]:
    """What the API server is sent."""
    async with ApiClient() as client:
        yield client.sanitize_for_serialization


def make(**options: Any) -> V1Pod:
    """A pod as KubeSpawner makes it."""
    options = {
        "image_pull_policy": "IfNotPresent",
        "env": {"JUPYTERHUB_USER": "ada"},
        "labels": {"app": "hub"},
    } | options
    return make_pod("jupyter-ada", ["jupyterhub-singleuser"], 8888, "images/analysis:1", **options)


def containers(pod: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {one["name"]: one for one in [*pod["spec"].get("initContainers", []), *pod["spec"]["containers"]]}


def sidecar(pod: dict[str, Any]) -> dict[str, Any]:
    return containers(pod)["casa-hub-files"]


def values(container: dict[str, Any]) -> dict[str, str]:
    names = [variable["name"] for variable in container.get("env", [])]
    assert len(names) == len(set(names))
    return {variable["name"]: variable.get("value", "") for variable in container.get("env", [])}


def test_a_sidecar_copies_the_secret_for_the_notebook(serialize: Serialize) -> None:
    pod = make(uid=1000, fs_gid=100)
    stock = serialize(pod)
    patch(pod, OUTFIT, Sidecar())
    patched = serialize(pod)

    shell, option, script, *arguments = sidecar(patched).pop("command")
    assert (shell, option, *arguments) == ("sh", "-c", "casa-hub-files", "/casa-hub/secret", "/casa-hub/files")
    assert "mv -T" in script

    expected = copy.deepcopy(stock)
    expected["metadata"]["labels"] = {"app": "hub", "casa-hub/start-id": "0" * 32}
    expected["metadata"]["annotations"] = {"casa-hub/record": "{}"}
    (notebook,) = expected["spec"]["containers"]
    notebook["env"] = [*ENVIRONMENT, {"name": "JUPYTERHUB_USER", "value": "ada"}]
    notebook["volumeMounts"] = MOUNTS
    expected["spec"]["initContainers"] = [
        {
            "name": "casa-hub-files",
            "image": "images/analysis:1",
            "imagePullPolicy": "IfNotPresent",
            "restartPolicy": "Always",
            "workingDir": "/",
            "lifecycle": {
                "postStart": {
                    "exec": {
                        "command": ["sh", "-c", "until [ -e /casa-hub/files/..ready ]; do sleep 0.02 || sleep 1; done"]
                    }
                }
            },
            "resources": {
                "requests": {"cpu": "1m", "memory": "8Mi"},
                "limits": {"cpu": "500m", "memory": "32Mi"},
            },
            "securityContext": {
                "runAsUser": 1000,
                "runAsNonRoot": True,
                "allowPrivilegeEscalation": False,
                "privileged": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "volumeMounts": [
                {"name": "casa-hub-secret", "mountPath": "/casa-hub/secret", "readOnly": True},
                {"name": "casa-hub-files", "mountPath": "/casa-hub/files"},
            ],
        }
    ]
    expected["spec"]["volumes"] = [
        {"name": "casa-hub-files", "emptyDir": {"medium": "Memory", "sizeLimit": "8Mi"}},
        {"name": "casa-hub-secret", "secret": {"secretName": "casa-ada-0123abcd", "defaultMode": 0o444}},
    ]
    assert patched == expected


def test_a_plain_mount_gives_every_file_its_path(serialize: Serialize) -> None:
    pod = make(uid=1000, fs_gid=100)
    expected = serialize(pod)
    patch(pod, OUTFIT, None)

    expected["metadata"]["labels"] = {"app": "hub", "casa-hub/start-id": "0" * 32}
    expected["metadata"]["annotations"] = {"casa-hub/record": "{}"}
    (notebook,) = expected["spec"]["containers"]
    notebook["env"] = [*ENVIRONMENT, {"name": "JUPYTERHUB_USER", "value": "ada"}]
    notebook["volumeMounts"] = MOUNTS
    items = [
        {"key": "xcache_token", "path": "xcache_token"},
        {"key": "condor_tokens.d..condor_token", "path": "condor_tokens.d/condor_token"},
        {"key": ".servicex", "path": ".servicex"},
    ]
    secret = {"secretName": "casa-ada-0123abcd", "items": items, "defaultMode": 0o400}
    expected["spec"]["volumes"] = [{"name": "casa-hub-files", "secret": secret}]
    assert serialize(pod) == expected


@pytest.mark.parametrize(("options", "mode"), [({"fs_gid": 0}, 0o400), ({}, 0o444), ({"uid": 1000}, 0o444)])
def test_a_plain_mount_can_be_read_without_a_group_of_its_own(
    options: dict[str, Any], mode: int, serialize: Serialize
) -> None:
    pod = make(**options)
    patch(pod, OUTFIT, None)
    assert serialize(pod)["spec"]["volumes"][0]["secret"]["defaultMode"] == mode


def test_a_server_without_files_gets_the_rest(serialize: Serialize) -> None:
    pod = make()
    stock = serialize(pod)
    patch(pod, replace(OUTFIT, secret="", paths=[]), Sidecar())
    patched = serialize(pod)
    assert patched["spec"].keys() == stock["spec"].keys() - {"volumes"} | {"volumes"}
    assert patched["spec"].get("volumes", []) == []
    assert "volumeMounts" not in containers(patched)["notebook"] or not containers(patched)["notebook"]["volumeMounts"]
    assert values(containers(patched)["notebook"])["HOST_IP"] == "ada.dask.example.org"
    assert patched["metadata"]["labels"]["casa-hub/start-id"] == "0" * 32


EXTRA = {
    # As operators write them: dicts in JSON's spelling, that KubeSpawner makes models with dicts inside of.
    "extra_containers": [
        {"name": "null", "image": "images/other:1", "env": None, "volumeMounts": None},
        {"name": "bare", "image": "images/other:1"},
        {
            "name": "full",
            "image": "images/other:1",
            "env": [{"name": "HOST_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}],
            "volumeMounts": [{"name": "home", "mountPath": "/home/ada"}],
        },
    ],
    "init_containers": [
        {"name": "block-cloud-metadata", "image": "images/iptables:1", "securityContext": {"privileged": True}},
        {"name": "proxy", "image": "images/proxy:1", "restartPolicy": "Always"},
    ],
    "volumes": [{"name": "home", "persistentVolumeClaim": {"claimName": "ada"}}],
    "volume_mounts": [{"name": "home", "mountPath": "/home/ada"}],
}


def test_every_container_that_lives_with_the_server_is_served(serialize: Serialize) -> None:
    pod = make(**EXTRA)
    stock = containers(serialize(pod))
    patch(pod, OUTFIT, Sidecar())
    patched = serialize(pod)
    found = containers(patched)
    assert list(found) == ["casa-hub-files", "block-cloud-metadata", "proxy", "notebook", "null", "bare", "full"]
    # Privileged, and of an image that has nothing to do with the user.
    assert found["block-cloud-metadata"] == stock["block-cloud-metadata"]
    home = [{"name": "home", "mountPath": "/home/ada"}]
    for name, own in {"proxy": [], "notebook": home, "null": [], "bare": [], "full": home}.items():
        assert found[name]["volumeMounts"] == [*own, *MOUNTS], name
        assert values(found[name])["CERT_DIR"] == "/etc/cmsaf-secrets", name
    assert found["full"]["env"] == [ENVIRONMENT[0], *EXTRA["extra_containers"][2]["env"]]
    assert patched["spec"]["volumes"][0] == EXTRA["volumes"][0]


def test_the_operators_value_wins_and_may_refer_to_ours(serialize: Serialize) -> None:
    pod = make(env={"CERT_DIR": "/elsewhere", "ADDRESS": "tls://$(HOST_IP):8786"})
    patch(pod, OUTFIT, None)
    env = containers(serialize(pod))["notebook"]["env"]
    assert env == [
        {"name": "HOST_IP", "value": "ada.dask.example.org"},  # before who refers to it, or Kubernetes doesn't know it
        {"name": "CERT_DIR", "value": "/elsewhere"},
        {"name": "ADDRESS", "value": "tls://$(HOST_IP):8786"},
    ]


def test_our_labels_win(serialize: Serialize) -> None:
    """A user who can choose a label by a profile would else have the Service of another's server lead to the own."""
    pod = make(labels={"casa-hub/start-id": "f" * 32}, annotations={"casa-hub/record": "forged", "kept": "1"})
    patch(pod, OUTFIT, Sidecar())
    assert serialize(pod)["metadata"]["labels"] == {"casa-hub/start-id": "0" * 32}
    assert serialize(pod)["metadata"]["annotations"] == {"casa-hub/record": "{}", "kept": "1"}


def test_metadata_and_lists_that_a_hook_has_emptied(serialize: Serialize) -> None:
    pod = make()
    pod.metadata.labels = pod.metadata.annotations = pod.spec.volumes = None
    patch(pod, OUTFIT, Sidecar())
    assert serialize(pod)["metadata"]["labels"] == OUTFIT.labels
    assert len(serialize(pod)["spec"]["volumes"]) == 2


@pytest.mark.parametrize("second", [Sidecar(), None], ids=["sidecar", "plain"])
@pytest.mark.parametrize("first", [Sidecar(), None], ids=["sidecar", "plain"])
def test_a_pod_patched_again_is_as_if_patched_once(
    first: Sidecar | None, second: Sidecar | None, serialize: Serialize
) -> None:
    """Also for another start: what was of the one before is gone."""
    before = replace(OUTFIT, secret="casa-ada-old", labels={"casa-hub/start-id": "1" * 32}, paths=["usercert.pem"])
    once, again = make(**EXTRA, fs_gid=100), make(**EXTRA, fs_gid=100)
    patch(once, OUTFIT, second)
    patch(again, before, first)
    patch(again, OUTFIT, second)
    assert serialize(again) == serialize(once)
    patch(again, replace(OUTFIT, secret=""), second)
    patch(once, replace(OUTFIT, secret=""), None)
    assert serialize(again) == serialize(once)
    assert "casa-hub-" not in str(serialize(again)["spec"])


def test_nothing_that_other_pods_share_is_changed() -> None:
    """A hook may append one and the same object to every pod, and KubeSpawner's traits are every server's."""
    model = V1Container(name="model", image="images/other:1", env=[V1EnvVar("A", "1")], volume_mounts=[])
    plain = {"name": "dict", "image": "images/other:1", "env": [{"name": "A", "value": "1"}], "volumeMounts": []}
    before = copy.deepcopy((model, plain))
    pods = []
    for user in ("ada", "bob"):
        pod = make()
        pod.spec.containers += [model, plain]
        pod.spec.init_containers = [{**plain, "name": "native", "restartPolicy": "Always"}]
        patch(pod, replace(OUTFIT, environment={"HOST_IP": user}), Sidecar())
        pods.append(pod)
    assert (model, plain) == before
    for pod, user in zip(pods, ("ada", "bob"), strict=True):
        assert [one.value for one in pod.spec.containers[1].env] == [user, "1"]
        assert pod.spec.containers[2]["env"][0].value == user
        assert pod.spec.init_containers[1]["env"][0].value == user


@pytest.mark.parametrize("path", ["/etc/cmsaf-secrets", "/etc/cmsaf-secrets-chown/", "/etc/cmsaf-secrets/extra"])
@pytest.mark.parametrize("where", ["extra_containers", "init_containers"])
@pytest.mark.parametrize("sidecar", [Sidecar(), None], ids=["sidecar", "plain"])
def test_something_else_in_our_place_is_refused_before_anything_is_changed(
    where: str, path: str, sidecar: Sidecar | None, serialize: Serialize
) -> None:
    other = {
        "name": "other",
        "image": "images/other:1",
        "restartPolicy": "Always",
        "volumeMounts": [{"name": "old-secrets", "mountPath": path}],
    }
    pod = make(**{where: [other]})
    before = serialize(pod)
    with pytest.raises(DeliveryError) as refused:
        patch(pod, OUTFIT, sidecar)
    assert refused.value.thing == "container other of pod jupyter-ada"
    assert f"old-secrets at {path.rstrip('/')}" in refused.value.problem
    assert "Facility.secrets_path" in refused.value.remedy
    assert serialize(pod) == before


def test_a_mount_beside_or_around_ours_is_none_of_our_business(serialize: Serialize) -> None:
    mounts = [{"name": "etc", "mountPath": "/etc"}, {"name": "etc", "mountPath": "/etc/cmsaf-secrets-other"}]
    pod = make(volume_mounts=mounts, init_containers=[{"name": "init", "image": "i", "volumeMounts": [MOUNTS[0]]}])
    patch(pod, OUTFIT, Sidecar())
    assert containers(serialize(pod))["notebook"]["volumeMounts"] == [*mounts, *MOUNTS]


UIDS: dict[str, tuple[dict[str, Any], Sidecar, int | None]] = {
    "nothing is known: the image's user, or OKD's": ({}, Sidecar(), None),
    "the notebook's": ({"uid": 1234}, Sidecar(), 1234),
    "the pod's": ({"pod_security_context": {"runAsUser": 5678}}, Sidecar(), 5678),
    "the notebook's before the pod's": ({"uid": 1234, "pod_security_context": {"runAsUser": 5678}}, Sidecar(), 1234),
    "the setting's": ({"uid": 1234}, Sidecar(uid=4321), 4321),
    "root drops to 1000": ({"uid": 0}, Sidecar(), 1000),
    "root drops to NB_UID": ({"uid": 0, "env": {"NB_UID": "2000"}}, Sidecar(), 2000),
    "no number": ({"uid": 0, "env": {"NB_UID": "ada"}}, Sidecar(), 1000),
    "from elsewhere": ({"uid": 0, "env": {"NB_UID": {"valueFrom": {"fieldRef": {}}}}}, Sidecar(), 1000),
    "root stays root, the files don't": ({"uid": 0, "env": {"NB_UID": "0"}}, Sidecar(), 1000),
    "the pod's root": ({"pod_security_context": {"runAsUser": 0}}, Sidecar(), 1000),
    "root by setting is not": ({"uid": 0, "env": {"NB_UID": "2000"}}, Sidecar(uid=3000), 3000),
}


@pytest.mark.parametrize(("options", "setting", "uid"), UIDS.values(), ids=UIDS)
def test_whose_the_files_are(options: dict[str, Any], setting: Sidecar, uid: int | None, serialize: Serialize) -> None:
    pod = make(**options)
    patch(pod, OUTFIT, setting)
    assert sidecar(serialize(pod))["securityContext"].get("runAsUser") == uid


def test_security_contexts_may_be_models(serialize: Serialize) -> None:
    pod = make()
    pod.spec.security_context = V1PodSecurityContext(run_as_user=5678, fs_group=100)
    patch(pod, OUTFIT, Sidecar())
    assert sidecar(serialize(pod))["securityContext"]["runAsUser"] == 5678
    pod.spec.containers[0].security_context = V1SecurityContext(run_as_user=1234)
    patch(pod, OUTFIT, Sidecar())
    assert sidecar(serialize(pod))["securityContext"]["runAsUser"] == 1234
    patch(pod, OUTFIT, None)
    assert serialize(pod)["spec"]["volumes"][0]["secret"]["defaultMode"] == 0o400


def test_the_notebook_is_found_by_its_name(serialize: Serialize) -> None:
    pod = make(uid=1234)
    pod.spec.containers.insert(0, V1Container(name="first", image="images/first:1"))
    patch(pod, OUTFIT, Sidecar())
    assert sidecar(serialize(pod))["image"] == "images/analysis:1"
    assert sidecar(serialize(pod))["securityContext"]["runAsUser"] == 1234


def test_an_image_of_its_own(serialize: Serialize) -> None:
    pod = make()
    resources = {"limits": {"cpu": "2"}}
    patch(pod, OUTFIT, Sidecar(image="images/small:1", resources=resources))
    assert sidecar(serialize(pod))["image"] == "images/small:1"
    assert "imagePullPolicy" not in sidecar(serialize(pod))  # the notebook's is for the notebook's image
    assert sidecar(serialize(pod))["resources"] == resources
    patch(pod, OUTFIT, Sidecar(image="images/small:1"))
    assert sidecar(serialize(pod))["resources"] == RESOURCES


def expanded(text: str) -> str:
    """What Kubernetes makes of a command or a value: "$$" is "$", and "$(NAME)" is looked up."""

    def one(match: re.Match[str]) -> str:
        if match[0] == "$$":
            return "$"
        raise AssertionError(f"{match[0]} would be looked up")

    return re.sub(r"\$\$|\$\([^)]*\)", one, text)


def test_kubernetes_hands_the_script_on_as_it_is(serialize: Serialize) -> None:
    pod = make()
    patch(pod, OUTFIT, Sidecar())
    script = expanded(sidecar(serialize(pod))["command"][2])
    assert 'cd -P "$source/..data" && [ "$PWD" = "$1" ]' in script
    assert "$(cd -P" in script
    assert len(script) < 2048  # the hub keeps every running pod in memory


@given(st.text(st.sampled_from("$()aX{} ")))
def test_kubernetes_hands_our_values_on_as_they_are(value: str) -> None:
    pod = make()
    patch(pod, replace(OUTFIT, environment={"X": value}), None)
    assert expanded(pod.spec.containers[0].env[0].value) == value


NAME = st.text(st.sampled_from(".-_ab"), min_size=1, max_size=5)


@given(st.builds("{}{}{}".format, NAME, st.sampled_from(["", "/"]), NAME))
def test_every_file_has_a_key_that_its_path_can_be_told_from(path: str) -> None:
    """By the sidecar: what is before the first ".." of a key is the directory."""
    if not bad_path(path):
        assert key(path).replace("..", "/", 1) == path
