"""helm-values/monitoring: what Prometheus' operator and Grafana are given fits what the chart makes."""

from __future__ import annotations

import subprocess
from typing import Any

import pytest
import yaml

from tests.helm.conftest import FILES as FACILITIES
from tests.helm.conftest import Render
from tests.support.kubernetes import build
from tests.support.peers import require
from tests.support.prometheus import DASHBOARD, FILES

VALUES_OF_IT = yaml.safe_load((FILES / "values.yaml").read_text())
MONITOR = yaml.safe_load((FILES / "service-monitor.yaml").read_text())


@pytest.fixture(params=FACILITIES)
def objects(request: pytest.FixtureRequest, render: Render) -> list[dict[str, Any]]:
    """What the chart makes of a facility's values and these."""
    return render(request.param, VALUES_OF_IT)


def named(objects: list[dict[str, Any]], kind: str, name: str) -> dict[str, Any]:
    [found] = [one for one in objects if (one["kind"], one["metadata"]["name"]) == (kind, name)]
    return found


def test_the_monitor_finds_the_hub_and_its_token(objects: list[dict[str, Any]]) -> None:
    wanted = MONITOR["spec"]["selector"]["matchLabels"].items()
    services = [one for one in objects if one["kind"] == "Service" and wanted <= one["metadata"]["labels"].items()]
    assert [one["metadata"]["name"] for one in services] == ["hub"]
    [endpoint] = MONITOR["spec"]["endpoints"]
    assert endpoint["port"] in {port["name"] for port in services[0]["spec"]["ports"]}
    assert endpoint["path"] == services[0]["metadata"]["annotations"]["prometheus.io/path"]
    assert set(MONITOR["spec"]["targetLabels"]) <= services[0]["metadata"]["labels"].keys()
    token = endpoint["authorization"]["credentials"]
    assert token["key"] in named(objects, "Secret", token["name"])["data"]


def test_prometheus_may_connect_to_the_hub(objects: list[dict[str, Any]]) -> None:
    [rule] = VALUES_OF_IT["hub"]["networkPolicy"]["ingress"]
    assert rule in named(objects, "NetworkPolicy", "hub")["spec"]["ingress"]
    [container] = named(objects, "Deployment", "hub")["spec"]["template"]["spec"]["containers"]
    assert {port["port"] for port in rule["ports"]} <= {port["name"] for port in container["ports"]}


def test_the_kustomization_makes_monitor_rules_and_dashboard() -> None:
    kubectl = require(build.programs) / "kubectl"
    done = subprocess.run([kubectl, "kustomize", FILES], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    made = {one["kind"]: one for one in yaml.safe_load_all(done.stdout)}
    assert made.keys() == {"ServiceMonitor", "PrometheusRule", "ConfigMap"}
    assert made["ServiceMonitor"] == MONITOR
    assert made["PrometheusRule"] == yaml.safe_load((FILES / "prometheus-rule.yaml").read_text())
    assert made["ConfigMap"]["data"] == {DASHBOARD.name: DASHBOARD.read_text()}
    assert made["ConfigMap"]["metadata"]["labels"] == {"grafana_dashboard": "1"}
