"""A real Prometheus reads a real hub: every rule and every query of the dashboard finds what it asks for."""

from __future__ import annotations

from typing import Any

import pytest
from jupyterhub import _version

from tests.support.hub import Hub
from tests.support.prometheus import Prometheus, dashboard, filled_in, panel_queries, rules, selectors
from tests.support.waiting import first_true, until

pytestmark = [pytest.mark.debian, pytest.mark.both_hubs]

MAJOR = _version.version_info[0]
#: Selectors that find nothing in one major of JupyterHub -> that major, and why they are there.
ABSENT = {
    'jupyterhub_server_spawn_duration_seconds_count{status="error"}': (5, "JupyterHub 5 calls it failure"),
}


def test_only_the_token_of_the_values_service_reads_the_metrics(prometheus: Prometheus) -> None:
    up = {one["metric"]["job"]: one["value"][1] for one in prometheus.query("up")}
    assert up == {"hub": "1", "stranger": "0"}
    [stranger] = [one for one in prometheus.ask("targets")["activeTargets"] if one["labels"]["job"] == "stranger"]
    assert "403" in stranger["lastError"]


@pytest.mark.parametrize("selector", sorted({str(one) for rule in rules().values() for one in selectors(rule["expr"])}))
def test_what_a_rule_asks_for_is_there(selector: str, prometheus: Prometheus) -> None:
    found = prometheus.query(selector)
    assert bool(found) == (ABSENT.get(selector, (0, ""))[0] != MAJOR)


def test_every_rule_is_evaluated(prometheus: Prometheus) -> None:
    def all_evaluated() -> dict[str, dict[str, Any]]:
        seen = prometheus.rules()
        return seen if all(not rule["lastEvaluation"].startswith("0001") for rule in seen.values()) else {}

    seen = first_true(all_evaluated, "each rule has been evaluated")
    assert seen.keys() == rules().keys()
    assert {name: rule.get("lastError") for name, rule in seen.items() if rule["health"] != "ok"} == {}


def test_a_sound_hub_wakes_nobody(prometheus: Prometheus) -> None:
    assert {alert["labels"]["alertname"] for alert in prometheus.ask("alerts")["alerts"]} == set()


@pytest.mark.parametrize("panel", panel_queries())
def test_a_panel_has_something_to_show(panel: str, prometheus: Prometheus) -> None:
    query = filled_in(panel_queries()[panel])
    assert "$" not in query
    until(lambda: prometheus.query(query), f"a result of {query}", timeout=30)


def test_the_hubs_to_choose_from_are_found(prometheus: Prometheus) -> None:
    [variable] = [one for one in dashboard()["templating"]["list"] if one["name"] == "hub"]
    name, label = variable["query"]["query"].removeprefix("label_values(").removesuffix(")").split(", ")
    assert prometheus.ask(f"label/{label}/values", **{"match[]": name}) == ["facility"]


def test_a_hub_that_ends_is_told_of(hub: Hub, prometheus: Prometheus) -> None:
    """The last one: it ends the hub."""
    hub.stop()

    def told() -> list[dict[str, Any]]:
        alerts = prometheus.ask("alerts")["alerts"]
        return [alert for alert in alerts if alert["labels"]["alertname"] == "CasaHubDown"]

    [alert] = first_true(told, "the alert is pending", timeout=60)
    assert alert["state"] == "pending"
    assert alert["labels"].items() >= {"job": "hub", "namespace": "facility", "severity": "critical"}.items()
