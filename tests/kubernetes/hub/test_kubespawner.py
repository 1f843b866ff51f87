"""Stock KubeSpawner on the control plane: what the tests of our spawners stand on, with JupyterHub 6 and 5.5."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import requests

from tests.kubernetes.conftest import MakeHub
from tests.support.hub import Hub
from tests.support.kubernetes.api import Api, eventually
from tests.support.kubernetes.hub import CHART_RULES
from tests.support.kubernetes.pods import RunningPods


def ready(hub: Hub, user: str) -> bool:
    servers = hub.api("GET", f"/users/{user}").json()["servers"]
    return bool(servers and servers[""]["ready"])


@pytest.mark.both_hubs
def test_servers_start_and_stop_with_the_rights_of_the_chart(
    plane: Api, namespace: str, running_pods: RunningPods, make_hub: MakeHub
) -> None:
    hub = make_hub(kubeconfig=plane.make_account("hub", namespace, CHART_RULES), proxy=True)
    users = [f"user-{number}" for number in range(5)]
    with hub.running():
        for user in users:
            assert hub.api("POST", f"/users/{user}").status_code == 201
        with ThreadPoolExecutor(5) as pool:
            answers = pool.map(lambda user: hub.api("POST", f"/users/{user}/server"), users)
        assert {answer.status_code for answer in answers} <= {201, 202}
        for user in users:
            eventually(lambda user=user: ready(hub, user))
            headers = {"Authorization": f"token {hub.api_token}"}
            seen = requests.get(f"{hub.url}/user/{user}/lab", headers=headers, timeout=30).json()
            assert seen["pod"] == f"jupyter-{user}"

        assert hub.api("DELETE", f"/users/{users[0]}/server").status_code in {202, 204}
        eventually(lambda: plane.gone(f"/api/v1/namespaces/{namespace}/pods/jupyter-{users[0]}"))
        assert len(plane.request("GET", f"/api/v1/namespaces/{namespace}/pods")["items"]) == len(users) - 1


def test_a_pod_that_nobody_runs_is_not_taken_for_a_server(plane: Api, namespace: str, make_hub: MakeHub) -> None:
    hub = make_hub("c.KubeSpawner.start_timeout = 2\n")
    with hub.running():
        hub.api("POST", "/users/ada")
        assert hub.api("POST", "/users/ada/server").status_code == 500
        eventually(lambda: plane.gone(f"/api/v1/namespaces/{namespace}/pods/jupyter-ada"))
        assert not ready(hub, "ada")
