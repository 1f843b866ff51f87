"""One hub: the object that has all its parts, and what this package's spawner classes do for it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import cached_property
from typing import Any, ClassVar, TypeVar

from traitlets.config import Configurable

from casa_hub.delivery.gc import Removal
from casa_hub.errors import Problem
from casa_hub.facility import Facility
from casa_hub.jupyterhub import HubApp, HubSpawner, HubUser
from casa_hub.keeper.mending import Mending
from casa_hub.keeper.renewals import Renewals
from casa_hub.membership.mass_loss import MassLoss
from casa_hub.membership.member import Members
from casa_hub.membership.recheck import Recheck
from casa_hub.membership.revocation import Revocations
from casa_hub.membership.rounds import Rounds

#: Section of the configuration where `casa_hub.hooks.install` leaves the function that adds credentials to a spawner
#: class. No operator writes it.
ADDED = "CasaHooks"

#: Our key in JupyterHub's `tornado_settings`, which live as long as the hub, unlike a global.
_KEY = "casa_hub"

D = TypeVar("D")


class CasaHub:
    """All of one hub: its facility, its home, and the background tasks.

    Facility and home can be had where no hub starts, too (`casa-hub check`). The rest is there from `begin` on, which
    `casa_hub.startup.on_hub_start` calls.
    """

    def __init__(self, app: HubApp) -> None:
        self.app = app
        #: Whether the hub is ready for its servers, and its background tasks run.
        self.begun = False

    @classmethod
    def of(cls, app: HubApp) -> CasaHub:
        """The one hub of JupyterHub's application, made when it is first asked for."""
        if _KEY not in app.tornado_settings:
            app.tornado_settings[_KEY] = cls(app)
        hub: CasaHub = app.tornado_settings[_KEY]
        return hub

    @cached_property
    def facility(self) -> Facility:
        return Facility(self.app, config=self.app.config)

    @cached_property
    def spawner_class(self) -> type:
        """The class of the hub's servers: the one that is set, with credentials if `casa_hub.hooks.install` says so."""
        cls: type = self.app.spawner_class
        return self.app.config[ADDED].to_spawner_class(cls) if ADDED in self.app.config else cls

    @property
    def home(self) -> type[Home] | None:
        """The class of the hub's servers, if it is one of ours."""
        return self.spawner_class if issubclass(self.spawner_class, Home) else None

    @cached_property
    def _delivery(self) -> object:
        return None if self.home is None else self.home.make_delivery(self)

    def delivery(self, kind: type[D]) -> D:
        """What brings credentials to the hub's servers. `kind`: its class, which whoever asks knows by the home."""
        assert isinstance(self._delivery, kind)  # noqa: S101
        return self._delivery

    def begin(self, members: Members, recheck: Recheck | None) -> None:
        """Make the hub ready for its first server, and start the background tasks; JupyterHub cancels them at its end.

        `recheck`: None with an authenticator that isn't ours, which knows of no memberships.

        Raises:
            ConfigurationError: the home can't be used.
        """
        # Users, which may be there already, make their spawners by these settings.
        self.app.spawner_class = self.app.tornado_settings["spawner_class"] = self.spawner_class
        if self.home is not None:
            self.home.begin_hub(self)
        self.renewals = Renewals(self.app, self.facility)
        self.revocations = Revocations(self.app, members, None if recheck is None else recheck.log_ins)
        self.mending = Mending(self.app, self.revocations.may_end, self.renewals)
        self.mass_loss = MassLoss(self.app, members, recheck, self.revocations, self.renewals)
        self.rounds = Rounds(self.app, members, recheck, self.revocations, self.mass_loss)
        if recheck is not None:
            recheck.on_verdict, recheck.on_tokens = self.mass_loss.heard, self.renewals.hand_out_token
        self.renewals.begin()
        if self.facility.minters:
            self.mending.begin()
        self.rounds.begin()
        self.begun = True

    def started(self, spawner: HubSpawner, missing: Mapping[str, str] | None = None) -> None:
        """A server has just started; `missing`: what it could not have beside credentials -> why."""
        self.renewals.started(spawner)
        self.mending.started(spawner, missing or {})


class Home:
    """What a spawner class of this package does for its hub. Base of `CredentialsMixin` (a cluster) and of
    `CasaLocalSpawner` (this machine); servers of any other class get no credentials.

    Each of its spawners has its server as `casa_kept` (`casa_hub.keeper.kept.Kept`).
    """

    #: Whose configuration sections the spawner uses.
    casa_classes: ClassVar[tuple[type[Configurable], ...]]

    user: HubUser

    @classmethod
    def make_delivery(cls, hub: CasaHub) -> object:
        """Make what brings credentials to the hub's servers; called once (`CasaHub.delivery`)."""
        raise NotImplementedError

    @classmethod
    def check_hub(cls, hub: CasaHub) -> list[Problem]:
        """What is wrong with the hub's configuration for this spawner."""
        raise NotImplementedError

    @classmethod
    def begin_hub(cls, hub: CasaHub) -> None:
        """Take over or clean up what an earlier hub left. Raises ConfigurationError."""
        raise NotImplementedError

    @classmethod
    async def collect_garbage(cls, hub: CasaHub, *, dry_run: bool) -> list[Removal]:
        """Remove what has no living server, or only tell of it. Raises DeliveryError."""
        raise NotImplementedError

    async def renew_credentials(self, names: Collection[str]) -> None:
        """Mint some credentials of the running server anew and replace their files; nothing if it doesn't run.

        For who has got something newer for them, as an authenticator with a refreshed access token (`bearer`).
        """
        spawner: Any = self
        await CasaHub.of(self.user.settings["app"]).renewals.bring(spawner, names)
