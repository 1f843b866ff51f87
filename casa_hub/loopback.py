"""What can be reached from this machine only. Names are not looked up: the answer must not depend on a name server."""

from __future__ import annotations

from ipaddress import ip_address


def is_loopback(host: str) -> bool:
    """Whether `host` (a name or an address, as in an URL) is this machine, whoever answers for names."""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False
