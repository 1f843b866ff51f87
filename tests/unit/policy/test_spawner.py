"""The rules hold for a pod's profile, its options, its settings and its manifest, however the start was asked for."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kubernetes_asyncio.client import V1Pod
from traitlets.config import Config

from casa_hub.facility import Facility
from casa_hub.jupyterhub import RefusedStart
from casa_hub.policy.limits import Asked, exceeded
from casa_hub.policy.reading import read
from casa_hub.policy.table import Table
from casa_hub.spawner import CasaSpawner

PROFILES = [
    {"display_name": "Small", "slug": "small", "kubespawner_override": {"cpu_limit": 2, "mem_limit": "4G"}},
    {"display_name": "Large", "slug": "large", "kubespawner_override": {"cpu_limit": 16, "mem_limit": "64G"}},
    {
        "display_name": "GPU",
        "slug": "gpu",
        "allowed_groups": ["/atlas/gpu"],
        "kubespawner_override": {"extra_resource_limits": {"nvidia.com/gpu": "2"}},
    },
    {
        "display_name": "Choice",
        "slug": "choice",
        "profile_options": {
            "memory": {
                "display_name": "Memory",
                "choices": {
                    "big": {
                        "display_name": "Big",
                        "allowed_groups": ["/big"],
                        "kubespawner_override": {"mem_limit": "16G"},
                    },
                    "normal": {"display_name": "Normal", "kubespawner_override": {"mem_limit": "4G"}},
                },
                "unlisted_choice": {
                    "enabled": True,
                    "allowed_groups": ["/free"],
                    "display_name": "Other",
                    "kubespawner_override": {"mem_limit": "{value}"},
                },
            }
        },
    },
]
RULES = [
    {"groups": ["/atlas/power"], "limits": {"cpu": 32, "memory": "128G"}},
    {
        "groups": ["/atlas/*"],
        "limits": {"cpu": 8, "memory": "32G", "gpu": 1, "servers": 2},
        "pod": {"node_selector": {"pool": "atlas"}},
    },
    {"groups": ["/cms/*"], "profiles": ["small", "choice"], "pod": {"volumes": [{"name": "cms"}]}},
]


def plain(pod: V1Pod) -> dict[str, Any]:
    """What a client of Kubernetes would send, of what is looked at here."""
    containers = [{"name": one.name, "resources": one.resources.to_dict()} for one in pod.spec.containers]
    return {"spec": {"containers": containers}}


@pytest.fixture(autouse=True)
def without_a_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing here asks Kubernetes."""
    monkeypatch.setattr("kubespawner.spawner.load_config", lambda **_: None)
    client = SimpleNamespace(api_client=SimpleNamespace(sanitize_for_serialization=plain))
    monkeypatch.setattr("kubespawner.spawner.shared_client", lambda _: client)


def spawner(*groups: str, options: dict[str, Any] | None = None, rules: Any = RULES, **settings: Any) -> CasaSpawner:
    facility = Facility(config=Config({"Policy": {"rules": rules}}))
    assert facility.policy.problems == []
    app = SimpleNamespace(parent=None, tornado_settings={}, log=logging.getLogger("hub"))
    app.tornado_settings["casa_hub"] = SimpleNamespace(begun=True, facility=facility)
    one = CasaSpawner(_mock=True, config=Config({"KubeSpawner": {"profile_list": PROFILES, **settings}}))
    one.user.settings = {"app": app, **app.tornado_settings}
    one.user.groups = [SimpleNamespace(name=group) for group in groups]
    one.user.spawners = {"": one}
    one.orm_spawner = SimpleNamespace(state=None, name="", server=None)
    one.user_options = options or {}
    return one


async def refused(one: CasaSpawner) -> str:
    with pytest.raises(RefusedStart) as caught:
        await one.load_user_options()
    assert caught.value.status_code == 403
    return str(caught.value.log_message)


async def test_a_profile_within_the_limits_is_loaded_once() -> None:
    one = spawner("/atlas/users", options={"profile": "small"}, volumes=[{"name": "home"}])
    await one.load_user_options()
    assert (one.cpu_limit, one.mem_limit, one.node_selector) == (2, 4 * 2**30, {"pool": "atlas"})
    one.cpu_limit = 3
    await one.load_user_options()
    assert one.cpu_limit == 3


