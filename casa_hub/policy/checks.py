"""Pure: what can't work in a table that could be read, because of the hub's other settings."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any

from slugify import slugify

from casa_hub.errors import Problem, Severity
from casa_hub.policy.limits import Asked, exceeded
from casa_hub.policy.table import Rule, Table
from casa_hub.unknown_keys import did_you_mean

#: Settings of a profile that say how much its servers ask for.
_AMOUNTS = ("cpu_limit", "cpu_guarantee", "mem_limit", "mem_guarantee")

#: What makes a pattern more than a group's name, and what of that isn't a `*`.
_WILD, _BUT_STARS = re.compile(r"[*?[]"), re.compile(r"[?[]")


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


def check(table: Table, profiles: object, listed: Iterable[str] = ()) -> list[Problem]:
    """The problems of the rules.

    `profiles`: `KubeSpawner.profile_list`; None for another spawner. `listed`: `Facility.credentials`.
    """
    problems = _open_to_all(table) + _silenced(table, listed)
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


def check_groups(table: Table, has_groups: bool, spelt: Callable[[str], str] | None) -> list[Problem]:
    """The problems of the rules' groups, which the hub's authenticator and settings decide.

    `has_groups`: the hub gets groups of people from its authenticator or its configuration. `spelt`: a group in the
    spelling that the authenticator gives it; raises ValueError with why it matches none. None where nobody knows it.

    All are warnings: the REST API, the page of administration and a site's own `decide` may make any group.
    """
    rules = [rule for rule in table.rules if rule.groups is not None]
    if rules and not has_groups:
        problem = "has rules with groups, and nothing in the configuration gives groups to people"
        remedy = "Let the authenticator manage groups (manage_groups), or set JupyterHub.load_groups."
        return [Problem(Severity.WARNING, "Policy.rules", problem, remedy)]
    if spelt is None:
        return []
    return [
        found
        for rule in rules
        for pattern in rule.groups or ()
        if (found := _misspelt(rule, pattern, spelt)) is not None
    ]


def _misspelt(rule: Rule, pattern: str, spelt: Callable[[str], str]) -> Problem | None:
    thing = f"Policy.rules, {rule.name}.groups"
    # Without its end, which isn't the provider's but the table's: `/cms/*` is all groups below /cms.
    base = pattern.removesuffix("/*")
    end = pattern[len(base) :]
    if not base or _WILD.search(base):
        return None
    try:
        right = f"{spelt(base)}{end}"
    except ValueError as error:
        remedy = "Write it as the hub's page of administration shows it."
        return Problem(Severity.WARNING, thing, f"{pattern!a} {error}, so it matches no group", remedy)
    if right == pattern:
        return None
    return Problem(Severity.WARNING, thing, f"{pattern!a} matches no group of this hub", f"Write {right}.")


def _silenced(table: Table, listed: Iterable[str]) -> list[Problem]:
    """Rules that never count, because earlier ones have the first word on everything, to everybody."""
    entries = [*listed, *(entry for rule in table.rules for entry in rule.credentials or ())]
    # `xcache:cms` in any list is that of the rule cms, whatever else the rule says.
    named = {entry.partition(":")[2] for entry in entries}
    problems = []
    for place, rule in enumerate(table.rules):
        earlier = [each for each in table.rules[:place] if _covers(each, rule)]
        if rule.name in named or _says_something(rule, earlier):
            continue
        names = ", ".join(each.name for each in earlier)
        problem = f"never counts: of whatever it says, an earlier rule ({names}) has the first word for the same people"
        remedy = "Put it before them, or take it away."
        problems.append(Problem(Severity.WARNING, f"Policy.rules, {rule.name}", problem, remedy))
    return problems


def _says_something(rule: Rule, earlier: Iterable[Rule]) -> bool:
    """Whether a rule has the first word on anything, for somebody for whom all of these count."""
    all_match = Table([replace(each, groups=None) for each in (*earlier, rule)])
    given = all_match.of(())
    words = [given.profiles, given.credentials, *given.limits.values(), *given.pod.values()]
    return rule.name in {word.rule for word in words if word is not None} | set(given.sections.values())


def _covers(earlier: Rule, later: Rule) -> bool:
    """Whether a rule surely matches everybody whom the later one matches."""
    if earlier.groups is None:
        return True
    return later.groups is not None and all(
        any(_is_part(pattern, whole) for whole in earlier.groups) for pattern in later.groups
    )


def _is_part(pattern: str, whole: str) -> bool:
    """Whether a pattern surely matches no group that `whole` doesn't match."""
    if pattern == whole:
        return True
    # Read as a text, a pattern that `*` alone matches is matched with whatever its own wildcards stand for. `[...]` is
    # more characters than one as a text, and `?` in `whole` is fewer than a `*`: nothing is said of these.
    sure = not _WILD.search(pattern) or not ("[" in pattern or _BUT_STARS.search(whole))
    return sure and fnmatchcase(pattern, whole)


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
