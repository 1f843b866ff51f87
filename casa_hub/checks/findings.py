"""The result of a check."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from casa_hub.errors import Problem
from casa_hub.text import sentence

#: Name of the user for whom the checks make host names, tokens and objects. No real user has it.
NOBODY = "casa-hub-check"


class Status(StrEnum):
    """The state of a thing, as a check saw it."""

    OK = "ok"
    #: The thing works, but the operator should know of the problem.
    WARNING = "warning"
    #: The thing can't work.
    ERROR = "error"
    #: The check could not look at the thing.
    UNSEEN = "couldn't look"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at, in the grammar of `casa_hub.errors`.

    If the thing is sound, `problem` says what was seen, and there is no remedy.
    """

    status: Status
    thing: str
    problem: str
    remedy: str = ""

    def __str__(self) -> str:
        return f"{self.status}: {self.thing}: {self.problem}. {self.remedy}".rstrip()


def ok(thing: str, seen: str) -> Finding:
    return Finding(Status.OK, thing, seen)


def warning(thing: str, problem: str, remedy: str) -> Finding:
    return _finding(Status.WARNING, thing, problem, remedy)


def error(thing: str, problem: str, remedy: str) -> Finding:
    return _finding(Status.ERROR, thing, problem, remedy)


def unseen(thing: str, problem: str, remedy: str) -> Finding:
    return _finding(Status.UNSEEN, thing, problem, remedy)


def from_problem(problem: Problem) -> Finding:
    return _finding(Status(problem.severity.value), problem.thing, problem.problem, problem.remedy)


def _finding(status: Status, thing: str, problem: str, remedy: str) -> Finding:
    """A finding with full stops where they belong: texts of others may have one too many or lack one."""
    return Finding(status, thing, problem.rstrip("."), sentence(remedy))
