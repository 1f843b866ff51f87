"""Stock JupyterHub and KubeSpawner, with the rights of the chart, start a real JupyterLab on the node."""

from __future__ import annotations

import requests

from tests.kubernetes.conftest import MakeHub
from tests.support.kubernetes.api import eventually
from tests.support.kubernetes.build import IMAGE
from tests.support.kubernetes.cluster import Cluster
from tests.support.kubernetes.hub import CHART_RULES, node_config


def test_a_user_gets_a_notebook_server(cluster: Cluster, namespace: str, make_hub: MakeHub) -> None:
    account = cluster.plane.make_account("hub", namespace, CHART_RULES)
    hub = make_hub(node_config(IMAGE), kubeconfig=account, proxy=True)
    with hub.running():
        assert hub.api("POST", "/users/ada").status_code == 201
        assert hub.api("POST", "/users/ada/server").status_code in {201, 202}
        ada = requests.Session()
        ada.trust_env = False
        ada.headers["Authorization"] = f"token {hub.api_token}"
        status = f"{hub.url}/user/ada/api/status"
        eventually(lambda: ada.get(status, timeout=60).status_code == 200, timeout=120)

        file = {"type": "file", "format": "text", "content": "hello"}
        written = ada.put(f"{hub.url}/user/ada/api/contents/note.txt", json=file, timeout=60)
        assert written.status_code == 201, written.text
        pod = "jupyter-ada"
        assert cluster.exec(namespace, pod, "sh", "-c", "id -u; cat /home/jovyan/note.txt") == "1000\nhello"

        assert hub.api("DELETE", "/users/ada/server").status_code in {202, 204}
        eventually(lambda: cluster.plane.gone(f"/api/v1/namespaces/{namespace}/pods/{pod}"))
