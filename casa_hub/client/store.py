"""The log-ins that this client remembers: a file for each hub, which only its owner can read."""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from urllib.parse import quote

from .errors import ClientError
from .files import read_private, write_private
from .hub import LogIn, is_token
from .schedule import moment


class Store:
    """The log-ins below a directory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory / "log-ins"

    def read(self, hub: str, now: datetime) -> LogIn | None:
        """The log-in at a hub; None if there is none that is still good.
        Raises ClientError if others could have read or written it.
        """
        found = self._read(self._file(hub))
        if found is None or found.hub != hub:
            return None
        return found if found.expires_at is None or moment(found.expires_at) > now else None

    def write(self, log_in: LogIn) -> None:
        """Remember a log-in. Raises ClientError if it can't be written."""
        write_private(self._file(log_in.hub), json.dumps(asdict(log_in)).encode())

    def remove(self, hub: str) -> bool:
        """Forget the log-in at a hub; whether there was one."""
        try:
            self._file(hub).unlink()
        except FileNotFoundError:
            return False
        except OSError as error:
            raise ClientError(str(self._file(hub)), f"can't be removed ({error.strerror})") from None
        return True

    def hubs(self) -> list[str]:
        """Addresses of the hubs with a log-in, also with one that is over."""
        found = (self._read(file) for file in sorted(self._directory.glob("*.json")))
        return [each.hub for each in found if each is not None]

    def _file(self, hub: str) -> Path:
        return self._directory / f"{quote(hub, safe='')}.json"

    @staticmethod
    def _read(file: Path) -> LogIn | None:
        """None also for a file that another version has written: the next log-in replaces it."""
        content = read_private(file)
        try:
            entry = json.loads(content or b"")
            log_in = LogIn(**entry | {"credentials": tuple(map(str, entry["credentials"]))})
            if log_in.expires_at is not None:
                moment(log_in.expires_at)
        except (ValueError, TypeError, KeyError):
            return None
        return log_in if is_token(log_in.token) and isinstance(log_in.hub, str) else None
