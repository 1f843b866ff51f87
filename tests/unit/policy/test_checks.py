"""What is told at the hub's start of a table that can't do what it seems to, and `casa-hub policy`."""

from pathlib import Path
from typing import Any

import pytest

from casa_hub.cli import main
from casa_hub.errors import Severity
from casa_hub.policy.checks import check
from casa_hub.policy.reading import read
from casa_hub.policy.table import Table

PROFILES = [
    {"display_name": "Small one", "kubespawner_override": {"cpu_limit": 2, "mem_guarantee": "4G"}},
    {
        "display_name": "L",
        "slug": "large",
        "allowed_groups": ["/atlas/users"],
        "kubespawner_override": {"cpu_limit": 16},
    },
]


def told(*rules: dict[str, Any], profiles: object = PROFILES) -> list[str]:
    found, problems = read(rules)
    assert problems == []
    return [str(one) for one in check(Table(found), profiles) if one.severity is Severity.ERROR]


SOUND = {"groups": ["/atlas/*"], "profiles": ["small-one", "large"], "limits": {"cpu": 16}}
WRONG = {
    "no such profile": (SOUND | {"profiles": ["small"]}, "has no profile 'small'"),
    "a limit below what a profile asks for": (
        SOUND | {"limits": {"cpu": 8}},
        "large asks for more cpu than limits.cpu",
    ),
    "memory": (SOUND | {"limits": {"memory": "1G"}}, "small-one asks for more memory"),
    "for other groups": (SOUND | {"groups": ["/cms/*"]}, "none of which matches"),
    "kept from its own group": (SOUND | {"profiles": ["small-one"]}, "profile large is for /atlas/users"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_profile_that_nobody_could_start_is_told(name: str) -> None:
    rule, words = WRONG[name]
    assert any(words in one for one in told(rule)), told(rule)


def test_a_sound_table_is_sound() -> None:
    assert told(SOUND) == []
    assert told({"limits": {"cpu": 1}}, profiles=None) == []
    assert told(SOUND, profiles=lambda _: []) == []


def test_profiles_are_kubespawner_s_alone() -> None:
    assert "only servers of KubeSpawner have profiles" in told(SOUND, profiles=None)[0]


def test_limits_that_don_t_hold_for_everybody_are_told() -> None:
    rules, _ = read([SOUND])
    [problem] = check(Table(rules), PROFILES)
    assert problem.severity is Severity.WARNING
    assert "members whom no rule matches have no limits" in problem.problem
    everybody, _ = read([SOUND, {"limits": {"cpu": 1}}])
    assert check(Table(everybody), PROFILES) == []


WRONG_TEXTS = {
    "a key": ({"profile": ["a"]}, "Policy.rules[0].profile: there is no such key. Did you mean profiles?"),
    "a limit": ({"limits": {"cpus": 1}}, "limits.cpus: there is no such limit. Did you mean cpu?"),
    "an amount": ({"limits": {"memory": "much"}}, "limits.memory: 'much' is no amount"),
    "nothing at all": ({"limits": {"servers": 0}}, "is 0, with which no server can start"),
    "half a GPU": ({"limits": {"gpu": 0.5}}, "not a whole number"),
    "no groups": ({"groups": [], "limits": {"cpu": 1}}, "is empty, so the rule is for nobody"),
    "a blank": ({"groups": ["/a "], "limits": {"cpu": 1}}, "has a space at its beginning or end"),
    "a part of the pod": (
        {"pod": {"tolerance": []}},
        "pod.tolerance: there is no such part. Did you mean tolerations?",
    ),
    "its form": ({"pod": {"volumes": {}}}, "pod.volumes: is not a list"),
    "a name": ({"name": "a/b", "limits": {"cpu": 1}}, "not a name of letters and digits"),
    "no word": ({"groups": ["/a"]}, "says nothing"),
    "an issuer of its own": ({"FacilityIssuer": {"keys": "/x"}}, "FacilityIssuer.keys: is no setting for some people"),
}


@pytest.mark.parametrize("name", WRONG_TEXTS)
def test_what_can_t_be_read_is_told_with_its_place(name: str) -> None:
    rule, words = WRONG_TEXTS[name]
    _, problems = read([rule])
    assert any(words in str(problem) for problem in problems), problems


def test_two_rules_of_a_name_are_told() -> None:
    _, problems = read([SOUND, SOUND | {"limits": {"cpu": 1}}])
    assert "is called atlas, as another one is" in str(problems[0])


def test_the_command_says_what_somebody_gets_and_which_rule_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "jupyterhub_config.py"
    both = [{"groups": ["/cms/*"], "limits": {"memory": "4G"}}, SOUND]
    file.write_text(f"c.Policy.rules = {both!r}\n")
    assert main(["policy", "-f", str(file), "/cms/users", "/atlas/users"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "profiles: small-one, large (rule atlas)",
        "limits.memory: at most 4G of memory (rule cms)",
        "limits.cpu: at most 16 CPUs (rule atlas)",
    ]
    assert main(["policy", "-f", str(file), "--json", "/belle"]) == 0
    assert capsys.readouterr().out == "[]\n"
    file.write_text("c.Policy.rules = [{'groups': []}]\n")
    assert main(["policy", "-f", str(file)]) == 2
    assert "is empty, so the rule is for nobody" in capsys.readouterr().err
