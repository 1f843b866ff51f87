"""The commands `casa-hub token` and `casa-hub bundle`."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from . import __version__, login
from .access import Access, find_hub
from .answers import Issued, Offer
from .bundle import unpack
from .errors import ClientError, RefusedError, TokenRefusedError, printable
from .files import write_private
from .hub import LogIn, bundle, issue, offers
from .keep import keep
from .names import HARMLESS
from .places import BEARER, Machine, Placement, place, state_directory
from .schedule import seconds, told
from .store import Store
from .wire import Wire

_CREDENTIAL_HELP = """
Get a short-lived credential of yours from the hub, and write it where programs look for it: a token of XCache or of the
identity provider to $BEARER_TOKEN_FILE, else $XDG_RUNTIME_DIR/bt_u$UID, else /tmp/bt_u$UID (that file holds one token:
the one that was asked for last); HTCondor's to ~/.condor/tokens.d; others to a directory that is told.
The hub's own token comes from CASA_HUB_TOKEN, or from a log-in in the browser, which is remembered.
Exit code 0: done; 1: the hub said no; 2: it couldn't be asked.
"""
_BUNDLE_HELP = """
Fetch what connects this machine to the Dask cluster of your running server: certificates, a program, and a page that
says how. Exit codes as those of casa-hub token.
"""


def main(arguments: list[str] | None = None) -> int:
    """Run a command of the client alone, which is installed without a hub."""
    parser = argparse.ArgumentParser(prog="casa-hub", description="Credentials of an analysis facility.")
    parser.add_argument("--version", action="version", version=f"casa-hub-client {__version__}")
    add_commands(parser.add_subparsers(dest="command", required=True))
    options = parser.parse_args(arguments)
    try:
        return run(options)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader of the output has ended, such as head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def add_commands(commands: Any) -> None:
    """Add the parsers of the client's commands."""
    command: argparse.ArgumentParser = commands.add_parser(
        "token", help="a credential of yours, on a laptop or in CI", description=_CREDENTIAL_HELP
    )
    command.add_argument(
        "credential", help="xcache, htcondor, dask, bearer ...; or list: what there is; or logout: forget the log-in"
    )
    _add_hub(command)
    command.add_argument("--lifetime", metavar="TIME", help="such as 90m or 2h (default: what the hub gives)")
    command.add_argument("--server", metavar="NAME", help="your server that it is for (default: the default server)")
    command.add_argument("--directory", type=Path, metavar="DIR", help="write all files there")
    how = command.add_mutually_exclusive_group()
    how.add_argument("--keep", action="store_true", help="stay, and renew it until Ctrl-C")
    how.add_argument("--shell", action="store_true", help='print variables for a shell: eval "$(casa-hub token ...)"')
    command = commands.add_parser("bundle", help="connect this machine to your Dask cluster", description=_BUNDLE_HELP)
    command.add_argument("server", nargs="?", default="", help="name of your server (default: the default server)")
    _add_hub(command)
    command.add_argument(
        "--directory", type=Path, metavar="DIR", default=Path("casa-hub-bundle"), help="default: casa-hub-bundle"
    )


def _add_hub(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--hub", metavar="URL", help="address of the hub (default: CASA_HUB_URL, or that of the log-in)"
    )
    command.add_argument("--no-browser", action="store_true", help="only print the address of the log-in")
    command.add_argument("--insecure", action="store_true", help="send tokens by http:// to other machines, too")


def run(options: argparse.Namespace) -> int:
    """Run the chosen command; its exit code."""
    machine = Machine(os.environ, Path.home(), os.getuid(), sys.platform)
    try:
        return COMMANDS[options.command](options, machine)
    except ClientError as error:
        print(f"casa-hub: {error}", file=sys.stderr)
        if getattr(options, "shell", False):
            print(f"(exit {error.code})")  # else a shell would take the output of a command that failed for a success
        return error.code


def token(options: argparse.Namespace, machine: Machine) -> int:
    """Get a credential, list what there is, or log out."""
    lifetime = None if options.lifetime is None else seconds(options.lifetime)
    match options.credential:
        case "list":
            return _list(_access(options, machine))
        case "logout":
            return _log_out(_access(options, machine))
    access = _access(options, machine)

    def ask(wire: Wire) -> Issued:
        return issue(wire, options.credential, lifetime=lifetime, server=options.server)

    wire, issued = access.ask(options.credential, ask)
    placement = place(issued, access.hub, options.directory, machine)
    replaced = len(placement.files) == 1 and os.path.lexists(placement.where)
    _write(placement)
    tell = _say if options.shell else partial(print, flush=True)
    try:
        tell(_line(issued, placement) + (", in place of the one that was there" if replaced else ""))
        _tell_variables(issued, placement, machine, shell=options.shell)
        if options.keep:
            _keep(access, issued, partial(ask, wire), options.directory)
    except KeyboardInterrupt:
        if not options.keep:  # of which it is the usual end
            raise
    return 0


