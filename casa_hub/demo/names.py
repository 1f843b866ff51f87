"""Host names below ``*.localhost`` for a facility at a loopback address, instead of wildcard DNS.

Some machines resolve such names themselves (systemd-resolved, nss-myhostname). Plain Debian doesn't: there programs
preload `nss_wrapper`, which answers from a hosts file and leaves all other names to the system.
"""

from __future__ import annotations

import itertools
import socket
from collections.abc import Mapping
from pathlib import Path

from casa_hub.demo.packages import Progress, nss_wrapper, silent
from casa_hub.demo.processes import free_loopback_address
from casa_hub.files import replace_file

_EXAMPLE = "casa-hub-example.dask.localhost"


def resolves(name: str, address: str | None = None) -> bool:
    """Whether this machine resolves `name` to `address`, or if that is None, to any loopback address."""
    try:
        found = {str(entry[4][0]) for entry in socket.getaddrinfo(name, None, socket.AF_INET)}
    except OSError:
        return False
    return address in found if address else all(each.startswith("127.") for each in found)


def facility_address(*ports: int) -> str:
    """The address at which a facility should listen.

    It is the machine's own address of ``*.localhost`` if the ports are free there, else a random loopback address.

    Raises:
        OSError: the ports are free at neither.
    """
    if resolves(_EXAMPLE, "127.0.0.1"):
        try:
            return free_loopback_address(*ports, address="127.0.0.1")
        except OSError:
            pass
    return free_loopback_address(*ports)


class HostNames:
    """Makes programs with the variables of `environment` resolve the names of a hosts file.

    A program uses the file as it was at the program's first look-up; see `replace`.
    """

    def __init__(self, hosts_file: Path, address: str | None = None) -> None:
        """Args:
        hosts_file: path of the file, in the format of hosts(5).
        address: address of all names, if known: the wrapper isn't needed if the machine resolves them to it anyway.
        """
        self.hosts_file = hosts_file
        self._address = address
        self._environment: dict[str, str] = {}

    def prepare(self, progress: Progress = silent) -> None:
        """Fetch nss_wrapper, if it is needed.

        Raises:
            Unavailable: it is needed, but can't be fetched.
        """
        if self._address is None or not resolves(_EXAMPLE, self._address):
            library = nss_wrapper(progress)
            self._environment = {"LD_PRELOAD": str(library), "NSS_WRAPPER_HOSTS": str(self.hosts_file)}

    @property
    def environment(self) -> Mapping[str, str]:
        """Variables for programs that use the names; empty if none are needed, and before `prepare`."""
        return self._environment

    def replace(self, hosts: Mapping[str, str]) -> None:
        """Replace the file by one with these names (host name -> address). Running programs go on with the old file.

        nss_wrapper (up to 1.1.16 at least) reads the file again, without a lock, if its open file was changed or has no
        name any more. Programs that look up names in several threads crash or hang then. So old versions keep a name:
        ``hosts.1``, ``hosts.2`` ...
        """
        if self.hosts_file.exists():
            versions = (self.hosts_file.with_name(f"{self.hosts_file.name}.{n}") for n in itertools.count(1))
            next(version for version in versions if not version.exists()).hardlink_to(self.hosts_file)
        lines = "".join(f"{address} {name}\n" for name, address in hosts.items())
        replace_file(self.hosts_file, lines.encode(), 0o644)
