"""What happens once, when the hub starts: look at the whole configuration, and clean up after a hub that crashed.

Whoever of us the hub meets first calls `on_hub_start`: `CasaOAuthenticator` when JupyterHub makes it; with another
authenticator, what the hub's configuration calls (`begin_with_hub`: `casa_hub.hooks.install`, and the file of
``jupyterhub_config.d``). The database is there then, no server has been looked at and nobody is served. Without any of
these, the first spawner: of a server that runs already, or that somebody starts.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from importlib.metadata import entry_points
from typing import Any

from jupyterhub.app import JupyterHub
from traitlets import TraitError
from traitlets.config import Application, Configurable

from casa_hub.configuration import unknown_keys
from casa_hub.credentials.base import Minter
from casa_hub.errors import CasaError, ConfigurationError, Problem, Severity
from casa_hub.facility import GROUP, Facility
from casa_hub.hub import ADDED, CasaHub, Home
from casa_hub.jupyterhub import HubApp
from casa_hub.membership.member import Members
from casa_hub.membership.recheck import Recheck
from casa_hub.membership.settings import Keeper


def begin_with_hub() -> None:
    """For the hub's configuration, as it is being read: have `on_hub_start` called when all but its servers is there.

    JupyterHub has no hook for its start, but one of its traits, `tornado_settings`, is set to what its handlers use
    right before it looks for running servers, whatever comes later in the configuration. Called again, or where no hub
    is about to start (`jupyterhub token`, `casa-hub check`), this changes nothing.
    """
    app = Application.instance() if Application.initialized() else None
    if isinstance(app, JupyterHub):
        app.observe(_begin, "tornado_settings")


def _begin(change: Any) -> None:
    app = change["owner"]
    if change["new"].get("app") is not app:  # those of the configuration
        return
    try:
        on_hub_start(app)
    except ConfigurationError as error:
        # The hub's operator reads one line, and not thirty of a traceback above it.
        app.log.critical("%s", error)
        raise SystemExit(1) from None


def on_hub_start(app: HubApp, classes: Iterable[type[Configurable]] = (), recheck: Recheck | None = None) -> None:
    """Check the configuration and make the hub ready for its first server; once a hub, repeated without harm.

    Args:
        app: JupyterHub's application.
        classes: more classes of this package whose configuration sections the hub uses.
        recheck: the membership checks of the hub's authenticator, if it is ours.

    Raises:
        ConfigurationError: no server could be started soundly; the first of the errors, all of them are logged.
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


def problems(hub: CasaHub, classes: Iterable[type[Configurable]] = ()) -> list[Problem]:
    """All that is wrong with the configuration of a hub, whether it is about to start or not."""
    config, spawners = hub.app.config, hub.spawner_class
    found = unknown_keys(config, [*sections(hub.app.authenticator_class, spawners), *classes])
    found += hub.facility.check_settings()
    if hub.home is not None:
        found += hub.home.check_hub(hub)
    elif ADDED in config:
        problem = f"casa_hub.hooks.install(c) is for KubeSpawner and its subclasses, not for {spawners.__name__}"
        found.append(Problem(Severity.ERROR, "JupyterHub.spawner_class", problem, "Choose one of them."))
    elif hub.facility.credentials:
        problem = f"servers of {spawners.__name__} would get none of Facility.credentials"
        remedy = "Set it to casa or casa-local, or call casa_hub.hooks.install(c)."
        found.append(Problem(Severity.ERROR, "JupyterHub.spawner_class", problem, remedy))
    return found


def not_the_hubs_fault(error: BaseException, app: HubApp) -> None:
    """Keep a failed spawn out of JupyterHub's count, if another hub could do no better.

    A hub that counts `Spawner.consecutive_failure_limit` failures in a row exits, to begin afresh: five tries of a
    person whose name can't have a credential must not do that to everybody else. It counts a failure after the
    spawner raised it, so one less here leaves the count as it was.

    Args:
        error: why a spawn fails.
        app: JupyterHub's application.
    """
    if isinstance(error, CasaError) and not getattr(error, "transient", False):
        # Not `app.tornado_settings`, what `user.settings` is: JupyterHub's handlers count in their own copy of it.
        settings = app.tornado_application.settings
        settings["failure_count"] = settings.get("failure_count", 0) - 1


def sections(*used: type) -> list[type[Configurable]]:
    """Classes of this package with a configuration section: every hub's, what `used` ones are or bring, and minters."""
    classes: list[type[Configurable]] = [Facility, Keeper]
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
