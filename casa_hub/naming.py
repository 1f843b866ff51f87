"""All names of a server's files, objects and hosts.

Contract:

- A slug, and each name made of it, is a valid Kubernetes object name, label value, DNS label and file name, for any
  user and server name.
- A slug equals the ``{user_server}`` that KubeSpawner puts into the pod's name.
- Two servers can share a slug, but only if somebody found a collision of KubeSpawner's 32-bit hash. So whoever writes
  something under a slug also writes `Server.identity` into it, and never touches what has another identity.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeVar

from kubespawner.slugs import is_valid_label, multi_slug, safe_slug

from casa_hub.errors import CredentialError

T = TypeVar("T")

#: Regular expressions: a label of a DNS name (RFC 1123), and the name; the caller checks how long the name is.
DNS_LABEL = r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"
DNS_NAME = rf"{DNS_LABEL}(\.{DNS_LABEL})*"
#: KubeSpawner's own limit for the slug of user and server (``_expand_user_properties``).
SLUG_LENGTH = 48


def hub_form(name: str) -> str:
    """The user name of the hub, in lower case, for a name that an operator wrote."""
    return name.strip().lower()


def by_username(table: Mapping[str, T], setting: str) -> dict[str, T]:
    """An operator's table with its user names in the hub's form; `setting` is where it stands.
    Raises CredentialError if two entries are for the same user and differ.
    """
    normal: dict[str, T] = {}
    for written, value in table.items():
        name = hub_form(written)
        if normal.setdefault(name, value) != value:
            raise CredentialError(setting, f"has two different entries for the user {name!a}", "Remove one of them.")
    return normal


@dataclass(frozen=True, slots=True)
class Server:
    """Which server of which user at which hub; credentials, files, routes and host names are made for it."""

    #: Distinguishes hubs that share a namespace, a domain, a pool or an XCache; "" for a hub that shares nothing.
    hub_id: str
    #: JupyterHub's name of the user.
    username: str
    #: JupyterHub's name of the server; "" is the default server.
    name: str = ""

    @property
    def slug(self) -> str:
        """KubeSpawner's ``{user_server}``: at most 48 characters of ``[a-z0-9-]``, a letter first."""
        return _slug(self.username, self.name)

    @property
    def identity(self) -> str:
        """Hub, user and server as a text; equal texts mean the same server."""
        return json.dumps([self.hub_id, self.username, self.name])

    @classmethod
    def of_identity(cls, text: str | None) -> Server | None:
        """Parse an `identity`. Returns None for any other text; the input is untrusted."""
        try:
            parts = json.loads(text or "")
        except (ValueError, RecursionError):
            return None
        match parts:
            case [str(hub_id), str(username), str(name)]:
                return cls(hub_id, username, name)
        return None

    def object_name(self, start_id: str) -> str:
        """Name of a start's objects in Kubernetes, a DNS label: ``casa-alice-1f2e3d4c``, at most 63 characters.

        The eight digits differ between hubs and between starts, so that two starts never share an object.
        """
        digits = hashlib.sha256(f"{self.identity}{start_id}".encode()).hexdigest()[:8]
        return f"casa-{self.slug}-{digits}"

    @property
    def hub_label(self) -> str:
        """`hub_id` as a valid value of a label: unchanged if possible, else a slug with a hash."""
        return str(safe_slug(self.hub_id, is_valid=is_label_value)) if self.hub_id else ""

    def host(self, label: str, domain: str) -> str:
        """The server's DNS name below ``label``: ``alice.dask.example.org``."""
        return f"{self.slug}.{label}.{domain}"


def is_label_value(text: str) -> bool:
    """Whether Kubernetes accepts a text as the value of a label."""
    # KubeSpawner's check ignores case by Unicode's rules, so it would accept a Kelvin sign as a "k".
    return text.isascii() and bool(is_valid_label(text))


@lru_cache(maxsize=4096)
def _slug(username: str, server_name: str) -> str:
    user: str = safe_slug(username, max_length=SLUG_LENGTH)
    name: str = safe_slug(server_name, max_length=SLUG_LENGTH) if server_name else ""
    if len(user) + len(name) + 2 > SLUG_LENGTH:
        return str(multi_slug([username, server_name], max_length=SLUG_LENGTH))
    return f"{user}--{name}" if name else user
