"""The start of the hub: checks the whole configuration, and cleans up after a hub that crashed.

`on_hub_start` runs once in each hub process. The first of these calls it:

1. `CasaOAuthenticator`, when JupyterHub makes it.
2. With another authenticator, the observer that `begin_with_hub` registers: `casa_hub.hooks.install` and the file of
   ``jupyterhub_config.d`` call that.
3. The first spawner object, of a running server or of a start.

In 1 and 2 the database is open, and the hub has not yet looked at servers or served requests. In 3 it may have.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from copy import deepcopy
from importlib.metadata import entry_points
from typing import Any

from jupyterhub.app import JupyterHub
from traitlets import TraitError
from traitlets.config import Application, Configurable
from traitlets.config.loader import LazyConfigValue

from casa_hub.credentials.base import Minter
from casa_hub.credentials.fetching import TOKEN_ENDPOINT
from casa_hub.errors import CasaError, ConfigurationError, Problem, Severity
from casa_hub.facility import Facility
from casa_hub.hub import ADDED, CasaHub, Home
from casa_hub.identity.providers import PROVIDERS
from casa_hub.issuer.settings import FacilityIssuer
from casa_hub.jupyterhub import COUNTS_REFUSALS, HubApp, RefusedStart
from casa_hub.membership.groups import normalised
from casa_hub.membership.member import Members
from casa_hub.membership.recheck import Recheck
from casa_hub.membership.settings import Keeper
from casa_hub.minters import GROUP
from casa_hub.policy import checks as policy_checks
from casa_hub.policy.settings import Policy
from casa_hub.policy.table import Table
from casa_hub.unknown_keys import unknown_keys, value_of


def begin_with_hub() -> None:
    """Make JupyterHub call `on_hub_start`. For the hub's configuration file; may be called again.

    JupyterHub has no hook for its start. But right before it looks for running servers, it sets its trait
    `tornado_settings` to the settings of its handlers, which we observe. In a program that starts no hub
    (`jupyterhub token`, `casa-hub check`) this changes nothing.
    """
    app = Application.instance() if Application.initialized() else None
    if isinstance(app, JupyterHub):
        app.observe(_begin, "tornado_settings")


def _begin(change: Any) -> None:
    app = change["owner"]
    if change["new"].get("app") is not app:  # the configuration's own settings, which JupyterHub sets earlier
        return
    try:
        on_hub_start(app)
    except ConfigurationError as error:
        # One line for the operator instead of a traceback.
        app.log.critical("%s", error)
        raise SystemExit(1) from None


def on_hub_start(app: HubApp, classes: Iterable[type[Configurable]] = (), recheck: Recheck | None = None) -> None:
    """Check the configuration and make the hub ready for its first server; once a hub, repeated without harm.

    `classes`: more classes of this package whose configuration sections the hub uses.
    `recheck`: the membership checks of the hub's authenticator, if it is ours.
    Raises ConfigurationError if no server could be started soundly: the first of the errors, all of which are logged.
    """
    hub = CasaHub.of(app)
    # `jupyterhub token` makes an application within another one, beside the hub that runs.
    if hub.begun or app.parent is not None:
        return
    try:
        fatal = problems(hub, classes)
        members = Members.configured(config=app.config) if recheck is None else recheck.members
    except TraitError as error:  # a value of a wrong type or form; the settings of these classes hold no secret
        raise ConfigurationError("the configuration", str(error).rstrip("."), "Correct it.") from error
    _report(app.log, fatal)
    for problem in fatal:
        if problem.severity is Severity.ERROR:
            raise ConfigurationError(problem.thing, problem.problem, problem.remedy)
    # Keys may be put right while the hub runs; until then servers start without, or not at all if they are required.
    _report(app.log, hub.facility.check_minters())
    hub.begin(members, recheck)


def begun_hub(app: HubApp) -> CasaHub:
    """The hub after `on_hub_start`, which nobody may have called yet with another authenticator. Raises as that."""
    on_hub_start(app)
    return CasaHub.of(app)


def problems(hub: CasaHub, classes: Iterable[type[Configurable]] = ()) -> list[Problem]:
    """All that is wrong with the configuration of a hub, whether it is about to start or not."""
    config, spawners = hub.app.config, hub.spawner_class
    found = unknown_keys(config, [*sections(hub.app.authenticator_class, spawners), *classes])
    found += hub.facility.check_settings()
    found += _exchanges(hub) + _scopes(hub)
    has_profiles = issubclass(spawners, Configurable) and "profile_list" in spawners.class_trait_names()
    profiles = value_of(config, spawners, "profile_list") if has_profiles else None
    if not hub.facility.policy.problems:  # a rule that can't be read is without its groups, or without words
        table = hub.facility.policy.table
        found += policy_checks.check(table, profiles, hub.facility.credentials) + _groups(hub, table)
    if hub.home is not None:
        found += hub.home.check_hub(hub)
    elif ADDED in config:
        problem = f"casa_hub.hooks.install(c) is for KubeSpawner and its subclasses, not for {spawners.__name__}"
        found.append(Problem(Severity.ERROR, "JupyterHub.spawner_class", problem, "Choose one of them."))
    elif hub.facility.credentials or hub.facility.minters:
        problem = f"servers of {spawners.__name__} would get none of Facility.credentials"
        remedy = "Set it to casa or casa-local, or call casa_hub.hooks.install(c)."
        found.append(Problem(Severity.ERROR, "JupyterHub.spawner_class", problem, remedy))
    return found


def _groups(hub: CasaHub, table: Table) -> list[Problem]:
    """Groups of rules in which nobody can be, by what the authenticator says of groups."""
    cls, config = hub.app.authenticator_class, hub.app.config
    if not issubclass(cls, Configurable) or "manage_groups" not in cls.class_trait_names():
        return []
    if "provider" not in cls.class_trait_names():  # not ours
        has_groups = bool(value_of(config, cls, "manage_groups") or value_of(config, JupyterHub, "load_groups"))
        return policy_checks.check_groups(table, has_groups, None)
    provider = PROVIDERS.get(str(value_of(config, cls, "provider")))
    if provider is None:
        return []
    syntax = provider.syntax_of(str(value_of(config, cls, "groups_claim") or provider.groups_claim))
    return policy_checks.check_groups(table, True, lambda group: normalised(group, syntax))


def _exchanges(hub: CasaHub) -> list[Problem]:
    """Problems of exchanged tokens that depend on the identity provider, which no credential knows."""
    cls = hub.app.authenticator_class
    if not issubclass(cls, Configurable) or "provider" not in cls.class_trait_names():
        return []
    provider = PROVIDERS.get(str(value_of(hub.app.config, cls, "provider")))
    if provider is None or not provider.exchange_needs_scope:
        return []
    remedy = "Set scope to what the service asks for. The client must be registered for it at the provider."
    return [
        Problem(
            Severity.ERROR,
            f"the scope of {name}",
            f"is not set, and {provider.title} gives a token only for a scope",
            remedy,
        )
        for name, fetch in hub.facility.fetches.items()
        if fetch.url == TOKEN_ENDPOINT and not fetch.form.get("scope")
    ]


def _scopes(hub: CasaHub) -> list[Problem]:
    """Scopes that a credential needs in the person's token, and that nobody asks for at the log-in."""
    cls = hub.app.authenticator_class
    if not issubclass(cls, Configurable) or "scope" not in cls.class_trait_names():
        return []
    asked = value_of(hub.app.config, cls, "scope")
    if isinstance(asked, LazyConfigValue):  # scope.append(...); a copy, because it keeps what it was asked first
        asked = deepcopy(asked).get_value([])
    return [
        Problem(
            Severity.WARNING,
            f"{cls.__name__}.scope",
            f"is without {fetch.scope}, so nobody gets the credential {hub.facility.minters[name].title}",
            "Add it to those of the provider's preset, and let the client be registered for it.",
        )
        for name, fetch in hub.facility.fetches.items()
        if fetch.scope and fetch.scope not in asked
    ]


