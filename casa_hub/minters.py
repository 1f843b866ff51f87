"""The installed minters, and those of one hub by the names in `Facility.credentials`."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from traitlets import TraitError
from traitlets.config import Config, LoggingConfigurable

from casa_hub.credentials.base import Minter
from casa_hub.credentials.fetching import Fetch
from casa_hub.errors import ConfigurationError, Problem, Severity, without_text
from casa_hub.issuer.settings import FacilityIssuer
from casa_hub.metrics import FETCH_OUTCOMES, FETCH_USERS, FETCHES, MINTS, OUTCOMES
from casa_hub.policy.table import Rule
from casa_hub.unknown_keys import did_you_mean, without_value

#: Entry-point group of the minters. The package of a site's own credential names its `Minter` in this group.
GROUP = "casa_hub.credentials"

_CORRECT = "Correct its package."
#: A rule's section of this name changes what all credentials are that the issuer signs.
_ISSUER = FacilityIssuer.__name__


@dataclass(frozen=True, slots=True)
class Loaded:
    """The minters of one hub."""

    #: Name of what it mints -> minter, in the order of the settings. Those by a rule follow: ``xcache:atlas``.
    minters: dict[str, Minter] = field(default_factory=dict)
    #: Name in a list of credentials -> names of what it stands for; without those that can't be loaded.
    parts: dict[str, tuple[str, ...]] = field(default_factory=dict)
    #: The same, by the settings of a rule: (name, rule) -> names of what is minted.
    by_rule: dict[tuple[str, str], tuple[str, ...]] = field(default_factory=dict)
    #: Name of what is minted -> (its name without the rule, the rule), of those by a rule.
    rule_of: dict[str, tuple[str, str]] = field(default_factory=dict)
    #: Name of what is minted -> what has to be fetched first (`Minter.fetch`), of those of which something has to be.
    fetches: dict[str, Fetch] = field(default_factory=dict)
    #: The issuers by the settings of a rule.
    issuers: list[FacilityIssuer] = field(default_factory=list)
    #: Why some can't be loaded.
    problems: list[Problem] = field(default_factory=list)


class _Settings(LoggingConfigurable):
    """Stands between the facility and the minters of a rule, with a configuration of its own."""

    def _load_config(self, *args: Any, **kwargs: Any) -> None:
        """It has no traits."""

    def _find_my_config(self, cfg: Config) -> Config:
        """The facility's, whose section may have sections of minters."""
        parent: Any = self.parent
        found: Config = parent._find_my_config(cfg)  # noqa: SLF001 - as traitlets does
        return found


def load(
    names: Iterable[str],
    parent: LoggingConfigurable,
    issuer: FacilityIssuer | None,
    rules: Sequence[Rule] = (),
) -> Loaded:
    """Make the minters with these names, and those by the rules' sections; `parent`: with the configuration.

    Each is there in the metrics from now on.
    """
    loaded, available = Loaded(), _available()
    wanted = _wanted(names, parent.config, rules, available)
    for name in wanted:
        found = _make(name, available, parent, issuer, loaded=loaded)
        if found is not None:
            loaded.parts[name] = tuple(found)
    for rule in rules:
        if rule.sections:
            _load_rule(rule, parent, issuer, available, loaded)
    return loaded


def _wanted(
    names: Iterable[str], config: Config, rules: Sequence[Rule], available: Mapping[str, Sequence[EntryPoint]]
) -> list[str]:
    """Names of the credentials that somebody gets by the hub's own settings."""
    found = dict.fromkeys(names)
    of_rules = {section for rule in rules for section in rule.sections}
    for entry in (entry for rule in rules for entry in rule.credentials or ()):
        name = entry.partition(":")[0]
        cls = _loadable(name, available)
        # Where only rules have settings of it, nobody else gets one.
        configured = cls is not None and (cls.__name__ in config or cls.__name__ in config.get("Facility", {}))
        if cls is not None and (configured or cls.__name__ not in of_rules):
            found[name] = None
    return list(found)


