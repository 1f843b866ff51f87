"""Pure: what can't work in a table that could be read, because of the hub's other settings."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from slugify import slugify

from casa_hub.errors import Problem, Severity
from casa_hub.policy.limits import Asked, exceeded
from casa_hub.policy.table import Rule, Table
from casa_hub.unknown_keys import did_you_mean

#: Settings of a profile that say how much its servers ask for.
_AMOUNTS = ("cpu_limit", "cpu_guarantee", "mem_limit", "mem_guarantee")


class _Override:
    """A profile's settings as a spawner has them, for `Asked.of_settings`."""

    def __init__(self, profile: Mapping[str, Any]) -> None:
        override = profile.get("kubespawner_override", {})
        for name in _AMOUNTS:
            value = override.get(name)
            setattr(self, name, None if callable(value) else value)
        for name in ("extra_resource_limits", "extra_resource_guarantees"):
            value = override.get(name)
            setattr(self, name, value if isinstance(value, Mapping) else {})


def check(table: Table, profiles: object) -> list[Problem]:
    """The problems of the rules. `profiles`: `KubeSpawner.profile_list`; None for another spawner."""
    problems = _open_to_all(table)
    if not isinstance(profiles, Sequence) or isinstance(profiles, str):
        if profiles is None:
            problems += [
                _error(rule, "profiles", "only servers of KubeSpawner have profiles", "Take it away.")
                for rule in table.rules
                if rule.profiles is not None
            ]
        return problems  # a function makes the list: nobody knows it before a start
    by_slug = {one.get("slug") or slugify(str(one.get("display_name"))): one for one in profiles}
    for rule in table.rules:
        problems += _profiles_of(rule, by_slug, table)
    for slug, profile in by_slug.items():
        problems += _never_chosen(slug, profile.get("allowed_groups") or (), table)
    return problems


def _open_to_all(table: Table) -> list[Problem]:
    """Limits that end where the rules end."""
    if not any(rule.limits for rule in table.rules) or any(rule.groups is None for rule in table.rules):
        return []
    problem = "has limits, and no rule for everybody: members whom no rule matches have no limits"
    remedy = "Add a last rule without groups, with the limits of everybody else."
    return [Problem(Severity.WARNING, "Policy.rules", problem, remedy)]


def _profiles_of(rule: Rule, by_slug: Mapping[str, Mapping[str, Any]], table: Table) -> list[Problem]:
    problems = []
    for slug in rule.profiles or ():
        profile = by_slug.get(slug)
        if profile is None:
            remedy = did_you_mean(slug, by_slug) or "Add it to KubeSpawner.profile_list, or take it away."
            problems.append(_error(rule, "profiles", f"KubeSpawner.profile_list has no profile {slug!a}", remedy))
            continue
        try:
            over = exceeded(Asked.of_settings(_Override(profile)), table.alone(rule))
        except ValueError as error:
            problems.append(_error(rule, "profiles", f"what profile {slug} asks for can't be read: {error}", ""))
            continue
        if over is not None:
            problem = (
                f"profile {slug} asks for more {over.name} than limits.{over.name} of rule {over.limit.rule} allows"
            )
            problems.append(_error(rule, "profiles", problem, "Raise the limit, or take the profile out of the list."))
        allowed = profile.get("allowed_groups")
        if allowed is not None and rule.groups is not None and not _meet(rule.groups, allowed):
            problem = f"profile {slug} is for {', '.join(map(str, allowed))} (allowed_groups), none of which matches"
            problems.append(_error(rule, "profiles", problem, "Correct allowed_groups, or take the profile away."))
    return problems


def _meet(patterns: Collection[str], groups: Collection[str]) -> bool:
    return any(fnmatchcase(group, pattern) for group in groups for pattern in patterns)


def _never_chosen(slug: str, groups: Collection[str], table: Table) -> list[Problem]:
    """Groups that a profile is for, and that the rules keep from it."""
    problems = []
    for group in groups:
        said = table.of([group]).profiles
        if said is not None and slug not in said.value:
            problem = f"profile {slug} is for {group} (allowed_groups), and this list is without it"
            remedy = "Add it to the list, or take the group out of allowed_groups."
            problems.append(_error(table.named[said.rule], "profiles", problem, remedy))
    return problems


def _error(rule: Rule, key: str, problem: str, remedy: str) -> Problem:
    return Problem(Severity.ERROR, f"Policy.rules, {rule.name}.{key}", problem, remedy)
