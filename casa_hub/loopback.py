"""Addresses that only this machine can reach. Names are not resolved: no name server may decide."""

from __future__ import annotations

from ipaddress import ip_address


def is_loopback(host: str) -> bool:
    """Whether a host, a name or an address as in a URL, is always this machine."""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False
