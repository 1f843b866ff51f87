"""One hub: the object that holds all its parts, and the base class of this package's spawners."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from functools import cached_property
from typing import Any, ClassVar, TypeVar

from sqlalchemy.exc import SQLAlchemyError
from traitlets.config import Configurable

from casa_hub.delivery.removals import Removal
from casa_hub.errors import ConfigurationError, Problem
from casa_hub.facility import Facility
from casa_hub.issuer import published
from casa_hub.issuer.settings import FacilityIssuer
from casa_hub.jupyterhub import HubApp, HubSpawner, HubUser
from casa_hub.membership.mass_loss import MassLoss
from casa_hub.membership.member import Members
from casa_hub.membership.recheck import Recheck
from casa_hub.membership.revocation import Revocations
from casa_hub.membership.rounds import Rounds
from casa_hub.servers.mending import Mending
from casa_hub.servers.renewals import Renewals

#: Section of the configuration with the function that adds credentials to a spawner class. `casa_hub.hooks.install`
#: sets it, not the operator.
ADDED = "CasaHooks"

#: Our key in JupyterHub's `tornado_settings`, which live as long as the hub, unlike a global.
_KEY = "casa_hub"

D = TypeVar("D")


class CasaHub:
    """All parts of one hub: its facility, its spawner class, and the background tasks.

    Facility and spawner class also work without a running hub (`casa-hub check`). The background tasks exist after
    `begin`, which `casa_hub.startup.on_hub_start` calls.
    """

    def __init__(self, app: HubApp) -> None:
        self.app = app
        #: Whether the hub is ready for its servers, and its background tasks run.
        self.begun = False

    @classmethod
    def of(cls, app: HubApp) -> CasaHub:
        """The hub of JupyterHub's application, made by the first call."""
        if _KEY not in app.tornado_settings:
            app.tornado_settings[_KEY] = cls(app)
        hub: CasaHub = app.tornado_settings[_KEY]
        return hub

    @cached_property
    def facility(self) -> Facility:
        return Facility(self.app, config=self.app.config)

    @cached_property
    def spawner_class(self) -> type:
        """The class of the hub's spawners: the configured one, with credentials added if `casa_hub.hooks` does so."""
        cls: type = self.app.spawner_class
        return self.app.config[ADDED].to_spawner_class(cls) if ADDED in self.app.config else cls

    @property
    def home(self) -> type[Home] | None:
        """The class of the hub's spawners, if it is one of ours."""
        return self.spawner_class if issubclass(self.spawner_class, Home) else None

    @cached_property
    def _delivery(self) -> object:
        return None if self.home is None else self.home.make_delivery(self)

    def delivery(self, kind: type[D]) -> D:
        """The delivery of the hub's spawner class. `kind` is its type, which the caller knows by the spawner class.

        Raises:
            ConfigurationError: the hub's spawner class has no such delivery.
        """
        if not isinstance(self._delivery, kind):  # a spawner of ours in another project's wrapper
            problem = f"{self.spawner_class.__name__} is not a spawner of casa_hub, but makes one"
            raise ConfigurationError("JupyterHub.spawner_class", problem, "Set the spawner of casa_hub itself.")
        return self._delivery

    def begin(self, members: Members, recheck: Recheck | None) -> None:
        """Make the hub ready for its first server, and start the background tasks. JupyterHub cancels them at its end.

        `recheck`: None with another authenticator, which has no membership checks.
        Raises ConfigurationError if what the spawner class needs can't be used.
        """
        # Users, some of which may exist already, make their spawners by these settings.
        self.app.spawner_class = self.app.tornado_settings["spawner_class"] = self.spawner_class
        for issuer in self.facility.issuers:
            self._publish(issuer)
        if self.home is not None:
            self.home.begin_hub(self)
        self.renewals = Renewals(self.app, self.facility)
        self.revocations = Revocations(
            self.app, members, None if recheck is None else recheck.log_ins, self.facility.outside
        )
        self.mending = Mending(self.app, self.revocations.may_end, self.renewals)
        self.mass_loss = MassLoss(self.app, members, recheck, self.revocations, self.renewals)
        self.rounds = Rounds(self.app, members, recheck, self.revocations, self.mass_loss)
        if recheck is not None:
            recheck.on_verdict, recheck.on_tokens = self.mass_loss.heard, self.renewals.hand_out_token
            recheck.on_log_in = self.renewals.logged_in
        self.renewals.begin()
        if self.facility.minters:
            self.mending.begin()
        self.rounds.begin()
        self.begun = True

    def _publish(self, issuer: FacilityIssuer) -> None:
        """Remember in the database since when keys are published, and add the pages with them to JupyterHub's."""
        try:
            issuer.directory.published.open(self.app.db)
            issuer.directory.remember(time.time())
        except SQLAlchemyError as error:
            problem = f"the table of the issuer's keys can't be opened ({type(error).__name__})"
            raise ConfigurationError("the hub's database", problem, "See that the hub may create tables.") from None
        if self.app.handlers:  # `casa_hub.startup` tells when this happens
            problem = "the pages with its keys can't be added to a hub that runs already"
            remedy = "Call casa_hub.startup.begin_with_hub() in the hub's configuration file."
            raise ConfigurationError("FacilityIssuer", problem, remedy)
        self.app.extra_handlers.extend(published.handlers(issuer))

    def started(self, spawner: HubSpawner, missing: Mapping[str, str] | None = None) -> None:
        """Note a server that has just started. `missing`: objects that could not be created -> why."""
        self.renewals.started(spawner)
        self.mending.started(spawner, missing or {})


class Home:
    """Base of this package's spawner classes: `CredentialsMixin` (a cluster) and `CasaLocalSpawner` (this machine).

    Each spawner has its server as `casa_server` (`casa_hub.servers.running.RunningServer`). Servers of other classes
    get no credentials.
    """

    #: Classes whose configuration sections the spawner uses.
    casa_classes: ClassVar[tuple[type[Configurable], ...]]

    user: HubUser

    @classmethod
    def make_delivery(cls, hub: CasaHub) -> object:
        """Make the delivery of the hub's servers. Called once (`CasaHub.delivery`)."""
        raise NotImplementedError

    @classmethod
    def check_hub(cls, hub: CasaHub) -> list[Problem]:
        """Problems of the hub's configuration for this spawner."""
        raise NotImplementedError

    @classmethod
    def begin_hub(cls, hub: CasaHub) -> None:
        """Take over running servers of the previous hub process, and remove what it left. Raises ConfigurationError."""
        raise NotImplementedError

    @classmethod
    async def collect_garbage(cls, hub: CasaHub, *, dry_run: bool) -> list[Removal]:
        """Remove everything without a living server. With `dry_run`, only list it. Raises DeliveryError."""
        raise NotImplementedError

    async def renew_credentials(self, names: Collection[str]) -> None:
        """Mint some credentials of the running server anew and replace their files. Does nothing if it doesn't run.

        For callers with newer input, such as an authenticator with a refreshed access token (`bearer`).
        """
        spawner: Any = self
        await CasaHub.of(self.user.settings["app"]).renewals.bring(spawner, names)
