"""`casa-hub demo`: for a person, or without one by `--check`. The facility may be of a subclass of `Facility`."""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from casa_hub.demo.accounts import ACCOUNTS
from casa_hub.demo.check import Checks
from casa_hub.demo.facility import PORT, Facility, elapsed_printer
from casa_hub.errors import CasaError
from casa_hub.issuer.published import JWKS


def run(options: argparse.Namespace, make: type[Facility] = Facility) -> int:
    """Run the demo with these options (`casa_hub.cli.add_demo_options`); returns the exit code."""
    return (check if options.check else serve)(make, options.directory, port=options.port)


def serve(make: type[Facility], directory: Path | None, *, port: int | None) -> int:
    """Start the facility and stay until Ctrl-C, which is its orderly end. Returns the exit code."""
    progress = elapsed_printer()
    facility = make(directory or _state_directory() / make.name, port=_port(port), progress=progress)
    with _ended_by_signals(), facility.running():
        assert facility.hub is not None  # noqa: S101
        try:
            print(_welcome(facility), flush=True)
            facility.hub.wait()
        except KeyboardInterrupt:
            pass
        else:
            print(facility.hub.last_lines(), file=sys.stderr)
            return 1
    return 0


def check(make: type[Facility], directory: Path | None, *, port: int | None) -> int:
    """Start the facility on free ports, run all steps and print a table; returns 0 if all passed."""
    progress = elapsed_printer()
    scratch = Path(tempfile.mkdtemp(prefix="casa-hub-check-"))
    scratch.chmod(0o711)
    failed = False
    try:
        facility = make(directory or scratch, port=port, progress=progress)
        with _ended_by_signals(), facility.running():
            checks = Checks(facility, progress)
            checks.run()
        checks.after_the_end()
        failed = not checks.passed
    except CasaError:
        failed = True
        raise
    finally:
        if failed and directory is None:
            print(f"The logs of this run stay in {scratch}; remove it when you have read them.")
        else:
            shutil.rmtree(scratch, ignore_errors=True)
    print(checks.table())
    for what, why in facility.missing.items():
        print(f"Not tried, because this machine can't run it: {what}. {why}")
    if facility.missing and os.environ.get("CASA_HUB_REQUIRE_PEERS") == "1":
        print("CASA_HUB_REQUIRE_PEERS is set: missing parts count as failed.")
        return 1
    return 0 if checks.passed else 1


def _welcome(facility: Facility) -> str:
    lines = ["", f"  Open {facility.url} and sign in as", ""]
    lines += [f"    {account.name:<8} {account.about}" for account in ACCOUNTS]
    lines += ["", "  The identity provider's page has a button for each. Whoever has an account on this machine can"]
    lines += ["  press them, too, and run programs as you: don't run the demo on a machine that you share."]
    lines += ["", "  The hub opens on My credentials, which shows what a server holds. Start one: it opens"]
    lines += ["  quickstart.ipynb, whose cells run from top to bottom."]
    lines += [f"  {line}" for line in facility.about_servers()]
    lines += [f"  Anybody reads the public keys of the facility's issuer: {facility.tokens.iss}/{JWKS}"]
    lines += ["", "  To operate it, from another terminal (docs/operations.md says what there is):"]
    lines += [f"    {facility.operator_command}"]
    lines += [f"  Missing on this machine: {what} ({why})" for what, why in facility.missing.items()]
    return "\n".join([*lines, "", "  Ctrl-C ends everything.", ""])


def _state_directory() -> Path:
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state")


def _port(wanted: int | None) -> int | None:
    """The wanted port. Without one, the usual port if it is free, else None for any free port.

    Raises:
        CasaError: the wanted port is taken.
    """
    for port in [wanted] if wanted is not None else [PORT]:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError as error:
                if wanted is None:
                    print(f"Port {port} is taken; the hub gets another one.", flush=True)
                else:
                    raise CasaError(f"port {port}", f"can't be used ({error.strerror})", "Choose another.") from error
            else:
                return port
    return None


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """A context that SIGTERM and SIGHUP end as Ctrl-C does, so that everything is ended.

    SIGINT gets a handler, too: a shell without job control starts background programs with SIGINT ignored.
    """

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
