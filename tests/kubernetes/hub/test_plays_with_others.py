"""What an operator has set for KubeSpawner, hooks, profiles, volumes, works as before; ours comes beside it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from casa_hub.naming import Server
from tests.kubernetes.hub.servers import KINDS, NONE, Site, open_site
from tests.support.kubernetes.api import Api, eventually
from tests.support.kubernetes.pods import RunningPods
from tests.support.scale import one_for_both_hubs

CONFIG = """
import asyncio
import copy
import json
from kubernetes_asyncio.client import V1Container

def tell(hook, spawner, **seen):
    with open("calls", "a") as file:
        file.write(json.dumps({"hook": hook, "user": spawner.user.name, **seen}) + "\\n")

def either(hook):
    # A plain function, and for some users a coroutine.
    async def later(*args):
        await asyncio.sleep(0)
        result = hook(*args)
        return await result if asyncio.iscoroutine(result) else result

    return lambda spawner, *args: (later if spawner.user.name.startswith("async") else hook)(spawner, *args)

def fail_once(where):
    if Path(f"fail-{where}").exists():
        Path(f"fail-{where}").unlink()
        raise RuntimeError(f"the operator's {where} failed")

@either
def pre_spawn_hook(spawner):
    tell("pre_spawn", spawner)
    if spawner.user.name == "certified":  # what JupyterHub does where its `internal_ssl` is on
        spawner.internal_ssl = True
        spawner.cert_paths = {"keyfile": "jupyterhub_config.py", "certfile": "cookie_secret", "cafile": "cookie_secret"}
        spawner.internal_trust_bundles = {"hub-ca": "cookie_secret"}
    fail_once("pre_spawn")

@either
def modify_pod_hook(spawner, pod):
    tell("modify_pod", spawner, containers=[one.name for one in pod.spec.containers])
    fail_once("modify_pod")
    if spawner.user.name.endswith("-other-pod"):
        pod = copy.deepcopy(pod)
        pod.metadata.labels["made-by"] = "the-hook"
    pod.spec.containers.append(V1Container(name="model", image="none.test/model:1"))
    pod.spec.containers.append({"name": "plain", "image": "none.test/plain:1", "env": None})
    pod.metadata.labels["casa-hub/start-id"] = "f" * 32
    pod.metadata.labels["casa-hub/hub"] = "theirs"
    pod.metadata.annotations["casa-hub/server"] = "theirs"
    pod.metadata.annotations["site/note"] = "kept"
    return pod

@either
async def after_pod_created_hook(spawner, pod):
    start_id = pod["metadata"]["labels"]["casa-hub/start-id"]
    found = await spawner.api.list_namespaced_secret(spawner.namespace, label_selector=f"casa-hub/start-id={start_id}")
    tell("after_pod_created", spawner, pod=pod["metadata"]["name"], secrets=len(found.items))
    fail_once("after_pod_created")

@either
def post_stop_hook(spawner):
    tell("post_stop", spawner)

