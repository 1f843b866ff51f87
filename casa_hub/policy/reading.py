"""Pure: the operator's `Policy.rules` -> rules, or what is wrong with them and what to do."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from decimal import Decimal
from typing import Any

from casa_hub.errors import Problem, Severity
from casa_hub.policy.amounts import memory, number
from casa_hub.policy.table import Rule
from casa_hub.unknown_keys import did_you_mean

#: Keys of a rule, besides sections of credentials, whose names begin with a capital letter.
KEYS = tuple(each.name for each in fields(Rule) if each.name != "sections")
LIMITS = ("cpu", "memory", "gpu", "servers")
#: Part of the pod -> whether it is a mapping; else it is a list.
POD = {"node_selector": True, "tolerations": False, "volumes": False, "volume_mounts": False, "extra_labels": True}
#: Settings of `FacilityIssuer` that a rule may have. The others are the hub's: who changes them makes another issuer.
ISSUER = ("vo", "subject")

#: A rule's name stands in the names of credentials, of files and in the labels of metrics.
_NAME = re.compile(r"[A-Za-z0-9]+([._-][A-Za-z0-9]+){0,20}")
_LONGEST_NAME = 40
#: A resource of Kubernetes that isn't CPU or memory.
_RESOURCE = re.compile(r"[a-z0-9.-]+/[A-Za-z0-9._-]+")


@dataclass(slots=True)
class _Reader:
    """One rule that is read, and what is wrong with it."""

    thing: str
    given: Mapping[str, Any]
    problems: list[Problem] = field(default_factory=list)

    def wrong(self, key: str, problem: str, remedy: str) -> None:
        self.problems.append(Problem(Severity.ERROR, f"{self.thing}{key and '.'}{key}", problem, remedy))

    def texts(self, key: str, example: str) -> tuple[str, ...] | None:
        value = self.given.get(key)
        if value is None:
            return None
        if isinstance(value, list | tuple) and all(isinstance(text, str) and text for text in value):
            return tuple(dict.fromkeys(value))
        self.wrong(key, "is not a list of names", f"Example: {example}.")
        return None

    def mapping(self, key: str, example: str) -> Mapping[str, Any]:
        value = self.given.get(key)
        if value is None:
            return {}
        if isinstance(value, Mapping) and all(isinstance(name, str) for name in value):
            return value
        self.wrong(key, "is not a mapping", f"Example: {example}.")
        return {}


def read(rules: Iterable[Any]) -> tuple[list[Rule], list[Problem]]:
    """The rules that can be read, and the problems. With an ERROR among them, the rules must not be used."""
    found: list[Rule] = []
    problems: list[Problem] = []
    for number_, given in enumerate(rules):
        thing = f"Policy.rules[{number_}]"
        if not isinstance(given, Mapping) or not all(isinstance(key, str) for key in given):
            problems.append(Problem(Severity.ERROR, thing, "is not a mapping", "A rule has keys such as groups."))
            continue
        reader = _Reader(thing, given)
        rule = _read(reader, number_)
        problems += reader.problems
        found.append(rule)
    return found, problems + _same_names(found)


def _read(reader: _Reader, place: int) -> Rule:
    sections = {key: value for key, value in reader.given.items() if key[:1].isupper()}
    for key in reader.given:
        if key not in KEYS and key not in sections:
            reader.wrong(key, "there is no such key", did_you_mean(key, KEYS))
    groups = _groups(reader)
    if len(reader.given.keys() - {"name", "groups"}) == 0:
        reader.wrong("", "says nothing", f"Give it one of {', '.join(KEYS[2:])}, or take it away.")
    return Rule(
        name=_name(reader) or _name_of(groups, place),
        groups=groups,
        profiles=reader.texts("profiles", "[small, large]"),
        limits=_limits(reader),
        pod=_pod(reader),
        credentials=reader.texts("credentials", '[xcache, htcondor, "xcache:cms"]'),
        sections=_sections(reader, sections),
    )


def _name(reader: _Reader) -> str | None:
    value = reader.given.get("name")
    if value is None or (isinstance(value, str) and _NAME.fullmatch(value) and len(value) <= _LONGEST_NAME):
        return value
    reader.wrong("name", f"is {value!a}, not a name of letters and digits, with one of ._- between them", "Correct it.")
    return None


def _groups(reader: _Reader) -> tuple[str, ...] | None:
    groups = reader.texts("groups", '["/atlas/*"]')
    if groups == ():
        reader.wrong("groups", "is empty, so the rule is for nobody", "Name a group, or leave groups out: everybody.")
    for group in groups or ():
        if group != group.strip():
            problem = f"{group!a} has a space at its beginning or end, so it matches no group"
            reader.wrong("groups", problem, "Take it away.")
    return groups


def _limits(reader: _Reader) -> dict[str, Decimal]:
    found: dict[str, Decimal] = {}
    for name, value in reader.mapping("limits", "{cpu: 8, memory: 32G, gpu: 1, servers: 2}").items():
        key = f"limits.{name}"
        if name not in LIMITS and not _RESOURCE.fullmatch(name):
            remedy = did_you_mean(name, LIMITS) + " A device has its resource's name, such as nvidia.com/mig-1g.16gb."
            reader.wrong(key, "there is no such limit", remedy.strip())
            continue
        parse: Callable[[object], Decimal | int] = memory if name == "memory" else number
        try:
            amount = Decimal(parse(value))
        except ValueError as error:
            reader.wrong(key, str(error), "Example: 32G." if name == "memory" else "Give a number.")
            continue
        if name not in {"cpu", "memory"} and amount != int(amount):
            reader.wrong(key, f"is {value!a}, not a whole number", "Correct it.")
        elif amount == 0 and name in {"cpu", "memory", "servers"}:
            remedy = "Refuse these people by CasaOAuthenticator.allowed_groups, or give a larger one."
            reader.wrong(key, "is 0, with which no server can start", remedy)
        else:
            found[name] = amount
    return found


def _pod(reader: _Reader) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in reader.mapping("pod", "{node_selector: {pool: atlas}}").items():
        if key not in POD:
            reader.wrong(f"pod.{key}", "there is no such part", did_you_mean(key, POD))
        elif not isinstance(value, Mapping if POD[key] else list | tuple):
            kind = "a mapping" if POD[key] else "a list"
            reader.wrong(f"pod.{key}", f"is not {kind}", f"Write it as KubeSpawner.{key}.")
        else:
            found[key] = value
    return found


def _sections(reader: _Reader, sections: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    found: dict[str, Mapping[str, Any]] = {}
    for name, settings in sections.items():
        if not isinstance(settings, Mapping) or not settings:
            reader.wrong(name, "is not a mapping of settings", "Example: XCache: {host: xcache-atlas.example.org}.")
            continue
        for key in settings:
            if name == "FacilityIssuer" and key not in ISSUER:
                remedy = f"A rule may set {' and '.join(ISSUER)}; the issuer's keys and address are the hub's."
                reader.wrong(f"{name}.{key}", "is no setting for some people alone", remedy)
        found[name] = settings
    return found


def _name_of(groups: tuple[str, ...] | None, place: int) -> str:
    """A name for a rule without one, by its first group: ``atlas`` for ``/atlas/*``."""
    words = re.findall(r"[A-Za-z0-9]+", groups[0] if groups else "")
    return "-".join(words)[:_LONGEST_NAME].strip("-") or f"rule-{place}"


def _same_names(rules: Iterable[Rule]) -> list[Problem]:
    """The name of a rule must tell it from all others."""
    seen: set[str] = set()
    problems = []
    for place, rule in enumerate(rules):
        if rule.name in seen:
            problem = f"is called {rule.name}, as another one is"
            problems.append(Problem(Severity.ERROR, f"Policy.rules[{place}]", problem, "Give it a name of its own."))
        seen.add(rule.name)
    return problems
