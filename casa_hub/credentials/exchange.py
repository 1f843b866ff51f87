"""Tokens of the identity provider for one service each, got for the user's own by token exchange (RFC 8693)."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import partial
from pathlib import PurePosixPath
from typing import Any, ClassVar

from traitlets import Dict, TraitError, validate
from traitlets.config import LoggingConfigurable

from casa_hub.credentials.base import BearerKind, Credential, Minter, Request
from casa_hub.credentials.exchange_answers import audiences, read
from casa_hub.credentials.exchange_services import PLACEHOLDER, Form, Service, read_services, wrong_values
from casa_hub.credentials.fetching import Fetch, Fetched
from casa_hub.credentials.tokens import identifying, unverified_claims
from casa_hub.errors import CredentialError, Problem, Severity
from casa_hub.moments import when
from casa_hub.naming import Server

GRANT = "urn:ietf:params:oauth:grant-type:token-exchange"
_ACCESS_TOKEN = "urn:ietf:params:oauth:token-type:access_token"  # noqa: S105 - no secret


def asking(service: Service) -> Fetch:
    """The request for a service's token."""
    form = {"grant_type": GRANT, "subject_token_type": _ACCESS_TOKEN}
    form |= {"audience": service.audience} if service.audience else {}
    form |= {"scope": service.scope} if service.scope else {}
    return Fetch(title=f"a token for {service.title}", read=partial(read, service=service), form=form)


def living(minter: Minter, request: Request) -> Fetched:
    """What was fetched for a minter. Raises CredentialError: nothing was, or it has expired meanwhile."""
    fetched = request.fetched_for(minter.name)
    if fetched.expires_at <= request.now:
        raise CredentialError(minter.title, f"expired at {when(fetched.expires_at)}", "Log out and in again.")
    return fetched


def identifiers(token: str, service: Service) -> Mapping[str, str]:
    """By what the token is recognised elsewhere, for `Credential.identifiers`."""
    claims = unverified_claims(token)
    all_audiences = identifying({"aud": " ".join(audiences(claims))})
    return identifying({"iss": claims.get("iss"), "jti": claims.get("jti"), "aud": service.audience}) | all_audiences


class TokenExchange(Minter):
    """Delivers a token for each service. Each is a credential of its own, `exchange:NAME`, made by a subclass."""

    name: ClassVar[str] = "exchange"
    title: ClassVar[str] = "Tokens for services"
    shortens: ClassVar[bool] = False
    other_file: ClassVar[str] = "set file of the service in TokenExchange.services"
    #: The service of a subclass.
    service: ClassVar[Service]

    services = Dict(
        help="""
        Services for which each server gets a token of the identity provider, in a file of its own: NAME -> mapping of
        the keys below. Each is a credential ``exchange:NAME``. The hub exchanges the user's token for it (RFC 8693),
        which this hub's client must be allowed to at the identity provider. NAME has lower-case letters, digits and
        hyphens. There is no default.

        ``audience``: who shall take the token; the service says which it expects. ``scope``: what the token shall
        allow, separated by blanks. One of the two must be there, and INDIGO IAM wants a scope in any case. Keycloak
        gives only audiences that a client scope brings, which is one of the client's by default, or is named here.

        ``preset``: sets what isn't given. ``rucio``: a Rucio server with Rucio's own defaults, for Rucio's extension of
        JupyterLab. ``eos`` and ``cernbox``: those of CERN, for the programs of SWAN's images. CERN's services take
        tokens of CERN's own single sign-on only.

        ``file``: path of the file below the directory of secrets, a name or a name in one directory. Default:
        ``NAME_token``. It holds the token and nothing else, and with ``preset: eos`` what EOS's clients expect.
        ``environment``: variables of the server, in whose values ``{file}`` stands for the path of the file. They
        replace those of the preset. Without a preset, the default is one variable with the path: ``NAME_TOKEN_FILE``,
        in capital letters and with ``_`` for ``-``. An empty mapping sets none.

        Example: ``{rucio: {preset: rucio}, tape: {audience: "https://tape.example.org", scope: "storage.stage:/"}}``.
        """,
    ).tag(config=True)

    @validate("services")
    def _valid_services(self, proposal: dict[str, Any]) -> dict[str, Any]:
        services: dict[str, Any] = proposal["value"]
        try:
            read_services(services)
        except ValueError as error:
            raise TraitError(f"TokenExchange.services: {error}.") from None
        return services

    @classmethod
    def parts(cls, parent: LoggingConfigurable) -> Sequence[type[Minter]]:
        services = read_services(cls(parent=parent).services)
        if not services:
            raise TraitError("TokenExchange.services is empty: name the services, or take exchange out.")
        return tuple(cls._for(service) for service in services)

    @classmethod
    def _for(cls, service: Service) -> type[TokenExchange]:
        return type(
            f"{cls.__name__}_{service.name.replace('-', '_')}",
            (cls,),
            {
                "__module__": cls.__module__,
                "__doc__": cls.__doc__,
                "name": f"{cls.name}:{service.name}",
                "title": f"{service.title} token",
                "purpose": f"act as you at {service.title}",
                "found_by": service.found_by,
                "service": service,
            },
        )

    @property
    def fetch(self) -> Fetch:
        return asking(self.service)

    @property
    def paths(self) -> Collection[str]:
        return (self.service.file,)

    @property
    def bearer_files(self) -> Mapping[str, BearerKind]:
        return {self.service.file: BearerKind.EXCHANGED} if self.service.form is Form.TOKEN else {}

    def check(self) -> Sequence[Problem]:
        return [
            Problem(Severity.ERROR, f"TokenExchange.services[{name}]", problem, remedy)
            for name, problem, remedy in wrong_values(read_services(self.services))
            if name == self.service.name
        ]

    def mint(self, request: Request) -> Credential:
        fetched = living(self, request)
        try:
            content = self.service.form.content(fetched.value)
        except ValueError as error:
            remedy = "The preset eos is for the identity provider of an EOS: remove it from the service."
            raise CredentialError(self.title, str(error), remedy) from None
        return Credential(
            name=self.name,
            # No newline: not every reader strips it, and HTTP headers must not have one.
            files={self.service.file: content.encode()},
            issued_at=fetched.at,
            expires_at=fetched.expires_at,
            identifiers=identifiers(fetched.value, self.service),
            summary=" at ".join(filter(None, (self.service.scope, self.service.audience))),
        )

    def environment(self, server: Server, directory: PurePosixPath) -> Mapping[str, str]:  # noqa: ARG002
        path = str(directory / self.service.file)
        return {variable: text.replace(PLACEHOLDER, path) for variable, text in self.service.environment.items()}
