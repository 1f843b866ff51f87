"""The hub's address, and where a token may be sent. Pure; no name is resolved."""

from __future__ import annotations

import re
from ipaddress import ip_address
from urllib.parse import urlsplit

from .errors import ClientError

_EXAMPLE = "Example: https://hub.example.org"
#: What follows the hub's base address in addresses that people copy from their browser.
_PAGES = re.compile(r"/(hub|user|services)(/.*)?$")


def base_address(text: str) -> str:
    """The hub's base address, without a slash at its end, of any address of the hub that a browser or a server shows:
    ``https://hub.example.org/hub/home`` is the hub ``https://hub.example.org``. Raises ClientError for other texts.
    """
    try:
        parts = urlsplit(text.strip())
        port = f":{parts.port}" if parts.port else ""
    except ValueError:
        raise ClientError("the hub's address", "is not a URL", _EXAMPLE) from None
    host = parts.hostname or ""
    if parts.scheme not in {"http", "https"} or not re.fullmatch(r"[A-Za-z0-9._:-]+", host):
        raise ClientError("the hub's address", "is not a URL that begins with https://", _EXAMPLE)
    if parts.username is not None:
        raise ClientError("the hub's address", "has a user name or a password in it", _EXAMPLE)
    path = _PAGES.sub("", parts.path).rstrip("/")
    if not re.fullmatch(r"[!-~]*", path):
        raise ClientError("the hub's address", "has characters that no address has", _EXAMPLE)
    return f"{parts.scheme}://{f'[{host}]' if ':' in host else host}{port}{path}"


def host_of(address: str) -> str:
    """The host's name, for messages and names of files."""
    return urlsplit(address).hostname or ""


def is_this_machine(address: str) -> bool:
    """Whether the address is always this machine."""
    host = host_of(address)
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def check_secrecy(address: str) -> None:
    """Refuse an address on whose way others can read a token. Raises ClientError."""
    if urlsplit(address).scheme != "https" and not is_this_machine(address):
        raise ClientError(
            address,
            "no token is sent there, because http:// has no encryption",
            "Use the hub's https:// address. In a network of your own, --insecure sends it all the same.",
        )
