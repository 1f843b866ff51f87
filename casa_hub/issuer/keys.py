"""The directory of private keys: which are published, and which one signs.

A verifier keeps the published keys for hours or days, and refuses a token of a key that it doesn't know. So a new key
is published for `FacilityIssuer.key_lead` seconds before it signs. The hub's database remembers since when each key is
published, because the times of files in a mounted Secret are those of the mount.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Column, Float, MetaData, Table, Unicode, insert, select
from sqlalchemy.exc import SQLAlchemyError

from casa_hub.database import committed, mended, roll_back
from casa_hub.errors import CredentialError, Problem
from casa_hub.issuer.tokens import MAKE_KEY, SigningKey, read_private_key
from casa_hub.keys import KeyFile
from casa_hub.moments import when

SETTING = "FacilityIssuer.keys"
_SUFFIX = ".pem"
#: Seconds until the database is tried again after it has failed.
_AGAIN = 60.0

_table = Table(
    "casa_hub_issuer_keys",
    MetaData(),
    Column("kid", Unicode(64), primary_key=True),
    # Of double precision: MariaDB's FLOAT has epoch seconds to two minutes only.
    Column("since", Float(53), nullable=False),
)


def shown(file: str) -> str:
    """A key file's name for people and in metrics."""
    return f"{SETTING}: {os.path.basename(file)}"  # noqa: PTH119 - as in `KeyDirectory.files`


def _known(db: Any) -> dict[str, float]:
    return {row.kid: row.since for row in db.execute(select(*_table.columns))}


class Published:
    """Since when each key is published, in epoch seconds; 0 for the keys with which the issuer began.

    A key that is withdrawn and comes back keeps its time, so that a directory that was empty for a moment makes nobody
    wait for days.
    """

    def __init__(self) -> None:
        self._since: dict[str, float] = {}
        self._db: Any = None
        self._unsaved: set[str] = set()
        self._not_before = 0.0

    def open(self, db: Any) -> None:
        """Remember in the hub's database from now on. Raises SQLAlchemyError."""
        mended(db)
        _table.create(db.get_bind(), checkfirst=True)
        self._db, self._since = db, _known(db)
        # What a check of the settings has seen before. It is published from now on, as far as it isn't known.
        self._unsaved.clear()

    def since(self, kids: list[str], now: float) -> Mapping[str, float]:
        """The times of these keys, which are all published now."""
        new = [kid for kid in kids if kid not in self._since]
        if new:
            first = 0.0 if not self._since else now
            self._since |= dict.fromkeys(new, first)
            self._unsaved |= set(new)
        return self._since

    def save(self, now: float) -> None:
        """Store what is new. For a mint and not for a page: the database may be slow or away, and pages must not be.

        Another process, such as the hub that this one replaces, may have stored a key: then its time counts.
        """
        if not self._unsaved or self._db is None or now < self._not_before:
            return
        try:
            with committed(self._db):
                self._since |= (known := _known(self._db))
                rows = [{"kid": kid, "since": self._since[kid]} for kid in sorted(self._unsaved - known.keys())]
                if rows:
                    self._db.execute(insert(_table).values(rows))
        except SQLAlchemyError:
            roll_back(self._db)
            self._not_before = now + _AGAIN
            return
        self._unsaved.clear()


@dataclass(frozen=True, slots=True)
class Key:
    """One key of the directory."""

    signing: SigningKey
    file: str
    #: Epoch seconds.
    since: float
    #: Epoch seconds; from then on it may sign.
    signs_from: float


def signer_of(keys: list[Key], now: float) -> Key | None:
    """The key that signs: of those that are published for long enough, the newest."""
    return max((key for key in keys if key.signs_from <= now), key=lambda key: key.since, default=None)