def _keep(access: Access, first: Issued, ask: Callable[[], Issued], directory: Path | None) -> None:
    def renew() -> Issued:
        issued = ask()
        placement = place(issued, access.hub, directory, access.machine)
        _write(placement)
        print(f"{datetime.now().astimezone():%H:%M} {_line(issued, placement)}", flush=True)
        return issued

    try:
        keep(first, renew, _say)
    except TokenRefusedError as error:
        raise TokenRefusedError(first.name, f"not renewed any more: {error}") from None
    except RefusedError as error:
        raise RefusedError(first.name, f"not renewed any more: {error}") from None


def _list(access: Access) -> int:
    _, (user, found) = access.ask("", offers)
    print(f"{user} at {access.hub}:")
    for offer in found:
        print(f"  {offer.name:<12} {offer.title:<24} {_longest(offer)}" + ("" if offer.allowed else "; log in for it"))
    if not found:
        print("  nothing: the hub gives no credentials to laptops")
    return 0


def _longest(offer: Offer) -> str:
    if offer.lifetime is None:
        return "as long as it lives"
    hours, minutes = divmod(offer.lifetime // 60, 60)
    return f"{hours} h {minutes} min at most" if minutes else f"{hours} h at most"


def _log_out(access: Access) -> int:
    if access.store.remove(access.hub):
        print(f"Forgotten: the log-in at {access.hub}. It also ends at once if you delete it on {access.hub}/hub/token")
    else:
        print(f"There is no log-in at {access.hub}.")
    return 0


def fetch_bundle(options: argparse.Namespace, machine: Machine) -> int:
    """Fetch and unpack the bundle of a server."""
    access = _access(options, machine)
    _, content = access.ask("dask", lambda wire: bundle(wire, options.server))
    names = unpack(content, options.directory)
    print(f"Dask cluster of {options.server or 'the default server'}: {', '.join(names)} in {options.directory}")
    return 0


COMMANDS: Mapping[str, Callable[[argparse.Namespace, Machine], int]] = {"token": token, "bundle": fetch_bundle}


def _access(options: argparse.Namespace, machine: Machine) -> Access:
    store = Store(state_directory(machine))
    hub = find_hub(options.hub, machine, store, insecure=options.insecure)
    display = _has_display(machine) and not options.no_browser

    def log_in(credentials: tuple[str, ...]) -> LogIn:
        return login.log_in(hub, credentials, browser=display, say=_say)

    # In CI and in a job nobody would see the address.
    somebody = options.no_browser or (not machine.environment.get("CI") and (display or sys.stderr.isatty()))
    return Access(hub, machine, store, _say, log_in if somebody else None)


def _has_display(machine: Machine) -> bool:
    """Whether a browser can show itself; one that runs in this terminal would hide what is said here."""
    if machine.platform == "darwin":
        return "SSH_CONNECTION" not in machine.environment
    return bool(machine.environment.get("DISPLAY") or machine.environment.get("WAYLAND_DISPLAY"))


def _write(placement: Placement) -> None:
    for path, content in placement.files.items():
        write_private(path, content)


def _line(issued: Issued, placement: Placement) -> str:
    """What was done, in one line without secrets."""
    parts = [f"{issued.title} of {issued.user}" if issued.user else issued.title]
    if issued.expires_at is not None:
        parts.append(f"valid until {told(issued.expires_at, datetime.now(UTC))}")
    parts.append(f"in {placement.where}")
    return printable(", ".join(parts))


def _tell_variables(issued: Issued, placement: Placement, machine: Machine, *, shell: bool) -> None:
    """Variables that are to be set; for a shell only those that can't change what other programs do."""
    lacking = {name: value for name, value in placement.variables.items() if machine.environment.get(name) != value}
    words = {name: f"{name}={shlex.quote(value)}" for name, value in sorted(lacking.items())}
    if shell:
        for name in words.keys() & HARMLESS:
            print(f"export {words[name]}")
        if others := [word for name, word in words.items() if name not in HARMLESS]:
            _say(f"Left to you: {' '.join(others)}")
    elif words:
        print(f"Programs also need: export {' '.join(words.values())}", flush=True)
    if issued.name in BEARER and machine.environment.get("BEARER_TOKEN"):
        _say("BEARER_TOKEN is set, and programs prefer it to the file: unset BEARER_TOKEN")


def _say(line: str) -> None:
    """On stderr: stdout is for the result."""
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
