"""Errors and problems in one grammar: which thing, what is wrong with it, the remedy. None ever holds a secret.

- `thing` names a setting, a file, an address: ``Dask.domain``.
- `problem` is a predicate or a clause that reads well after "thing: " and has no full stop: ``is not set``.
- `remedy` is one or more sentences: ``Set it to the DNS domain of the servers.`` Empty where nobody can do anything.
"""

from __future__ import annotations

import traceback
from dataclasses import dataclass
from enum import StrEnum

from casa_hub.text import sentence


class CasaError(Exception):
    """Base of this package's errors. A full stop that the remedy lacks is added.

    `jupyterhub_message` is what JupyterHub shows to the user when such an error ends a spawn.
    """

    def __init__(self, thing: str, problem: str, remedy: str) -> None:
        remedy = sentence(remedy)
        super().__init__(f"{thing}: {problem}. {remedy}".rstrip())
        self.thing = thing
        self.problem = problem
        self.remedy = remedy

    @property
    def jupyterhub_message(self) -> str:
        return str(self)


class ConfigurationError(CasaError):
    """The configuration can't work as it stands: the hub refuses to start with it."""


class CredentialError(CasaError):
    """A credential could not be minted because of `thing`: a file, a setting, a user name."""


class DeliveryError(CasaError):
    """Credentials or routes could not be delivered to a server."""


class Severity(StrEnum):
    """How bad a `Problem` is."""

    #: The thing can't work.
    ERROR = "error"
    #: The thing works, but the operator should know of the problem.
    WARNING = "warning"


@dataclass(frozen=True, slots=True)
class Problem:
    """A problem that is found before a user meets it: at the hub's start or by ``casa-hub check``."""

    severity: Severity
    thing: str
    problem: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.thing}: {self.problem}. {sentence(self.remedy)}"

    @classmethod
    def of(cls, error: CasaError) -> Problem:
        """An error as a problem; the minters of sites use this name, too."""
        return cls(Severity.ERROR, error.thing, error.problem, error.remedy)


def without_text(error: BaseException) -> str:
    """A third party's exception as its type and place: its text, or a traceback's lines, may hold a secret."""
    frames = traceback.extract_tb(error.__traceback__)
    return type(error).__name__ + (f" at {frames[-1].filename}:{frames[-1].lineno}" if frames else "")
