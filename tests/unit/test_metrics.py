"""The metrics are what the operator's guide says, and hold nobody's name."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from prometheus_client import REGISTRY

from casa_hub import metrics
from casa_hub.audit import Action
from casa_hub.identity.verdicts import Verdict
from casa_hub.membership import recheck

GUIDE = (Path(__file__).parents[2] / "docs" / "operations.md").read_text()
#: As Prometheus has them: a counter's name ends with _total.
NAMES = {
    f"{metric.name}_total" if metric.type == "counter" else metric.name: metric
    for metric in REGISTRY.collect()
    if metric.name.startswith("casa_hub")
}
TABLE = dict(re.findall(r"^\| `(casa_hub_\w+)(?:\{([^}]*)\})?` \|", GUIDE, re.MULTILINE))


def test_the_guide_tells_of_every_metric_and_of_no_other() -> None:
    assert NAMES.keys() == TABLE.keys()


@pytest.mark.parametrize("name", NAMES)
def test_labels_are_what_the_guide_says_and_few(name: str) -> None:
    [made] = [one for one in vars(metrics).values() if getattr(one, "_name", "") == name.removesuffix("_total")]
    assert ", ".join(made._labelnames) == TABLE[name]
    assert {*made._labelnames} <= {"credential", "outcome", "setting", "verdict", "what", "why"}


def test_every_verdict_and_every_reason_is_counted_from_zero() -> None:
    assert recheck.metrics is metrics  # whose import names the verdicts

    def labels(metric: str, label: str) -> set[str]:
        return {sample.labels[label] for sample in NAMES[metric].samples if sample.name == metric}

    assert labels("casa_hub_membership_verdicts_total", "verdict") >= {str(verdict) for verdict in Verdict}
    assert labels("casa_hub_access_ended_total", "why") >= set(metrics.WHYS)


def test_the_guide_tells_of_every_action_of_the_audit() -> None:
    section = GUIDE.partition("## The audit")[2].partition("### ")[0]
    assert re.findall(r"^\| `([a-z-]+)` \|", section, re.MULTILINE) == [str(action) for action in Action]
