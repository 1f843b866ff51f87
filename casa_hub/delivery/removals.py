"""Removal of leftovers by `casa-hub gc`, for both homes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from casa_hub.errors import CasaError


@dataclass(frozen=True, slots=True)
class Removal:
    """A thing without a living server."""

    #: ``Secret casa-hub/casa-alice-1f2e3d4c``, or the path of a file.
    thing: str
    #: Why nobody needs it.
    why: str
    #: Why it could not be removed; "" if it was removed, or in a dry run.
    error: str = ""

    def __str__(self) -> str:
        if self.error:
            return f"could not remove {self.thing} ({self.why}): {self.error}"
        return f"removed {self.thing}: {self.why}"


async def removal(thing: str, why: str, act: Callable[[], Awaitable[Any]], *, dry_run: bool) -> Removal:
    """Remove a thing by `act`, unless it is a dry run. A failure is returned, not raised, so that the others go on."""
    error = ""
    if not dry_run:
        try:
            await act()
        except CasaError as failure:
            error = str(failure)
        except OSError as failure:
            error = failure.strerror or type(failure).__name__
    return Removal(thing, why, error)