async def test_what_is_beyond_a_limit_is_refused_and_the_group_that_may_is_named() -> None:
    text = await refused(spawner("/atlas/users", options={"profile": "large"}))
    assert "asks for 16 CPUs" in text
    assert "8 CPUs (limit cpu of rule atlas)" in text
    assert text.endswith("Members of /atlas/power may.")
    await spawner("/atlas/users", "/atlas/power", options={"profile": "large"}).load_user_options()


async def test_a_limit_that_nobody_sets_becomes_the_rule_s() -> None:
    one = spawner("/atlas/users", options={"profile": "gpu"}, rules=[{"limits": {"cpu": 1.5, "memory": "1G"}}])
    one.user.groups = [SimpleNamespace(name="/atlas/gpu")]
    await one.load_user_options()
    assert (one.cpu_limit, one.mem_limit) == (1.5, 2**30)


async def test_containers_beside_the_server_leave_room_for_it() -> None:
    """A limit that nobody set became the whole of the rule's, so that any other container made the pod too large."""
    beside = {"name": "beside", "resources": {"limits": {"cpu": "500m", "memory": "1Gi"}}}
    rules = [{"limits": {"cpu": 2, "memory": "4G"}}]
    one = spawner("/a", options={"profile": "gpu"}, rules=rules, extra_containers=[beside])
    one.user.groups = [SimpleNamespace(name="/atlas/gpu")]
    await one.load_user_options()
    assert (one.cpu_limit, one.mem_limit) == (1.5, 3 * 2**30)
    pod = await one.get_pod_manifest()
    manifest = {
        "spec": {"containers": [{"name": "n", "resources": pod.spec.containers[0].resources.to_dict()}, beside]}
    }
    assert exceeded(Asked.of_pod(manifest), one.casa_server.entitlement) is None


async def test_gpus_are_counted() -> None:
    assert "2 GPUs" in await refused(spawner("/atlas/gpu", options={"profile": "gpu"}))


async def test_a_profile_for_others_is_refused_also_to_who_asks_by_the_api() -> None:
    assert "Profile 'large' is not for the groups" in await refused(spawner("/cms/users", options={"profile": "large"}))
    assert "Profile 'gpu' is not" in await refused(spawner("/atlas/users", options={"profile": "gpu"}))
    assert "no profile 'huge'" in await refused(spawner("/atlas/users", options={"profile": "huge"}))


async def test_who_may_choose_no_profile_doesn_t_start_without_one() -> None:
    assert "No profile of this hub" in await refused(spawner("/a", rules=[{"profiles": ["gpu"]}]))


async def test_a_choice_for_others_is_refused_and_the_default_is_one_s_own() -> None:
    one = spawner("/cms/users", options={"profile": "choice"})
    await one.load_user_options()
    assert one.mem_limit == 4 * 2**30
    assert "this choice is not" in await refused(spawner("/cms/a", options={"profile": "choice", "memory": "big"}))
    unlisted = {"profile": "choice", "memory--unlisted-choice": "500G"}
    assert "this choice is not" in await refused(spawner("/cms/a", options=unlisted))
    free = spawner("/cms/a", "/free", options=unlisted)
    await free.load_user_options()
    assert free.mem_limit == 500 * 2**30
    assert "500G of memory" in await refused(spawner("/atlas/a", "/free", options=unlisted))


async def test_the_form_shows_what_may_be_chosen_now() -> None:
    one = spawner("/cms/users")
    assert 'value="large"' not in await one.get_options_form()
    one.user.groups = [SimpleNamespace(name="/atlas/users")]
    assert 'value="large"' in await one.get_options_form()
    assert 'value="gpu"' not in await one.get_options_form()


async def test_parts_of_the_pod_are_added_and_not_twice() -> None:
    one = spawner("/cms/users", volumes=[{"name": "home"}])
    for _ in range(2):
        one._loaded = False
        await one.load_user_options()
    assert one.volumes == [{"name": "home"}, {"name": "cms"}]


