"""The alerts: each fires for what it is for, says what to do, and keeps quiet otherwise."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.monitoring.cases import CASES, Case
from tests.support.peers import require
from tests.support.prometheus import FILES, RULES, promtool, rules

ROOT = Path(__file__).parents[2]
ALERTS = rules()


@pytest.mark.debian
def test_prometheus_can_read_them() -> None:
    checked = require(lambda: promtool("check", "rules", "--lint-fatal", RULES))
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert f"SUCCESS: {len(ALERTS)} rules found" in checked.stdout


def evaluated(case: Case, directory: Path) -> tuple[int, str]:
    """Exit code and output of `promtool test rules`."""
    minutes = [(minute, []) for minute in case.quiet]
    minutes += [(minute, [{"labels": "{}", "value": 1}]) for minute in case.fires]
    firing = f'count(ALERTS{{alertname="{case.alert}", alertstate="firing"}})'
    test = {
        "interval": "1m",
        "input_series": [{"series": name, "values": values} for name, values in case.series.items()],
        "promql_expr_test": [
            {"expr": firing, "eval_time": f"{minute}m", "exp_samples": samples} for minute, samples in minutes
        ],
    }
    file = directory / "test.yaml"
    file.write_text(json.dumps({"rule_files": [str(RULES)], "evaluation_interval": "1m", "tests": [test]}))
    done = require(lambda: promtool("test", "rules", file))
    return done.returncode, done.stdout + done.stderr


@pytest.mark.debian
@pytest.mark.parametrize("case", CASES, ids=str)
def test_an_alert_fires_when_it_should(case: Case, tmp_path: Path) -> None:
    code, output = evaluated(case, tmp_path)
    assert code == 0, output


@pytest.mark.debian
def test_one_that_fires_too_late_would_be_seen(tmp_path: Path) -> None:
    [held] = [case for case in CASES if case.alert == "CasaHubHeldBack"]
    code, output = evaluated(Case(held.alert, "", held.series, fires=held.quiet), tmp_path)
    assert code == 1
    assert "FAILED" in output


def test_each_has_a_case_in_which_it_fires_and_one_in_which_it_does_not() -> None:
    assert {case.alert for case in CASES if case.fires} == ALERTS.keys()
    assert {case.alert for case in CASES if case.quiet} == ALERTS.keys()


def anchors(page: str) -> set[str]:
    """Of the headings of a page, as its links have them."""
    headings = re.findall(r"^#+ (.*)$", (ROOT / page).read_text(), re.MULTILINE)
    return {re.sub(r"[^a-z0-9]+", "-", heading.lower()).strip("-") for heading in headings}


@pytest.mark.parametrize("alert", ALERTS)
def test_it_says_how_bad_it_is_what_to_do_and_where_the_guide_tells_more(alert: str) -> None:
    rule = ALERTS[alert]
    assert rule["labels"]["severity"] in {"critical", "warning"}
    said = rule["annotations"]
    assert set(said) == {"summary", "description", "guide"}
    assert len(said["summary"]) < 100
    assert said["description"].endswith(".")
    page, _, place = said["guide"].partition("#")
    assert place in anchors(page)


def test_the_operator_s_object_has_the_same_rules() -> None:
    text = (FILES / "prometheus-rule.yaml").read_text()
    plain = RULES.read_text()
    indented = re.sub(r"^(?=.)", "  ", plain[plain.index("groups:") :], flags=re.MULTILINE)
    assert text.partition("spec:\n")[2] == indented, (
        "indent the lines of casa-hub-rules.yaml by two blanks below `spec`"
    )
    resource: dict[str, Any] = yaml.safe_load(text)
    assert (resource["apiVersion"], resource["kind"]) == ("monitoring.coreos.com/v1", "PrometheusRule")
    assert resource["spec"] == yaml.safe_load(plain)