class KeyDirectory:
    """The keys in the files ``*.pem`` of a directory, read again when they change.

    Args:
        path: of the directory; asked anew each time.
        lead: seconds that a key is published before it signs; asked anew each time.
        tell: takes a problem with a file, once for each change of it.
        note: takes a line about each key that begins or ends to be published.
    """

    def __init__(
        self,
        path: Callable[[], str],
        lead: Callable[[], int],
        tell: Callable[[str], None],
        note: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.published = Published()
        self._path = path
        self._lead = lead
        self._tell = tell
        self._files: dict[str, KeyFile[SigningKey]] = {}
        self._note = note
        self._told: set[str] = set()
        #: Of the published keys: kid -> file.
        self._present: dict[str, str] = {}

    def files(self) -> list[str]:
        """Paths of the key files, in the order of their names. Raises CredentialError."""
        path = self._path()
        if not path:
            raise CredentialError(SETTING, "is not set", f"Name a directory with a key in it. {MAKE_KEY}")
        try:
            names = os.listdir(path)  # noqa: PTH208 - each mint does this: Path() costs more than the call
        except (OSError, ValueError) as error:
            problem = f"can't be read: {getattr(error, 'strerror', None) or error}"
            raise CredentialError(f"{SETTING} ({path})", problem, "Name a directory that the hub can read.") from None
        # Kubernetes' own names in a mounted Secret begin with a dot.
        return [f"{path}/{name}" for name in sorted(names) if name.endswith(_SUFFIX) and not name.startswith(".")]

    def keys(self, now: float) -> list[Key]:
        """All usable keys, in the order of their files' names. Files that can't be used are told and left out.

        Raises CredentialError: there is no usable key, with what is wrong with the first file.
        """
        found: dict[str, tuple[SigningKey, str]] = {}
        errors: list[CredentialError] = []
        files = self.files()
        for file in files:
            try:
                key = self._file(file).read(file)
            except CredentialError as error:
                errors.append(error)
            else:
                found.setdefault(key.kid, (key, file))
        for gone in self._files.keys() - files:
            self._files.pop(gone).forget()
        present = {kid: file for kid, (_, file) in found.items()}
        for kid in present.keys() - self._present.keys():
            self._note(f"The issuer publishes the key {kid} of {present[kid]}")
        for kid in self._present.keys() - present.keys():
            self._note(f"The issuer no longer publishes the key {kid}, which was in {self._present[kid]}")
        self._present = present
        problems = {str(error) for error in errors}
        for problem in sorted(problems - self._told):
            self._tell(problem)
        self._told = problems
        if not found:
            if errors:
                raise errors[0]
            raise CredentialError(f"{SETTING} ({self._path()})", f"has no file *{_SUFFIX}", MAKE_KEY)
        since = self.published.since(list(found), now)
        return [
            Key(key, file, since[kid], since[kid] + self._lead() if since[kid] else 0.0)
            for kid, (key, file) in found.items()
        ]

    def signing(self, now: float) -> SigningKey:
        """The key that signs now, as `signer_of` chooses it.

        Raises CredentialError: there is none, or none that may sign already.
        """
        keys = self.keys(now)
        self.published.save(now)
        signer = signer_of(keys, now)
        if signer is None:
            soon = min(keys, key=lambda key: key.signs_from)
            raise CredentialError(
                f"{SETTING} ({soon.file})",
                f"would sign too early: verifiers may know it only at {when(soon.signs_from)}",
                "Put the file of the key before it back until then. If that key was stolen, set"
                " FacilityIssuer.key_lead to 0 and renew the keys that verifiers keep.",
            )
        return signer.signing

    def remember(self, now: float) -> None:
        """Store since when the present keys are published: once at the hub's start, before anybody mints."""
        with contextlib.suppress(CredentialError):  # told by `check`
            self.keys(now)
        self.published.save(now)

    def _file(self, path: str) -> KeyFile[SigningKey]:
        if path not in self._files:
            self._files[path] = KeyFile(SETTING, read_private_key, MAKE_KEY, label=shown(path))
        return self._files[path]

    def check(self, now: float) -> list[Problem]:
        """Problems of the directory and its files. Does not raise."""
        problems: list[Problem] = []
        try:
            for file in self.files():
                problems += self._file(file).check(file)
            self.signing(now)
        except CredentialError as error:
            if Problem.of(error) not in problems:
                problems.append(Problem.of(error))
        return problems