async def test_one_server_too_many_is_refused() -> None:
    one = spawner("/atlas/users", options={"profile": "small"})
    running = SimpleNamespace(active=True, pending=None)
    let_through = SimpleNamespace(active=True, pending="spawn", casa_server=SimpleNamespace(admitted=True))
    waiting = SimpleNamespace(active=True, pending="spawn", casa_server=SimpleNamespace(admitted=False))
    one.user.spawners |= {"a": running, "b": waiting}
    await one.load_user_options()
    one.user.spawners |= {"c": let_through}
    one._loaded = False
    assert "server 3" in await refused(one)


async def test_a_hook_can_t_add_what_the_rules_refuse() -> None:
    one = spawner("/atlas/users", options={"profile": "small"})
    await one.load_user_options()
    pod = await one.get_pod_manifest()
    pod.spec.containers[0].resources.limits["cpu"] = 20
    with pytest.raises(RefusedStart, match="20 CPUs"):
        await one._make_create_pod_request(pod, 1)


def test_a_pod_is_counted_whole() -> None:
    pod = {
        "spec": {
            "initContainers": [{"name": "i", "resources": {"limits": {"cpu": "9", "memory": "1Gi"}}}],
            "containers": [
                {"name": "notebook", "resources": {"requests": {"cpu": "500m"}, "limits": {"memory": 2**30}}},
                {"name": "beside", "resources": {"limits": {"cpu": 1, "memory": "1G", "nvidia.com/mig-1g.16gb": "1"}}},
                {"name": "small"},
            ],
        }
    }
    asked = Asked.of_pod(pod)
    assert (asked.cpu, asked.memory) == (9, 2**30 + 10**9)
    assert asked.devices == {"nvidia.com/mig-1g.16gb": 1}


def limit(name: str, amount: int) -> Any:
    return st.fixed_dictionaries({name: st.integers(1, amount)})


@given(
    rules=st.lists(
        st.fixed_dictionaries(
            {
                "groups": st.lists(st.sampled_from(["/a", "/b", "/c", "/*"]), min_size=1),
                "limits": st.dictionaries(
                    st.sampled_from(["cpu", "gpu", "nvidia.com/mig-1g"]), st.integers(1, 4), min_size=1
                ),
            }
        ),
        max_size=4,
        unique_by=lambda rule: "".join(rule["groups"]),
    ),
    groups=st.sets(st.sampled_from(["/a", "/b", "/c"])),
    cpu=st.integers(0, 5),
    devices=st.dictionaries(st.sampled_from(["nvidia.com/gpu", "nvidia.com/mig-1g", "amd.com/gpu"]), st.integers(0, 5)),
)
def test_nobody_gets_more_than_the_first_word_of_their_rules(
    rules: list[dict[str, Any]], groups: set[str], cpu: int, devices: dict[str, int]
) -> None:
    """Said a second time, without the table: by the rules' text."""
    named = [{**rule, "name": f"r{number}"} for number, rule in enumerate(rules)]
    found, problems = read(named)
    assert problems == []
    asked: Any = Asked(cpu, 0, devices)  # type: ignore[arg-type]
    may = exceeded(asked, Table(found).of(groups)) is None
    mine = [rule["limits"] for rule in rules if groups and ("/*" in rule["groups"] or groups & {*rule["groups"]})]
    most_cpu = next((limits["cpu"] for limits in mine if "cpu" in limits), None)
    most_gpu = next((limits["gpu"] for limits in mine if "gpu" in limits), None)
    before_gpu = [*mine[: next((i for i, limits in enumerate(mine) if "gpu" in limits), len(mine)) + 1]]
    most_mig = next((limits["nvidia.com/mig-1g"] for limits in before_gpu if "nvidia.com/mig-1g" in limits), None)
    gpus = sum(count for name, count in devices.items() if most_mig is None or name != "nvidia.com/mig-1g")
    beyond = [
        most_cpu is not None and cpu > most_cpu,
        most_gpu is not None and gpus > most_gpu,
        most_mig is not None and devices.get("nvidia.com/mig-1g", 0) > most_mig,
    ]
    assert may is not any(beyond)
