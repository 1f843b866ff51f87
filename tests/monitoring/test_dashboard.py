"""The dashboard is one that Grafana can draw, in the manner of JupyterHub's own."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import pytest

from tests.support.prometheus import dashboard, panel_queries

PROMETHEUS = {"type": "prometheus", "uid": "$PROMETHEUS_DS"}
PANELS: list[dict[str, Any]] = dashboard()["panels"]
DRAWN = [panel for panel in PANELS if panel["type"] != "row"]


def test_it_is_found_among_jupyterhub_s() -> None:
    content = dashboard()
    assert content["uid"] == "casa-hub"
    assert "jupyterhub" in content["tags"]
    assert "id" not in content  # Grafana gives it


def test_prometheus_and_hub_are_chosen_as_on_jupyterhub_s() -> None:
    source, hub = dashboard()["templating"]["list"]
    assert (source["name"], source["type"], source["query"]) == ("PROMETHEUS_DS", "datasource", "prometheus")
    assert (hub["name"], hub["datasource"], hub["multi"], hub["allValue"]) == ("hub", PROMETHEUS, True, ".*")


@pytest.mark.parametrize("panel", DRAWN, ids=lambda panel: panel["title"])
def test_a_panel_asks_the_chosen_ones(panel: dict[str, Any]) -> None:
    assert panel["datasource"] == PROMETHEUS
    references = [target["refId"] for target in panel["targets"]]
    assert len(set(references)) == len(references) > 0
    for target in panel["targets"]:
        assert target["legendFormat"]
        assert target["expr"].count('namespace=~"$hub"') == target["expr"].count("{")


def test_no_panel_covers_another() -> None:
    for panel in PANELS:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
    for one, other in combinations((panel["gridPos"] for panel in PANELS), 2):
        beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        below = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert beside or below, (one, other)


def test_panels_can_be_told_apart() -> None:
    assert len({panel["id"] for panel in PANELS}) == len(PANELS)
    assert len({panel["title"] for panel in PANELS}) == len(PANELS)
    assert len(panel_queries()) == sum(len(panel["targets"]) for panel in DRAWN)
