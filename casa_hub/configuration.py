"""Pure: what is wrong with the names in a traitlets configuration, before anything is built from it.

traitlets ignores a key that no class knows and a section that no class reads. In a facility such a slip means a
group that isn't asked for or a life time that isn't kept, so for sections of this package it ends the start.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from typing import Any

from traitlets.config import Config, Configurable
from traitlets.config.loader import DeferredConfig

from casa_hub.errors import Problem, Severity


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Ask for the nearest known name; without a near one, tell all of them."""
    names = sorted(known)
    folded = {candidate.lower(): candidate for candidate in reversed(names)}
    near = get_close_matches(name.lower(), folded, 1)
    if near:
        return f"Did you mean {folded[near[0]]}?"
    return f"Known are: {', '.join(names)}." if names else ""


def unknown_keys(config: Config, classes: Sequence[type[Configurable]]) -> list[Problem]:
    """Keys in the sections of `classes` that aren't configurable traits, and sections that only miss such a name.

    Sections within a section (``Facility.XCache``, by which traitlets configures children of one parent only) are
    read likewise.
    """
    by_name = {cls.__name__: cls for cls in classes}
    return _section(config, "", by_name)


def _section(config: Config, path: str, by_name: dict[str, type[Configurable]]) -> list[Problem]:
    problems = []
    for name, section in sorted(config.items()):
        if not isinstance(section, Config):
            continue
        if name not in by_name:
            problems += _near_miss(path + name, name, by_name)
            continue
        known = by_name[name].class_trait_names(config=True)
        for key, value in sorted(section.items()):
            if isinstance(value, Config) and key[:1].isupper():
                continue  # a section within a section
            if key not in known:
                remedy = did_you_mean(key, known)
                problems.append(Problem(Severity.ERROR, f"{path}{name}.{key}", "there is no such setting", remedy))
        problems += _section(section, f"{path}{name}.", by_name)
    return problems


#: How alike a section's name must be to one of ours to be taken for a slip: "Facilty" is, "KubeSpawner" is not.
_SLIP = 0.88


def _near_miss(path: str, name: str, by_name: dict[str, type[Configurable]]) -> list[Problem]:
    """Other packages' sections are none of our business, but ``Xcache`` and ``Facilty`` can only mean ours."""
    folded = {ours.lower(): ours for ours in by_name}
    near = get_close_matches(name.replace("_", "").lower(), folded, 1, _SLIP)
    if not near:
        return []
    return [Problem(Severity.ERROR, path, "there is no such section", f"Did you mean {folded[near[0]]}?")]


def is_set(config: Config, cls: type[Configurable], name: str) -> bool:
    """Whether the operator set the trait, in the section of the class or of one that it inherits from."""
    return any(section in config and name in config[section] for section in cls.section_names())


def value_of(config: Config, cls: type[Configurable], name: str) -> Any:
    """What the trait of an instance will be, for decisions before there is an instance."""
    trait = cls.class_traits()[name]
    value = trait.default()
    for section in cls.section_names():  # from the base class to `cls`, as traitlets does
        if section in config and name in config[section]:
            value = config[section][name]
            if isinstance(value, DeferredConfig):  # from the command line: still text
                value = value.get_value(trait)
    return value
