"""`helm-values/dev.yaml`, as far as it is not the chart's business: a hub with this configuration and these rights."""

from __future__ import annotations

import base64
import os
from pathlib import Path

import yaml

from tests.kubernetes.conftest import MakeHub
from tests.support.kubernetes.api import eventually
from tests.support.kubernetes.build import IMAGE
from tests.support.kubernetes.cluster import Cluster
from tests.support.kubernetes.hub import hub_account, node_config

VALUES = yaml.safe_load((Path(__file__).parents[3] / "helm-values" / "dev.yaml").read_text())


def test_a_server_starts_with_what_the_values_promise(
    cluster: Cluster, namespace: str, make_hub: MakeHub, tmp_path: Path
) -> None:
    sections, (mount,) = VALUES["hub"]["config"], VALUES["hub"]["extraVolumeMounts"]
    assert sections["Dask"]["secret_file"] == f"{mount['mountPath']}/dask"
    key = tmp_path / "dask"
    key.touch(mode=VALUES["hub"]["extraVolumes"][0]["secret"]["defaultMode"])
    key.write_bytes(base64.b64encode(os.urandom(48)))  # as `$(openssl rand -base64 48)` has it
    config = node_config(IMAGE)
    # As the chart's own jupyterhub_config.py does.
    config += "".join(f"c[{section!r}].update({traits!r})\n" for section, traits in sections.items())
    config += f"c.Dask.secret_file = {str(key)!r}\n"

    hub = make_hub(config, kubeconfig=hub_account(cluster.plane, namespace), proxy=True)
    with hub.running():
        assert hub.api("POST", "/users/ada").status_code == 201
        assert hub.api("POST", "/users/ada/server").status_code in {201, 202}
        eventually(lambda: hub.api("GET", "/users/ada").json()["servers"].get("", {}).get("ready"), timeout=60)
        names = cluster.exec(namespace, "jupyter-ada", "sh", "-c", "ls $CERT_DIR; echo $HOST_IP", container="notebook")
        assert names.split() == [
            "ca.pem",
            "dask_fresh_token.py",
            "hostcert.pem",
            "usercert.pem",
            "ada.dask.localhost",
        ]
        # As docs/getting-started.md takes them out.
        for name in "ca.pem", "usercert.pem":
            path = f"/etc/cmsaf-secrets/{name}"
            text = cluster.exec(namespace, "jupyter-ada", "cat", path, container="notebook")
            assert "-----BEGIN CERTIFICATE-----" in text
        assert hub.api("DELETE", "/users/ada/server").status_code in {202, 204}
