"""Pure: finds unknown names in a traitlets configuration, before anything is built from it.

traitlets ignores keys that no class knows and sections that no class reads. In a facility such a typing error can mean
a group that is never required. So in this package's sections it ends the hub's start.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from typing import Any

from traitlets import TraitError
from traitlets.config import Config, Configurable
from traitlets.config.loader import DeferredConfig

from casa_hub.errors import Problem, Severity


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A remedy for an unknown name: the nearest known one; all of them if none is near."""
    names = sorted(known)
    folded = {candidate.lower(): candidate for candidate in reversed(names)}
    near = get_close_matches(name.lower(), folded, 1)
    if near:
        return f"Did you mean {folded[near[0]]}?"
    return f"Known are: {', '.join(names)}." if names else ""


def unknown_keys(config: Config, classes: Sequence[type[Configurable]]) -> list[Problem]:
    """Keys in the sections of `classes` that aren't configurable traits, and sections with nearly such a name.

    Sections within sections are checked, too: traitlets uses ``Facility.XCache`` for the children of one parent.
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


#: From this similarity on, an unknown section is taken for a typing error of one of ours: "Facilty" is one,
#: "KubeSpawner" is not.
_SIMILAR = 0.88


def _near_miss(path: str, name: str, by_name: dict[str, type[Configurable]]) -> list[Problem]:
    """A problem if the name of an unknown section is similar to one of ours. Others belong to other packages."""
    folded = {ours.lower(): ours for ours in by_name}
    near = get_close_matches(name.replace("_", "").lower(), folded, 1, _SIMILAR)
    if not near:
        return []
    return [Problem(Severity.ERROR, path, "there is no such section", f"Did you mean {folded[near[0]]}?")]


def is_set(config: Config, cls: type[Configurable], name: str) -> bool:
    """Whether the operator set the trait, in the section of the class or of a base class."""
    return any(section in config and name in config[section] for section in cls.section_names())


def value_of(config: Config, cls: type[Configurable], name: str) -> Any:
    """The value that the trait of an instance will have, for decisions before there is an instance."""
    trait = cls.class_traits()[name]
    value = trait.default()
    for section in cls.section_names():  # from the base class to `cls`, as traitlets does
        if section in config and name in config[section]:
            value = config[section][name]
            if isinstance(value, DeferredConfig):  # from the command line: still text
                value = value.get_value(trait)
    return value


def without_value(error: TraitError) -> str:
    """The text of a TraitError up to the value, which may be a secret and follows ", not" or ", but"."""
    return str(error).split(", not ")[0].split(", but ")[0].rstrip(".")
