"""A real hub has each series that the alerts and the dashboard name, and a real Prometheus that reads it finds them."""

from __future__ import annotations

from typing import Any

import pytest
from jupyterhub import version_info

from tests.monitoring.cases import CASES
from tests.monitoring.conftest import metrics
from tests.support.hub import Hub
from tests.support.prometheus import (
    Prometheus,
    Selector,
    dashboard,
    filled_in,
    panel_queries,
    rules,
    selectors,
    series,
)
from tests.support.waiting import first_true, until

#: Labels that Prometheus adds.
FROM_PROMETHEUS = {"chart", "instance", "job", "namespace", "pod"}
#: Of JupyterHub's series, labels and selectors that one major doesn't know -> that major, and why they are there.
UNKNOWN_LABELS = {
    ("jupyterhub_server_spawn_duration_seconds_count", "reason"): (5, "JupyterHub 6 says why it refused a start"),
}
UNKNOWN_SELECTORS = {
    'jupyterhub_server_spawn_duration_seconds_count{status="error"}': (5, "JupyterHub 5 calls it a failure"),
}
MAJOR = version_info[0]


def not_in_this_major(unknown: dict[Any, tuple[int, str]]) -> set[Any]:
    return {thing for thing, (major, _) in unknown.items() if major == MAJOR}


IN_RULES = [one for rule in rules().values() for one in selectors(rule["expr"])]
IN_PANELS = [one for query in panel_queries().values() for one in selectors(filled_in(query))]
IN_CASES = [one for case in CASES for name in case.series for one in selectors(name)]


# -- what the hub serves -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def there(hub: Hub) -> dict[str, set[str]]:
    return series(metrics(hub))


@pytest.mark.both_hubs
@pytest.mark.parametrize("name", sorted({one.name for one in IN_RULES + IN_PANELS + IN_CASES}))
def test_the_hub_has_it_with_its_labels(name: str, there: dict[str, set[str]]) -> None:
    assert name in there
    asked_for = {label for one in IN_RULES + IN_PANELS + IN_CASES if one.name == name for label in one.labels}
    unknown = {(name, label) for label in asked_for - FROM_PROMETHEUS - there[name]}
    assert unknown == {known for known in not_in_this_major(UNKNOWN_LABELS) if known[0] == name}


@pytest.mark.both_hubs
def test_every_metric_of_ours_is_asked_for(there: dict[str, set[str]]) -> None:
    ours = {name for name in there if name.startswith("casa_hub_") and not name.endswith("_created")}
    assert ours == {one.name for one in IN_RULES + IN_PANELS if one.name.startswith("casa_hub_")}


def test_selectors_are_found_in_a_query() -> None:
    query = 'sum by (code) (increase(jupyterhub_x_count{handler=~"casa_hub.web",  code="5.."}[5m])) > casa_hub_y / 2'
    assert selectors(query) == [
        Selector("jupyterhub_x_count", '{handler=~"casa_hub.web", code="5.."}'),
        Selector("casa_hub_y", ""),
    ]
    assert [one.labels for one in selectors(query)] == [{"handler", "code"}, set()]


# -- what Prometheus makes of it ---------------------------------------------------------------------------------------


@pytest.mark.both_hubs
@pytest.mark.debian
def test_only_the_token_of_the_values_service_reads_the_metrics(prometheus: Prometheus) -> None:
    up = {one["metric"]["job"]: one["value"][1] for one in prometheus.query("up")}
    assert up == {"hub": "1", "stranger": "0"}
    [stranger] = [one for one in prometheus.ask("targets")["activeTargets"] if one["labels"]["job"] == "stranger"]
    assert "403" in stranger["lastError"]


@pytest.mark.both_hubs
@pytest.mark.debian
@pytest.mark.parametrize("selector", sorted(map(str, IN_RULES)))
def test_what_a_rule_asks_for_is_there(selector: str, prometheus: Prometheus) -> None:
    found = prometheus.query(selector)
    assert bool(found) == (selector not in not_in_this_major(UNKNOWN_SELECTORS))


@pytest.mark.both_hubs
@pytest.mark.debian
def test_every_rule_is_evaluated(prometheus: Prometheus) -> None:
    def all_evaluated() -> dict[str, dict[str, Any]]:
        seen = prometheus.rules()
        return seen if all(not rule["lastEvaluation"].startswith("0001") for rule in seen.values()) else {}

    seen = first_true(all_evaluated, "each rule has been evaluated")
    assert seen.keys() == rules().keys()
    assert {name: rule.get("lastError") for name, rule in seen.items() if rule["health"] != "ok"} == {}


@pytest.mark.debian
def test_a_sound_hub_wakes_nobody(prometheus: Prometheus) -> None:
    assert {alert["labels"]["alertname"] for alert in prometheus.ask("alerts")["alerts"]} == set()


@pytest.mark.debian
@pytest.mark.parametrize("panel", panel_queries())
def test_a_panel_has_something_to_show(panel: str, prometheus: Prometheus) -> None:
    query = filled_in(panel_queries()[panel])
    assert "$" not in query
    until(lambda: prometheus.query(query), f"a result of {query}", timeout=30)


@pytest.mark.debian
def test_the_hubs_to_choose_from_are_found(prometheus: Prometheus) -> None:
    [variable] = [one for one in dashboard()["templating"]["list"] if one["name"] == "hub"]
    name, label = variable["query"]["query"].removeprefix("label_values(").removesuffix(")").split(", ")
    assert prometheus.ask(f"label/{label}/values", **{"match[]": name}) == ["facility"]


@pytest.mark.debian
def test_a_hub_that_ends_is_told_of(hub: Hub, prometheus: Prometheus) -> None:
    """The last one: it ends the hub."""
    hub.stop()

    def told() -> list[dict[str, Any]]:
        alerts = prometheus.ask("alerts")["alerts"]
        return [alert for alert in alerts if alert["labels"]["alertname"] == "CasaHubDown"]

    [alert] = first_true(told, "the alert is pending", timeout=60)
    assert alert["state"] == "pending"
    assert alert["labels"].items() >= {"job": "hub", "namespace": "facility", "severity": "critical"}.items()
