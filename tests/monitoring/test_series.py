"""Each series that a rule, a panel or a case of the alerts names is one that a real hub has."""

from __future__ import annotations

import re

import pytest

from tests.monitoring.cases import CASES
from tests.monitoring.conftest import metrics
from tests.support.hub import Hub
from tests.support.prometheus import Selector, filled_in, panel_queries, rules, selectors, series

pytestmark = pytest.mark.both_hubs

#: Labels that Prometheus adds, those of HUB in cases.py and those that JupyterHub's dashboards choose hubs by.
FROM_PROMETHEUS = {"instance", "job", "namespace", "pod"}
#: Label of which only one major of JupyterHub knows -> why it is asked for all the same.
ONLY_ONE_MAJOR = {
    ("jupyterhub_server_spawn_duration_seconds_count", "reason"): "JupyterHub 6 says why a start was refused",
}


def asked_for() -> list[Selector]:
    queries = [rule["expr"] for rule in rules().values()]
    queries += [filled_in(query) for query in panel_queries().values()]
    queries += [name for case in CASES for name in case.series]
    return [one for query in queries for one in selectors(query)]


@pytest.fixture(scope="module")
def there(hub: Hub) -> dict[str, set[str]]:
    return series(metrics(hub))


@pytest.mark.parametrize("name", sorted({one.name for one in asked_for()}))
def test_the_hub_has_it_with_its_labels(name: str, there: dict[str, set[str]]) -> None:
    assert name in there
    labels = {label for one in asked_for() if one.name == name for label in one.labels}
    unknown = labels - FROM_PROMETHEUS - there[name]
    assert {(name, label) for label in unknown} <= ONLY_ONE_MAJOR.keys()


def test_every_metric_of_ours_is_on_the_dashboard_or_in_a_rule(there: dict[str, set[str]]) -> None:
    ours = {name for name in there if name.startswith("casa_hub_") and not name.endswith("_created")}
    assert ours == {one.name for one in asked_for() if one.name.startswith("casa_hub_")}


def test_selectors_are_found_in_a_query() -> None:
    query = 'sum by (code) (increase(jupyterhub_x_count{handler=~"casa_hub.web", code="5.."}[5m])) > casa_hub_y / 2'
    assert [(one.name, one.labels) for one in selectors(query)] == [
        ("jupyterhub_x_count", {"handler", "code"}),
        ("casa_hub_y", set()),
    ]
    assert re.sub(r"\s", "", str(selectors(query)[0])) == 'jupyterhub_x_count{handler=~"casa_hub.web",code="5.."}'
