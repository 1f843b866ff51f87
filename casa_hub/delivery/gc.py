"""What `casa-hub gc` finds and removes, in either delivery."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from casa_hub.errors import CasaError


@dataclass(frozen=True, slots=True)
class Removal:
    """One thing without a living server."""

    #: ``Secret casa-hub/casa-alice-1f2e3d4c``, or the path of a file.
    thing: str
    why: str
    #: Why it is still there; "" once it is removed, or if that was not asked for.
    error: str = ""

    def __str__(self) -> str:
        if self.error:
            return f"could not remove {self.thing} ({self.why}): {self.error}"
        return f"removed {self.thing}: {self.why}"


async def removal(thing: str, why: str, act: Callable[[], Awaitable[Any]], *, dry_run: bool) -> Removal:
    """Remove a thing by `act`, or only tell of it; a failure is told, too, and the others go on."""
    error = ""
    if not dry_run:
        try:
            await act()
        except CasaError as failure:
            error = str(failure)
        except OSError as failure:
            error = failure.strerror or type(failure).__name__
    return Removal(thing, why, error)
