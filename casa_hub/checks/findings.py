"""What a check finds."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from casa_hub.errors import Problem

#: What the checks call the user that they are for a moment, and that nobody is: in host names, tokens and objects.
NOBODY = "casa-hub-check"


class Status(StrEnum):
    """What became of looking at a thing."""

    OK = "ok"
    #: It works, but something an operator should know.
    WARNING = "warning"
    #: It can't work.
    ERROR = "error"
    #: Nobody knows.
    UNSEEN = "couldn't look"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at; of one that is sound, `problem` says what was seen and there is no remedy."""

    status: Status
    thing: str
    problem: str
    remedy: str = ""

    def __str__(self) -> str:
        return f"{self.status}: {self.thing}: {self.problem}." + (f" {self.remedy}" if self.remedy else "")


def ok(thing: str, seen: str) -> Finding:
    return Finding(Status.OK, thing, seen)


def warning(thing: str, problem: str, remedy: str) -> Finding:
    return Finding(Status.WARNING, thing, problem.rstrip("."), remedy)


def error(thing: str, problem: str, remedy: str) -> Finding:
    return Finding(Status.ERROR, thing, problem.rstrip("."), remedy)


def unseen(thing: str, problem: str, remedy: str) -> Finding:
    return Finding(Status.UNSEEN, thing, problem.rstrip("."), remedy)


def of(problem: Problem) -> Finding:
    return Finding(Status(problem.severity.value), problem.thing, problem.problem.rstrip("."), problem.remedy)