c.KubeSpawner.pre_spawn_hook = pre_spawn_hook
c.KubeSpawner.modify_pod_hook = modify_pod_hook
c.KubeSpawner.after_pod_created_hook = after_pod_created_hook
c.KubeSpawner.post_stop_hook = post_stop_hook
# As the chart writes them.
c.KubeSpawner.volumes = {"home": {"name": "home", "emptyDir": {}}}
c.KubeSpawner.volume_mounts = {"home": {"name": "home", "mountPath": "/home/jovyan"}}
c.KubeSpawner.environment = {"XCACHE_HOST": "operator.example.org"}
c.KubeSpawner.get_pod_url = lambda spawner, pod: f"http://{pod['status']['podIP']}:8888"
c.KubeSpawner.profile_list = [
    {"display_name": "Plain", "slug": "plain", "default": True},
    {
        "display_name": "Lists replace",
        "slug": "lists",
        "kubespawner_override": {
            "volumes": [{"name": "scratch", "emptyDir": {}}],
            "volume_mounts": [{"name": "scratch", "mountPath": "/scratch"}],
            "extra_containers": [{"name": "extra", "image": "none.test/extra:1", "env": None}],
            "init_containers": [
                {"name": "prepare", "image": "none.test/prepare:1"},
                {"name": "log", "image": "none.test/log:1", "restartPolicy": "Always"},
            ],
            "environment": {"CONDOR_HOST": "profile.example.org", "OWN": "a-$(XCACHE_PORT)"},
        },
    },
    {
        "display_name": "Dicts merge",
        "slug": "dicts",
        "kubespawner_override": {
            "volumes": {"scratch": {"name": "scratch", "emptyDir": {}}},
            "volume_mounts": {"scratch": {"name": "scratch", "mountPath": "/scratch"}},
            "extra_containers": [{"name": "extra", "image": "none.test/extra:1", "env": [{"name": "A", "value": "b"}]}],
        },
    },
    {
        "display_name": "In our place",
        "slug": "clash",
        "kubespawner_override": {
            "volumes": [{"name": "theirs", "emptyDir": {}}],
            "volume_mounts": [{"name": "theirs", "mountPath": "/etc/cmsaf-secrets/"}],
        },
    },
    {"display_name": "Services", "slug": "services", "kubespawner_override": {"services_enabled": True}},
]
"""
FILES = {"/etc/cmsaf-secrets", "/etc/cmsaf-secrets-chown"}
HOOKS = ["pre_spawn", "modify_pod", "after_pod_created", "post_stop"]


@pytest.fixture(scope="module")
def site(plane: Api, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with open_site(plane, tmp_path_factory, CONFIG) as one:
        yield one


@pytest.fixture(autouse=True)
def empty(site: Site) -> Iterator[None]:
    yield
    site.clear()


def calls(site: Site, user: str) -> list[dict[str, Any]]:
    lines = (site.hub.directory / "calls").read_text().splitlines()
    return [call for call in map(json.loads, lines) if call.pop("user") == user]


def stopped(site: Site, user: str) -> None:
    site.stop(user)
    eventually(lambda: site.ours() == NONE)


def containers(pod: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """By name; native sidecars too."""
    return {each["name"]: each for each in pod["spec"]["containers"] + pod["spec"].get("initContainers", [])}


def environment(container: dict[str, Any]) -> dict[str, str]:
    variables = [variable["name"] for variable in container["env"]]
    assert len(set(variables)) == len(variables)
    return {variable["name"]: variable.get("value", "") for variable in container["env"]}


def check_files(container: dict[str, Any]) -> None:
    """It has the files, once, and the variables."""
    mounts = [mount["mountPath"] for mount in container["volumeMounts"]]
    assert len(set(mounts)) == len(mounts)
    assert set(mounts) >= FILES
    assert environment(container)["BEARER_TOKEN_FILE"] == "/etc/cmsaf-secrets/xcache_token"


@pytest.mark.parametrize("user", one_for_both_hubs(["ada", "async-ada", "ada-other-pod", "async-ada-other-pod"]))
def test_hooks_of_the_operator_are_called_and_what_they_do_to_the_pod_stays(site: Site, user: str) -> None:
    site.ready(user)
    pod = site.pod(user)
    assert set(containers(pod)) == {"notebook", "model", "plain", "casa-hub-files"}
    for name in ("notebook", "model", "plain"):
        check_files(containers(pod)[name])
    metadata = pod["metadata"]
    assert metadata["annotations"]["site/note"] == "kept"
    assert metadata["labels"].get("made-by") == ("the-hook" if user.endswith("other-pod") else None)
    # Not what the hook set: these say whose the pod is.
    assert metadata["labels"]["casa-hub/start-id"] != "f" * 32
    assert metadata["labels"]["casa-hub/hub"] == ""
    assert metadata["annotations"]["casa-hub/server"] == Server("", user).identity
    assert set(site.of(pod)) == set(KINDS)

    stopped(site, user)
    assert calls(site, user) == [
        {"hook": "pre_spawn"},
        {"hook": "modify_pod", "containers": ["notebook"]},
        {"hook": "after_pod_created", "pod": metadata["name"], "secrets": 1},
        {"hook": "post_stop"},
    ]


@pytest.mark.both_hubs
def test_lists_of_a_profile_replace_the_operators_and_lose_nothing_of_ours(site: Site) -> None:
    for _ in range(2):  # nothing is left in the profile of the start before
        site.ready("ada", options={"profile": "lists"})
        found = containers(site.pod("ada"))
        assert set(found) == {"notebook", "model", "plain", "extra", "prepare", "log", "casa-hub-files"}
        for name in ("notebook", "model", "plain", "extra", "log"):
            check_files(found[name])
        assert not FILES & {mount["mountPath"] for mount in found["prepare"].get("volumeMounts", [])}
        volumes = {volume["name"] for volume in site.pod("ada")["spec"]["volumes"]}
        assert {"scratch", "casa-hub-files", "casa-hub-secret"} <= volumes
        assert "home" not in volumes
        stopped(site, "ada")


def test_dicts_of_a_profile_add_to_the_operators(site: Site) -> None:
    site.ready("ada", options={"profile": "dicts"})
    pod = site.pod("ada")
    found = containers(pod)
    check_files(found["extra"])
    assert environment(found["extra"])["A"] == "b"
    assert {"home", "scratch", "casa-hub-files"} <= {volume["name"] for volume in pod["spec"]["volumes"]}
    assert {"/home/jovyan", "/scratch", *FILES} <= {each["mountPath"] for each in found["notebook"]["volumeMounts"]}
    stopped(site, "ada")


def test_variables_of_the_operator_and_of_a_profile_win(site: Site) -> None:
    site.ready("ada", options={"profile": "lists"})
    found = containers(site.pod("ada"))
    variables = environment(found["notebook"])
    assert variables["XCACHE_HOST"] == "operator.example.org"
    assert variables["CONDOR_HOST"] == "profile.example.org"
    names = [variable["name"] for variable in found["notebook"]["env"]]
    assert names.index("XCACHE_PORT") < names.index("OWN")  # else Kubernetes could not put it in there
    assert environment(found["extra"])["CONDOR_HOST"] == "cm.example.org"  # KubeSpawner sets nothing there
    stopped(site, "ada")


def test_a_mount_in_the_place_of_the_files_is_told_before_there_is_a_pod(site: Site) -> None:
    said = site.fails("ada", options={"profile": "clash"})
    assert "it mounts theirs at /etc/cmsaf-secrets" in said
    assert "Facility.secrets_path" in said
    assert site.list("pods") == []
    assert site.ours() == NONE
    site.ready("ada", options={"profile": "plain"})
    stopped(site, "ada")


@pytest.mark.parametrize("hook", one_for_both_hubs(["pre_spawn", "modify_pod", "after_pod_created"]))
@pytest.mark.parametrize("user", ["ada", "async-ada"])
def test_a_failed_spawn_is_tried_again_and_nothing_is_there_twice(site: Site, user: str, hook: str) -> None:
    site.ready(user, options={"profile": "dicts"})
    expected = site.pod(user)
    stopped(site, user)

    (site.hub.directory / f"fail-{hook}").touch()
    site.fails(user, options={"profile": "dicts"})
    assert f"the operator's {hook} failed" in site.hub.log
    eventually(lambda: site.list("pods") == [] and site.ours() == NONE)

    site.ready(user, options={"profile": "dicts"})
    pod = site.pod(user)
    for part in ("containers", "initContainers", "volumes"):
        assert [each["name"] for each in pod["spec"][part]] == [each["name"] for each in expected["spec"][part]]
    for name in ("notebook", "model", "plain", "extra"):
        check_files(containers(pod)[name])
    assert set(site.of(pod)) == set(KINDS)
    stopped(site, user)


def test_services_of_kubespawner_stand_beside_ours(site: Site) -> None:
    site.ready("ada", options={"profile": "services"})
    pod = site.pod("ada")
    ours = site.of(pod)["Service"]["metadata"]["name"]
    assert {service["metadata"]["name"] for service in site.list("services")} == {ours, pod["metadata"]["name"]}
    stopped(site, "ada")
    eventually(lambda: site.list("services") == [])


@pytest.mark.both_hubs
def test_the_secret_of_internal_ssl_stands_beside_ours(site: Site) -> None:
    site.ready("certified")
    pod = site.pod("certified")
    check_files(containers(pod)["notebook"])
    mounts = {mount["name"] for mount in containers(pod)["notebook"]["volumeMounts"]}
    assert "jupyterhub-internal-certs" in mounts
    ours = site.of(pod)["Secret"]["metadata"]["name"]
    assert len({secret["metadata"]["name"] for secret in site.list("secrets")} - {ours}) == 1
    stopped(site, "certified")
    eventually(lambda: site.list("secrets") == [])


def test_servers_in_namespaces_of_their_users(plane: Api, tmp_path_factory: pytest.TempPathFactory) -> None:
    prefix = plane.make_namespace()  # of the hub
    config = f"""
c.KubeSpawner.enable_user_namespaces = True
c.KubeSpawner.user_namespace_template = "{prefix}-{{username}}"
"""
    users = ["ada", "bob"]
    directory = tmp_path_factory.mktemp("pods")
    with open_site(plane, tmp_path_factory, config, namespace=prefix, pods=False) as hub:
        try:
            for user in users:
                its = Site(plane, f"{prefix}-{user}", hub.hub)
                with RunningPods(plane, its.namespace, directory):
                    its.ready(user)
                    pod = its.pod(user)
                    check_files(containers(pod)["notebook"])
                    assert set(its.of(pod)) == set(KINDS)
                    its.stop(user)
                    eventually(lambda its=its: its.ours() == NONE)
            assert hub.ours() == NONE
        finally:
            for namespace in [prefix, *(f"{prefix}-{user}" for user in users)]:
                plane.delete_namespace(namespace)
