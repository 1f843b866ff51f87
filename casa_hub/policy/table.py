"""Pure: the rules of a hub, and what they give to somebody in some groups (`Table.of`).

All rules count that match one of the person's groups, in their order. On each thing the first word wins: a limit, the
list of profiles, a part of the pod, a credential's section. A thing on which none of them says a word is as
the hub's other settings have it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from fnmatch import translate
from typing import Any, Generic, TypeVar

from casa_hub.policy.amounts import is_gpu

T = TypeVar("T")

_NO_LIMITS: Mapping[str, Decimal] = {}
_NOTHING: Mapping[str, Any] = {}

#: Sets of groups whose entitlement is remembered. One is a few kilobytes, and a facility has some hundred such sets.
_REMEMBERED = 5000


@dataclass(frozen=True, slots=True)
class Said(Generic[T]):
    """A word of the table."""

    value: T
    #: Name of the rule that says it.
    rule: str


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule. None, or an empty mapping: it says no word on the thing."""

    #: In messages, in the audit, in the names of its credentials: ``xcache:atlas``.
    name: str
    #: Patterns with ``*``, ``?`` and ``[...]``, of which one must match a group; None: the rule is for everybody.
    groups: tuple[str, ...] | None
    #: Slugs in `KubeSpawner.profile_list`.
    profiles: tuple[str, ...] | None = None
    #: ``cpu``, ``memory`` (bytes), ``gpu``, ``servers`` or a resource of Kubernetes -> at most so much.
    limits: Mapping[str, Decimal] = field(default_factory=lambda: _NO_LIMITS)
    #: ``node_selector``, ``tolerations``, ``volumes``, ``volume_mounts``, ``extra_labels`` -> as KubeSpawner's setting.
    pod: Mapping[str, Any] = field(default_factory=lambda: _NOTHING)
    #: As `Facility.credentials`, or with a rule's name, ``xcache:atlas``: in files of its own.
    credentials: tuple[str, ...] | None = None
    #: Name of a configuration section, ``XCache`` -> settings that hold for these people.
    sections: Mapping[str, Mapping[str, Any]] = field(default_factory=lambda: _NOTHING)


@dataclass(frozen=True, slots=True)
class Entitlement:
    """What the rules give to somebody. None, or an empty mapping: no rule says a word on the thing."""

    #: Names of the rules that count, in their order.
    rules: tuple[str, ...] = ()
    profiles: Said[tuple[str, ...]] | None = None
    #: As `Rule.limits`. A GPU resource that isn't named here counts towards ``gpu``.
    limits: Mapping[str, Said[Decimal]] = field(default_factory=lambda: _NOTHING)
    #: As `Rule.pod`.
    pod: Mapping[str, Said[Any]] = field(default_factory=lambda: _NOTHING)
    credentials: Said[tuple[str, ...]] | None = None
    #: Name of a section -> name of the rule whose section counts. Settings of several rules are never mixed: a key of
    #: one cache must not meet the host of another one.
    sections: Mapping[str, str] = field(default_factory=lambda: _NOTHING)


#: Of somebody for whom no rule counts.
NOTHING_SAID = Entitlement()


class Table:
    """The rules in their order."""

    def __init__(self, rules: Sequence[Rule] = ()) -> None:
        self.rules = tuple(rules)
        self.named: Mapping[str, Rule] = {rule.name: rule for rule in rules}
        self._matchers: list[Callable[[str], object] | None] = [
            None if rule.groups is None else _matcher(rule.groups) for rule in rules
        ]
        self._known: dict[frozenset[str], Entitlement] = {}

    def of(self, groups: Iterable[str]) -> Entitlement:
        """What somebody in these groups gets."""
        key = frozenset(groups)
        known = self._known.get(key)
        if known is None:
            if len(self._known) >= _REMEMBERED:
                self._known.clear()
            known = self._known[key] = self._decide(key)
        return known

    def matching(self, groups: Collection[str]) -> list[Rule]:
        """The rules that count for somebody in these groups, in their order."""
        return [
            rule
            for rule, match in zip(self.rules, self._matchers, strict=True)
            if match is None or any(map(match, groups))
        ]

    def _decide(self, groups: frozenset[str]) -> Entitlement:
        rules = self.matching(groups)
        sections = {name: said.rule for name, said in _first_words(rules, lambda rule: rule.sections).items()}
        return Entitlement(
            rules=tuple(rule.name for rule in rules),
            profiles=_first(rules, lambda rule: rule.profiles),
            limits=_limits(rules),
            pod=_first_words(rules, lambda rule: rule.pod),
            credentials=_first(rules, lambda rule: rule.credentials),
            sections=sections,
        )

    # -- what to say to somebody who is refused

    def groups_with(self, groups: Collection[str], allows: Callable[[Entitlement], bool]) -> list[str]:
        """Groups, as the rules write them, in one of which somebody would be allowed what the person was refused.

        `groups`: the person's; `allows`: whether somebody with such an entitlement may have it.
        """
        has = self.matching(groups)
        found: dict[str, None] = {}
        for rule in self.rules:
            if rule.groups is not None and rule not in has and allows(self._with(has, rule)):
                found |= dict.fromkeys(rule.groups)
        return list(found)

    def alone(self, rule: Rule) -> Entitlement:
        """What somebody gets of what can be refused, for whom this rule counts and those for everybody."""
        return self._with([each for each in self.rules if each.groups is None], rule)

    def _with(self, has: Collection[Rule], another: Rule) -> Entitlement:
        """What somebody gets for whom these rules count, of what can be refused."""
        rules = [rule for rule in self.rules if rule is another or rule in has]
        return Entitlement(
            rules=tuple(rule.name for rule in rules),
            profiles=_first(rules, lambda rule: rule.profiles),
            limits=_limits(rules),
        )


def _matcher(patterns: Iterable[str]) -> Callable[[str], object]:
    """Whether a group matches one of the patterns, as `fnmatch.fnmatchcase` does: ``*`` means ``/``, too."""
    return re.compile("|".join(map(translate, patterns))).match


def _first(rules: Iterable[Rule], word: Callable[[Rule], T | None]) -> Said[T] | None:
    for rule in rules:
        value = word(rule)
        if value is not None:
            return Said(value, rule.name)
    return None


def _first_words(rules: Iterable[Rule], words: Callable[[Rule], Mapping[str, T]]) -> dict[str, Said[T]]:
    found: dict[str, Said[T]] = {}
    for rule in rules:
        for thing, value in words(rule).items():
            found.setdefault(thing, Said(value, rule.name))
    return found


def _limits(rules: Iterable[Rule]) -> dict[str, Said[Decimal]]:
    """The first words on limits. ``gpu`` is a word on each GPU resource that no rule has named until then.

    So a later rule that names a part of a GPU doesn't give it to somebody who gets none by an earlier one.
    """
    found: dict[str, Said[Decimal]] = {}
    for rule in rules:
        closed = "gpu" in found
        for thing, value in rule.limits.items():
            if not (closed and is_gpu(thing)):
                found.setdefault(thing, Said(value, rule.name))
    return found