def _load_rule(
    rule: Rule,
    parent: LoggingConfigurable,
    issuer: FacilityIssuer | None,
    available: Mapping[str, Sequence[EntryPoint]],
    loaded: Loaded,
) -> None:
    """Make the minters by the settings of a rule."""
    names = _sections(rule, issuer, available, loaded)
    # With the rule's settings as if they were the hub's.
    config = Config(parent.config)
    for section, settings in rule.sections.items():
        config[section] = Config({**config.get(section, {}), **settings})
        if "Facility" in config and section in config.Facility:
            # A section within a section, which wins over the other one.
            inner = Config({**config.Facility[section], **settings})
            config.Facility = Config({**config.Facility, section: inner})
    holder = _Settings(parent=parent, config=config)
    if _ISSUER in rule.sections and issuer is not None:
        try:
            own = FacilityIssuer(parent=holder)
        except TraitError as error:
            loaded.problems.append(_wrong_value(_ISSUER, error))
            return
        own.directory = issuer.directory  # the same keys; the hub's database knows since when
        issuer = own
        loaded.issuers.append(own)
        names += [name for name, parts in loaded.parts.items() if any(loaded.minters[each].issued for each in parts)]
    for name in dict.fromkeys(names):
        found = _make(name, available, holder, issuer, loaded=loaded, rule=rule)
        if found is not None:
            loaded.by_rule[name, rule.name] = tuple(found)


def _sections(
    rule: Rule,
    issuer: FacilityIssuer | None,
    available: Mapping[str, Sequence[EntryPoint]],
    loaded: Loaded,
) -> list[str]:
    """Names of the credentials whose sections a rule has. `loaded` gets the problems of all its sections."""
    names = []
    classes = {cls.__name__: cls for name in available if (cls := _loadable(name, available)) is not None}

    def wrong(key: str, problem: str, remedy: str) -> None:
        loaded.problems.append(Problem(Severity.ERROR, f"Policy.rules, {rule.name}.{key}", problem, remedy))

    for section, settings in rule.sections.items():
        if section == _ISSUER:
            if issuer is None:
                wrong(section, "this hub has no issuer of tokens", "Set FacilityIssuer.keys for the hub.")
            continue
        cls = classes.get(section)
        if cls is None:
            wrong(section, "there is no such credential", did_you_mean(section, [*classes, _ISSUER]))
            continue
        if cls.routes is not Minter.routes:
            problem = "can't be for some people alone: its addresses are those of the whole hub"
            wrong(section, problem, f"Set {section} for the hub.")
            continue
        known = cls.class_trait_names(config=True)
        for key in settings:
            if key not in known:
                wrong(f"{section}.{key}", "there is no such setting", did_you_mean(key, known))
        names.append(cls.name)
    return names


def _make(
    name: str,
    available: Mapping[str, Sequence[EntryPoint]],
    parent: LoggingConfigurable,
    issuer: FacilityIssuer | None,
    *,
    loaded: Loaded,
    rule: Rule | None = None,
) -> Mapping[str, Minter] | None:
    """The minters of one section, which `loaded` has then; None if they can't be made."""
    try:
        found = _parts(_class(name, available), parent, loaded.minters, rule)
        for minter in found.values():
            minter.issuer = issuer
        fetches = _fetches(found)
    except ConfigurationError as error:
        loaded.problems.append(Problem.of(error))
    except TraitError as error:
        loaded.problems.append(_wrong_value(name, error))
    except Exception as error:  # noqa: BLE001 - a third party's
        loaded.problems.append(broken(name, "load", error))
    else:
        _show(found, fetches)
        loaded.minters.update(found)
        loaded.fetches.update(fetches)
        if rule is not None:
            loaded.rule_of.update({each: (each.removesuffix(f":{rule.name}"), rule.name) for each in found})
        return found
    return None


