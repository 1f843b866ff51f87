"""What is told at the hub's start of a table that can't do what it seems to."""

from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casa_hub.errors import Severity
from casa_hub.hub import CasaHub
from casa_hub.hub_config import configured_hub
from casa_hub.identity.providers import GroupSyntax
from casa_hub.membership.groups import normalised
from casa_hub.policy import checks
from casa_hub.policy.checks import check
from casa_hub.policy.reading import read
from casa_hub.policy.table import Table
from casa_hub.startup import problems as startup_problems

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


def silenced(*rules: dict[str, Any], listed: tuple[str, ...] = ()) -> list[str]:
    """What is told of rules that never count."""
    found, problems = read(rules)
    assert problems == []
    told_of = [one for one in check(Table(found), lambda _: [], listed) if "never counts" in one.problem]
    assert all(one.severity is Severity.WARNING for one in told_of)
    return [str(one) for one in told_of]


ATLAS = {"groups": ["/atlas/*"], "limits": {"cpu": 8, "gpu": 0}}
EVERYBODY = {"name": "all", "limits": {"cpu": 4}}
#: Rules -> name of the one that never counts, and of those that silence it.
NEVER = {
    "behind one for everybody": ((EVERYBODY, ATLAS | {"limits": {"cpu": 8}}), "atlas", "all"),
    "everybody twice": ((EVERYBODY, EVERYBODY | {"name": "again"}), "again", "all"),
    "of the same groups": ((ATLAS, ATLAS | {"name": "late", "limits": {"cpu": 1}}), "late", "atlas"),
    "of a group among them": (
        (ATLAS, {"name": "late", "groups": ["/atlas/a"], "limits": {"cpu": 1}}),
        "late",
        "atlas",
    ),
    "of fewer groups": (
        (ATLAS, {"name": "late", "groups": ["/atlas/x/*"], "limits": {"cpu": 1}}),
        "late",
        "atlas",
    ),
    "a part of a GPU behind none": (
        (ATLAS, {"name": "late", "groups": ["/atlas/a"], "limits": {"nvidia.com/mig-1g.5gb": 1}}),
        "late",
        "atlas",
    ),
    "by two rules together": (
        (ATLAS, EVERYBODY | {"profiles": ["s"]}, ATLAS | {"name": "late", "profiles": ["l"]}),
        "late",
        "atlas, all",
    ),
    "every kind of word": (
        tuple(
            {"name": name, "pod": {"tolerations": []}, "credentials": ["x"], "XCache": {"host": "h"}}
            for name in ("first", "late")
        ),
        "late",
        "first",
    ),
}


@pytest.mark.parametrize("name", NEVER)
def test_a_rule_that_never_counts_is_told_with_those_before_it(name: str) -> None:
    rules, late, earlier = NEVER[name]
    (said,) = silenced(*rules)
    assert f"Policy.rules, {late}: never counts" in said
    assert f"an earlier rule ({earlier})" in said


COUNTS = {
    "before the one for everybody": (ATLAS, EVERYBODY),
    "a limit that no other has": (EVERYBODY, ATLAS),
    "more groups": (ATLAS, ATLAS | {"name": "late", "groups": ["/atlas/*", "/cms"]}),
    "the group above": (ATLAS, ATLAS | {"name": "late", "groups": ["/atlas"]}),
    "everybody else": (ATLAS, ATLAS | {"name": "late", "groups": None}),
    "another kind of word": (EVERYBODY, {"name": "late", "profiles": ["s"]}),
    "a question mark is one character": (
        ATLAS | {"groups": ["/a?"]},
        ATLAS | {"name": "late", "groups": ["/a*"]},
    ),
    "one of several characters": (
        ATLAS | {"groups": ["*x]"]},
        ATLAS | {"name": "late", "groups": ["/[ax]"]},
    ),
}


@pytest.mark.parametrize("name", COUNTS)
def test_a_rule_that_may_count_is_not_told(name: str) -> None:
    assert silenced(*COUNTS[name]) == []


def test_a_rule_whose_credentials_are_named_elsewhere_counts() -> None:
    first, late = ({"name": name, "XCache": {"host": name}} for name in ("first", "late"))
    assert silenced(first, late)
    both = {"groups": ["/both"], "credentials": ["xcache", "xcache:late"]}
    assert silenced(first, late, both) == []
    assert silenced(first, late, listed=("xcache:late",)) == []


