"""What goes wrong, as somebody can act on it. No message ever holds a secret."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class CasaError(Exception):
    """Base of this package's errors: what is wrong with which thing, and the remedy.

    `jupyterhub_message` is what JupyterHub shows to the user when such an error ends a spawn.
    """

    def __init__(self, thing: str, problem: str, remedy: str) -> None:
        super().__init__(f"{thing}: {problem}. {remedy}" if remedy else f"{thing}: {problem}.")
        self.thing = thing
        self.problem = problem
        self.remedy = remedy

    @property
    def jupyterhub_message(self) -> str:
        return str(self)


class ConfigurationError(CasaError):
    """The operator's configuration can't work as it stands: the hub refuses to start with it."""


class CredentialError(CasaError):
    """A credential could not be minted; `thing` is what stands in the way (a file, a setting, a user name)."""


class DeliveryError(CasaError):
    """A parcel could not be brought to its server."""


class Severity(StrEnum):
    """How bad a `Problem` is."""

    #: The thing can't work.
    ERROR = "error"
    #: It works, but something an operator should know.
    WARNING = "warning"


@dataclass(frozen=True, slots=True)
class Problem:
    """Something found wrong before a user could find it: at the hub's start or by ``casa-hub check``."""

    severity: Severity
    thing: str
    problem: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.thing}: {self.problem}. {self.remedy}"

    @classmethod
    def of(cls, error: CasaError) -> Problem:
        return cls(Severity.ERROR, error.thing, error.problem, error.remedy)
