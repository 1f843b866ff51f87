"""`casa-hub check` as an init container of the hub, as docs/operations.md has it; with the chart, if it is here."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.docs.pages import ROOT, blocks
from tests.kubernetes.node.test_hub_in_a_pod import (
    LONG,
    Hub,
    Variant,
    apply,
    here,
    install,
    objects_of,  # noqa: F401 - a fixture
    values,
)
from tests.support.kubernetes.api import eventually
from tests.support.kubernetes.cluster import Cluster
from tests.support.kubernetes.hub_image import NAME, TAG, add_hub_image
from tests.support.kubernetes.release import Object, merged

CHECK = "casa-hub-check"


def with_the_check(**xcache: str) -> dict[str, Any]:
    """cms.yaml with the init container of the page, and with more settings of XCache."""
    page = ROOT / "docs" / "operations.md"
    (snippet,) = [
        yaml.safe_load(block.content) for block in blocks() if block.page == page and CHECK in block.content[:200]
    ]
    found = merged(values("cms"), snippet)
    (container,) = found["hub"]["initContainers"]
    assert container["image"] == "{name}:{tag}".format(**found["hub"]["image"])
    assert container["volumeMounts"][-1:] == found["hub"]["extraVolumeMounts"]
    container |= {"image": f"{NAME}:{TAG}", "imagePullPolicy": "Never"}
    found["hub"]["config"]["XCache"] |= xcache
    return found


@pytest.fixture
def broken(
    cluster: Cluster,
    objects_of: Callable[..., list[Object]],  # noqa: F811
    tmp_path: Path,
) -> Iterator[Hub]:
    """With a setting that is none; in a namespace that lets in what is `restricted` only."""
    add_hub_image(cluster, tmp_path)
    restricted = {"pod-security.kubernetes.io/enforce": "restricted"}
    hub = install(cluster, Variant(lambda: with_the_check(sitename="T2_XX"), "/cms/uscms", restricted), objects_of)
    yield hub
    cluster.plane.delete_namespace(hub.namespace)


@pytest.mark.timeout(2 * LONG + 60)
def test_a_wrong_setting_keeps_the_hub_from_starting_and_is_told(
    broken: Hub,
    objects_of: Callable[..., list[Object]],  # noqa: F811
) -> None:
    plane, namespace = broken.cluster.plane, broken.namespace
    pods = f"/api/v1/namespaces/{namespace}/pods"

    def ended() -> Any:
        """The hub's pod, once its init container has ended."""
        for pod in plane.request("GET", f"{pods}?labelSelector=component%3Dhub")["items"]:
            for status in pod["status"].get("initContainerStatuses", []):
                if "terminated" in {**status["state"], **status["lastState"]}:
                    return pod
        return None

    def log() -> str:
        return plane.kubectl("logs", "--namespace", namespace, "deployment/hub", "--container", CHECK, "--tail=-1")

    with broken.explained():
        pod = eventually(ended, LONG)
        (status,) = pod["status"]["initContainerStatuses"]
        assert {**status["state"], **status["lastState"]}["terminated"]["exitCode"] == 1
        (hub,) = pod["status"]["containerStatuses"]
        assert (hub["restartCount"], list(hub["state"])) == (0, ["waiting"])
        # It is tried again, and each try has a log of its own.
        told = eventually(lambda: (text := log()).endswith(" ok\n") and text, LONG)
        assert "casa-hub: reading /usr/local/etc/jupyterhub/config/jupyterhub_config.py ..." in told
        assert "error: XCache.sitename: there is no such setting. Did you mean site_name?" in told

        mended = merged(with_the_check(), here(broken.issuer, broken.url))
        apply(broken.cluster, objects_of(mended, namespace), namespace)
        # With the chart the pod has gone already: it bears the checksum of what has changed.
        plane.kubectl("delete", "--namespace", namespace, "--ignore-not-found", "pod", pod["metadata"]["name"])
        broken.wait()
        summary = log().splitlines()[-1]
        assert "ok" in summary
        assert "error" not in summary
