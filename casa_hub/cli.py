"""`casa-hub`: what an operator does from a shell."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from casa_hub import __version__
from casa_hub.errors import CasaError


def main(arguments: list[str] | None = None) -> int:
    """Exit code 0: sound; 1: something found; 2: couldn't look."""
    parser = argparse.ArgumentParser(prog="casa-hub", description="The hub side of an analysis facility.")
    parser.add_argument("--version", action="version", version=f"casa_hub {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)
    demo = commands.add_parser(
        "demo",
        help="a whole facility on this machine",
        description="Start a whole facility on this machine, without root: identity provider, XCache, HTCondor, "
        "Traefik and the hub. Ctrl-C ends all of it.",
    )
    demo.add_argument("--check", action="store_true", help="try everything by itself, print a table, and end")
    demo.add_argument("--port", type=int, help="the hub's port (default: 8000, with --check a free one)")
    demo.add_argument(
        "--directory", type=Path, help="where homes and keys are kept (default: casa-hub-demo in your state directory)"
    )
    options = parser.parse_args(arguments)
    try:
        return _demo(options)
    except CasaError as error:
        print(f"casa-hub: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def _demo(options: argparse.Namespace) -> int:
    try:
        from casa_hub.demo import run  # noqa: PLC0415 - needs the extra
    except ImportError as error:
        raise CasaError("casa-hub demo", f"{error.name} is not installed", "pip install 'casa_hub[demo]'") from error
    if options.check:
        return run.check(options.directory, port=options.port)
    return run.serve(options.directory, port=options.port)


if __name__ == "__main__":
    sys.exit(main())