_PARTS = st.lists(st.sampled_from(["/", "a", "b", "*", "?", "[ab]", "[", "]"]), min_size=1, max_size=5).map("".join)


@given(pattern=_PARTS, whole=_PARTS, group=st.text("/ab[]", max_size=6))
def test_what_is_said_to_be_a_part_has_no_group_of_its_own(pattern: str, whole: str, group: str) -> None:
    if checks._is_part(pattern, whole) and fnmatchcase(group, pattern):
        assert fnmatchcase(group, whole)


def groups_told(*groups: str, syntax: GroupSyntax = GroupSyntax.PATHS) -> list[str]:
    rules, problems = read([{"groups": groups, "limits": {"cpu": 1}}])
    assert problems == []
    found = checks.check_groups(Table(rules), True, lambda group: normalised(group, syntax))
    assert all(one.severity is Severity.WARNING for one in found)
    return [str(one) for one in found]


@pytest.mark.parametrize(
    ("written", "right"),
    [("cms", "/cms"), ("cms/uscms/*", "/cms/uscms/*"), ("/cms/", "/cms")],
)
def test_a_group_in_another_spelling_than_the_provider_s_is_told(written: str, right: str) -> None:
    (said,) = groups_told(written)
    assert f"'{written}' matches no group of this hub. Write {right}." in said


def test_a_group_that_can_not_be_is_told_why() -> None:
    (said,) = groups_told("/cms//x")
    assert "'/cms//x' holds a path with an empty, '.' or '..' name, so it matches no group" in said
    (said,) = groups_told("urn:geant:example.org:group:cms", syntax=GroupSyntax.ENTITLEMENTS)
    assert "is a URN" in said


def test_groups_as_the_provider_has_them_are_not_told() -> None:
    assert groups_told("/cms", "/cms/*", "/*", "*", "cms*", "/c?s") == []
    assert groups_told("cms/uscms", "cms/*", syntax=GroupSyntax.NAMES) == []
    assert groups_told("/cms:role=manager", syntax=GroupSyntax.ENTITLEMENTS) == []


HUB = """
c.JupyterHub.authenticator_class = {authenticator!r}
c.JupyterHub.spawner_class = "casa"
c.Policy.rules = [{{"groups": ["cms"], "limits": {{"cpu": 1}}}}, {{"limits": {{"cpu": 1}}}}]
"""


@pytest.mark.parametrize(
    ("authenticator", "more", "words"),
    [
        ("dummy", "", "nothing in the configuration gives groups to people"),
        ("dummy", 'c.JupyterHub.load_groups = {"cms": {"users": []}}', ""),
        ("dummy", "c.Authenticator.manage_groups = True", ""),
        ("casa", 'c.CasaOAuthenticator.provider = "keycloak"', "'cms' matches no group of this hub. Write /cms."),
        ("casa", 'c.CasaOAuthenticator.provider = "keycloak"\nc.CasaOAuthenticator.groups_claim = "roles"', ""),
    ],
)
def test_the_start_of_a_hub_knows_whose_groups_there_are(
    tmp_path: Path, authenticator: str, more: str, words: str
) -> None:
    file = tmp_path / "jupyterhub_config.py"
    file.write_text(HUB.format(authenticator=authenticator) + more)
    found = [str(one) for one in startup_problems(CasaHub(configured_hub(file))) if one.thing.startswith("Policy")]
    assert len(found) == bool(words), found
    assert words in "".join(found)


def test_of_a_table_that_can_not_be_read_only_that_is_told(tmp_path: Path) -> None:
    """A rule whose groups can't be read isn't for everybody."""
    file = tmp_path / "jupyterhub_config.py"
    rules = [{"groups": 1, "limits": {"cpu": 1}}, {"groups": ["/cms"], "limits": {"cpu": 1}}]
    file.write_text(f"c.JupyterHub.spawner_class = 'casa'\nc.Policy.rules = {rules!r}\n")
    found = [str(one) for one in startup_problems(CasaHub(configured_hub(file)))]
    assert len(found) == 1, found
    assert "Policy.rules[0].groups: is not a list of names" in found[0]


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
