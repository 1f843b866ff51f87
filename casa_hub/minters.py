"""The installed minters, and those of one hub by the names in `Facility.credentials`."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points

from traitlets import TraitError
from traitlets.config import LoggingConfigurable

from casa_hub.credentials.base import Minter
from casa_hub.credentials.fetching import Fetch
from casa_hub.errors import ConfigurationError, Problem, Severity, without_text
from casa_hub.issuer.settings import FacilityIssuer
from casa_hub.metrics import FETCH_OUTCOMES, FETCH_USERS, FETCHES, MINTS, OUTCOMES
from casa_hub.unknown_keys import did_you_mean, without_value

#: Entry-point group of the minters. The package of a site's own credential names its `Minter` in this group.
GROUP = "casa_hub.credentials"

_CORRECT = "Correct its package."


@dataclass(frozen=True, slots=True)
class Loaded:
    """The minters of one hub."""

    #: Name of what it mints -> minter, in the order of the settings.
    minters: dict[str, Minter] = field(default_factory=dict)
    #: Name in `Facility.credentials` -> names of what it stands for; without those that can't be loaded.
    parts: dict[str, tuple[str, ...]] = field(default_factory=dict)
    #: Name of what is minted -> what has to be fetched first (`Minter.fetch`), of those of which something has to be.
    fetches: dict[str, Fetch] = field(default_factory=dict)
    #: Why some can't be loaded.
    problems: list[Problem] = field(default_factory=list)


def load(names: Iterable[str], parent: LoggingConfigurable, issuer: FacilityIssuer | None) -> Loaded:
    """Make the minters with these names; `parent`: with the configuration. Each is there in the metrics from now on."""
    loaded, available = Loaded(), _available()
    for name in dict.fromkeys(names):
        try:
            found = _parts(_class(name, available), parent, loaded.minters)
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
            loaded.parts[name] = tuple(found)
    return loaded


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


def _parts(cls: type[Minter], parent: LoggingConfigurable, others: Collection[str]) -> dict[str, Minter]:
    """Raises ConfigurationError or TraitError."""
    found: dict[str, Minter] = {}
    for part in cls.parts(parent):
        if part.name in found or part.name in others:
            raise _wrong(f"several credentials are called {part.name!r}", "Remove all but one of them.")
        found[part.name] = part(parent=parent)
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