def _loadable(name: str, available: Mapping[str, Sequence[EntryPoint]]) -> type[Minter] | None:
    try:
        return _class(name, available)
    except Exception:  # noqa: BLE001 - a third party's that isn't enabled
        return None


def _class(name: str, available: Mapping[str, Sequence[EntryPoint]]) -> type[Minter]:
    """Raises ConfigurationError."""
    found = available.get(name, ())
    if not found:
        raise _wrong(f"there is no credential {name!r}", did_you_mean(name, available))
    if len({point.value for point in found}) > 1:
        raise _wrong(f"several packages have a credential {name!r}", "Uninstall all but one of them.")
    cls = found[0].load()
    if isinstance(cls, type) and issubclass(cls, Minter) and cls.name == name:
        return cls
    raise _wrong(f"{found[0].value} is no Minter with the name {name!r}", _CORRECT)


def _parts(
    cls: type[Minter], parent: LoggingConfigurable, others: Collection[str], rule: Rule | None
) -> dict[str, Minter]:
    """Raises ConfigurationError or TraitError."""
    found: dict[str, Minter] = {}
    for part in cls.parts(parent):
        minter = part(parent=parent)
        if rule is not None:
            # Not as another class: traitlets reads the section of each class, by its name.
            minter.name, minter.title = f"{part.name}:{rule.name}", f"{part.title} of {rule.name}"  # type: ignore[misc]
        if minter.name in found or minter.name in others:
            raise _wrong(f"several credentials are called {minter.name!r}", "Remove all but one of them.")
        found[minter.name] = minter
    return found


def _fetches(minters: Mapping[str, Minter]) -> dict[str, Fetch]:
    """Asked once, for all servers. Raises ConfigurationError."""
    found: dict[str, Fetch] = {}
    for name, minter in minters.items():
        fetch = minter.fetch
        if fetch is None:
            continue
        if not isinstance(fetch, Fetch):
            raise _wrong(f"what {name!r} wants to be fetched is no Fetch", _CORRECT)
        if minter.renewal != "time":
            raise _wrong(f"{name!r} is made of what is fetched, but isn't renewed by time", _CORRECT)
        found[name] = fetch
    return found


def _wrong_value(name: str, error: TraitError) -> Problem:
    """A wrong value of a setting: our own texts begin with the setting, ``TokenExchange.services: ...``."""
    setting, colon, problem = str(without_value(error)).rstrip(".").partition(": ")
    if colon and re.fullmatch(r"[A-Z]\w*\.\w+", setting):
        return Problem(Severity.ERROR, setting, problem, "Correct it.")
    problem = f"a setting of {name!r} has a wrong value: {without_value(error)}"
    return Problem(Severity.ERROR, "Facility.credentials", problem, "Correct it.")


def _wrong(problem: str, remedy: str) -> ConfigurationError:
    return ConfigurationError("Facility.credentials", problem, remedy)


def _show(names: Iterable[str], fetched: Collection[str]) -> None:
    """Let Prometheus count from 0."""
    for name in names:
        for outcome in OUTCOMES:
            MINTS.labels(name, outcome)
        for outcome in FETCH_OUTCOMES if name in fetched else ():
            FETCHES.labels(name, outcome)
            FETCH_USERS.labels(name, outcome)


def broken(name: str, what: str, error: Exception) -> Problem:
    """A third party's fault."""
    problem = f"{what} failed with {without_text(error)}"
    return Problem(Severity.ERROR, name, problem, "This is a fault of the credential's package.")


def installed() -> list[str]:
    """Names of all installed credentials, enabled or not."""
    return sorted(_available())


def _available() -> dict[str, list[EntryPoint]]:
    available: dict[str, list[EntryPoint]] = {}
    for point in entry_points(group=GROUP):
        available.setdefault(point.name, []).append(point)
    return available
