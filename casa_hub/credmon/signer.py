"""The credd's directory: which tokens are due, what they say, and how they get there.

The contract is HTCondor's (23.9 to 25; `credmon_interface.cpp`, `store_cred.cpp` and the shadow's `CONDOR_getcreds`):

- ``USER/NAME.top`` asks for a token; its content doesn't matter. The credd makes and removes it.
- ``USER/NAME.use`` is the token. The credd waits for it, 20 seconds; the shadow reads it each time that a job's starter
  asks, and wants it readable by its owner alone.
- ``CREDMON_COMPLETE`` says that all users' tokens are there.
- The credd removes the directories of users without jobs.
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from casa_hub.errors import CredentialError
from casa_hub.files import replace_file
from casa_hub.issuer.tokens import CLOCK_SKEW, MAKE_KEY, SigningKey, read_private_key, wlcg_claims
from casa_hub.keys import KeyFile

#: A token is replaced when this part of its life is over: the rest is for the way into the job, for the job's work, and
#: for a schedd that is busy.
_RENEWED_AT = 1 / 3
#: Names of accounts that can stand in a path of a scope.
_ACCOUNT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")
_COMPLETE = "CREDMON_COMPLETE"
_AS_OWNER = "Run the credmon as root, or as the user of HTCondor's daemons."


@dataclass(frozen=True, slots=True)
class Profile:
    """What all tokens say."""

    issuer: str
    audience: Sequence[str]
    #: Each with ``{username}`` where the user's name belongs.
    scopes: Sequence[str]
    #: Seconds.
    lifetime: int

    def claims(self, username: str, now: int) -> dict[str, Any]:
        """The claims of a user's token."""
        return wlcg_claims(
            issuer=self.issuer,
            subject=username,
            audience=self.audience[0] if len(self.audience) == 1 else list(self.audience),
            identifier=secrets.token_hex(16),
            scope=" ".join(scope.replace("{username}", username) for scope in self.scopes),
            issued_at=now,
            lifetime=self.lifetime,
        )


class Credmon:
    """Keeps the tokens in a credd's directory fresh.

    Args:
        directory: SEC_CREDENTIAL_DIRECTORY_OAUTH.
        name: of the credential: ``NAME.top``, ``NAME.use``.
        key: path of the PEM file with the private key; read again when it changes.
        profile: what the tokens say.
        clock: epoch seconds.
        tell: takes a line for the log.
    """

    def __init__(
        self,
        directory: Path,
        name: str,
        key: str,
        profile: Profile,
        *,
        clock: Callable[[], float],
        tell: Callable[[str], None],
    ) -> None:
        self._directory = directory
        self._name = name
        self._key = key
        self._profile = profile
        self._clock = clock
        self._tell = tell
        self._key_file: KeyFile[SigningKey] = KeyFile("--key", read_private_key, MAKE_KEY)
        #: Of each token that this process made: its file -> its key, when it was made, and when it is due.
        self._made: dict[Path, tuple[str, float, float]] = {}
        self._told: set[str] = set()

    def scan(self) -> None:
        """Replace what is due. Does not raise: what is wrong is told, once, and tried again by the next call."""
        problems: set[str] = set()
        wanted = self._wanted(problems)
        self._made = {use: made for use, made in self._made.items() if use in wanted}
        try:
            key = self._key_file.read(self._key)
        except CredentialError as error:  # the tokens that are there stay, until they expire
            problems.add(str(error))
        else:
            for use in wanted:
                try:
                    self._keep_fresh(use, key)
                except OSError as error:
                    problems.add(f"{use}: can't be written: {error.strerror}. {_AS_OWNER}")
        if not problems:
            try:
                (self._directory / _COMPLETE).touch()
            except OSError as error:  # the disk is full
                problems.add(f"{self._directory / _COMPLETE}: can't be written: {error.strerror}. {_AS_OWNER}")
        for problem in sorted(problems - self._told):
            self._tell(problem)
        self._told = problems

    def _wanted(self, problems: set[str]) -> set[Path]:
        """The token files that somebody asked for."""
        wanted: set[Path] = set()
        try:
            users = [Path(entry) for entry in os.scandir(self._directory) if entry.is_dir(follow_symlinks=False)]
        except OSError as error:
            problems.add(f"{self._directory}: can't be read: {error.strerror}. {_AS_OWNER}")
            return wanted
        for user in users:
            try:
                (user / f"{self._name}.top").lstat()
            except FileNotFoundError:
                continue
            except OSError as error:
                problems.add(f"{user}: can't be read: {error.strerror}. {_AS_OWNER}")
                continue
            if _ACCOUNT.fullmatch(user.name):
                wanted.add(user / f"{self._name}.use")
            else:
                problems.add(f"{user}: is not a name that can stand in a scope. This user's jobs get no token.")
        return wanted

    def _keep_fresh(self, use: Path, key: SigningKey) -> None:
        """Make this token if it is due. Raises OSError."""
        now = self._clock()
        kid, made, due = self._made.get(use, ("", 0.0, 0.0))
        # A clock that was put back has made a token that isn't valid yet.
        if kid == key.kid and made - CLOCK_SKEW <= now < due and use.exists():
            return
        claims = self._profile.claims(use.parent.name, int(now))
        try:
            replace_file(use, key.sign(claims).encode())
        except FileNotFoundError:  # the credd has just removed the user's directory
            return
        self._made[use] = (key.kid, now, now + self._profile.lifetime * _RENEWED_AT)
        self._tell(f"{use}: made token {claims['jti']}, valid until {claims['exp']}, signed by {key.kid}")