def not_the_hubs_fault(error: BaseException, app: HubApp) -> None:
    """Don't count a failure towards `Spawner.consecutive_failure_limit` if a restart of the hub could not fix it.

    A hub exits after that many failures in a row. But five tries of one person whose name can't have a credential must
    not end the hub for all others. JupyterHub counts the failure after the spawner has raised it, so the count is
    decremented here.
    """
    refused = isinstance(error, RefusedStart) and COUNTS_REFUSALS
    if refused or (isinstance(error, CasaError) and not getattr(error, "transient", False)):
        # Not `app.tornado_settings`, what `user.settings` is: JupyterHub's handlers count in their own copy of it.
        settings = app.tornado_application.settings
        settings["failure_count"] = settings.get("failure_count", 0) - 1


def sections(*used: type) -> list[type[Configurable]]:
    """Classes with a configuration section of ours: every hub's, those of the `used` classes, and all minters."""
    classes: list[type[Configurable]] = [Facility, FacilityIssuer, Keeper, Policy]
    for cls in used:
        ours = [base for base in cls.__mro__ if base.__module__.startswith("casa_hub.")]
        classes += [base for base in ours if issubclass(base, Configurable)]
        classes += cls.casa_classes if issubclass(cls, Home) else ()
    for point in entry_points(group=GROUP):
        try:
            minter = point.load()
        except Exception:  # noqa: BLE001, S112 - a third party's that isn't enabled; the facility tells of others
            continue
        if isinstance(minter, type) and issubclass(minter, Minter):
            classes.append(minter)
    return list(dict.fromkeys(classes))


def _report(log: logging.Logger, problems: Iterable[Problem]) -> None:
    for problem in problems:
        log.log(logging.ERROR if problem.severity is Severity.ERROR else logging.WARNING, "%s", problem)
