"""Addresses and ports that only this machine can reach. Names are not resolved: no name server may decide."""

from __future__ import annotations

import socket
import weakref
from ipaddress import ip_address


def is_loopback(host: str) -> bool:
    """Whether a host, a name or an address as in a URL, is always this machine."""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def free_ports(count: int, owner: object, address: str = "127.0.0.1") -> list[int]:
    """Free TCP ports of a loopback address, reserved as long as `owner` exists.

    Each port is held by a socket that is bound and doesn't listen. Linux lets a server bind and listen beside it,
    because both have SO_REUSEADDR, but gives the port to no process that asks for any free port. Without the
    reservation another program could get the port before the server has started, or while it restarts.
    """
    held = [socket.socket() for _ in range(count)]
    for each in held:
        weakref.finalize(owner, each.close)
        each.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        each.bind((address, 0))
    return [each.getsockname()[1] for each in held]


def free_port(owner: object, address: str = "127.0.0.1") -> int:
    """One port, as `free_ports` does."""
    return free_ports(1, owner, address)[0]
