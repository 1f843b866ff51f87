"""The configured hub that all checks look at, and its parts."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from jupyterhub.crypto import CryptKeeper
from traitlets import TraitError

from casa_hub.authenticator import CasaOAuthenticator
from casa_hub.checks.findings import Finding, from_problem
from casa_hub.credentials.dask import Dask
from casa_hub.delivery.kubernetes.delivery import KubernetesDelivery
from casa_hub.delivery.traefik import TraefikRoutes
from casa_hub.errors import ConfigurationError, Problem, Severity
from casa_hub.facility import Facility
from casa_hub.hub import CasaHub
from casa_hub.hub_config import trait_problem
from casa_hub.identity.settings import advice
from casa_hub.startup import problems


@dataclass
class Site:
    """A configured hub, which isn't started. Parts that can't be built are None, and `findings` says why."""

    app: Any
    authenticator: CasaOAuthenticator | None = None
    facility: Facility | None = None
    #: None also if servers run on one machine.
    kubernetes: KubernetesDelivery | None = None
    routes: TraefikRoutes | None = None
    #: Names of the credentials whose settings and keys have no errors.
    sound: set[str] = field(default_factory=set)
    #: Whose credentials are looked at: those by this rule, or those of the hub.
    rule: str = ""
    #: About the configuration itself.
    findings: list[Finding] = field(default_factory=list)

    @classmethod
    def from_app(cls, app: Any) -> Site:
        """The site of JupyterHub's application with a loaded configuration."""
        site = cls(app)
        site._make_authenticator()
        try:
            site._make_facility()
        except TraitError as error:
            site.findings.append(from_problem(trait_problem(error)))
        return site

    def minter(self, name: str) -> Any:
        """The minter of this name, for people with `rule`; None if there is none or it has errors."""
        name = f"{name}:{self.rule}" if self.rule else name
        return self.facility.minters[name] if self.facility is not None and name in self.sound else None

    def by_rules(self) -> list[Site]:
        """The same site once for each rule with credentials of its own."""
        return [] if self.facility is None else [replace(self, rule=rule) for rule in self.facility.rules]

    @property
    def dask(self) -> Dask | None:
        """The minter of Dask's certificates, whose settings have the host names; None without it."""
        minter = self.facility.minters.get("dask") if self.facility is not None else None
        return minter if isinstance(minter, Dask) else None

    def _make_authenticator(self) -> None:
        """Build the authenticator as the hub does, and note problems that would keep the hub from starting."""
        cls = self.app.authenticator_class
        if not issubclass(cls, CasaOAuthenticator):
            return
        try:
            self._check_crypt_keys()
            self.authenticator = cls(config=self.app.config)  # no parent: with one it would start the hub's parts
            self.findings += [from_problem(problem) for problem in advice(self.authenticator, self.app.base_url)]
        except ConfigurationError as error:
            self.findings.append(from_problem(Problem.of(error)))
        except TraitError as error:
            self.findings.append(from_problem(trait_problem(error)))

    def _check_crypt_keys(self) -> None:
        try:
            CryptKeeper.instance(config=self.app.config)
        except TraitError:
            raise
        except Exception as error:
            problem = f"has a malformed key ({type(error).__name__})"
            remedy = "A key is 32 bytes in hexadecimal: openssl rand -hex 32."
            raise ConfigurationError("CryptKeeper.keys", problem, remedy) from error

    def _make_facility(self) -> None:
        hub = CasaHub.of(self.app)
        facility = hub.facility
        self.findings += [from_problem(problem) for problem in problems(hub)]
        self.facility = facility
        if facility.issuer is not None:
            self.findings += map(from_problem, facility.issuer.check_keys())
        for name, minter in facility.minters.items():
            found = facility.check_minter(name, minter)
            self.findings += [from_problem(problem) for problem in found]
            if not any(problem.severity is Severity.ERROR for problem in found):
                self.sound.add(name)
        classes = () if hub.home is None else hub.home.casa_classes
        if KubernetesDelivery in classes:
            self.kubernetes = hub.delivery(KubernetesDelivery)
            self.routes = self.kubernetes.routes
        elif TraefikRoutes in classes:
            self.routes = TraefikRoutes(config=self.app.config)
