"""The command `casa-hub`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from casa_hub import __version__, operate
from casa_hub.client import command as client
from casa_hub.errors import CasaError
from casa_hub.issuer import command as issuer
from casa_hub.policy import command as policy


def main(arguments: list[str] | None = None) -> int:
    """Run a command. Exit code 0: sound; 1: something was found; 2: it couldn't look."""
    parser = argparse.ArgumentParser(prog="casa-hub", description="The hub side of an analysis facility.")
    parser.add_argument("--version", action="version", version=f"casa_hub {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)
    demo = commands.add_parser(
        "demo",
        help="a whole facility on this machine",
        description="Start a whole facility on this machine, without root: identity provider, XCache, HTCondor, "
        "Traefik and the hub. Ctrl-C ends all of it.",
    )
    add_demo_options(demo)
    settings = commands.add_parser(
        "settings", help="the reference of all settings", description="Print what can be configured, with its help."
    )
    settings.add_argument("section", nargs="?", help="one section only: XCache, HTCondor, Facility ...")
    check = commands.add_parser(
        "check",
        help="what is wrong with a hub's configuration",
        description="Say what is wrong with a facility, before or while its hub runs: the configuration and the keys, "
        "and whether identity provider, the facility's issuer, cluster, Traefik, XCache, HTCondor, ServiceX, token "
        "exchange, S3 and what makes X.509 proxies fit it; "
        "and which of several Dask secrets isn't needed any more. It changes nothing without --probe. Exit code 0: "
        "sound; 1: an error; 2: something couldn't be looked at.",
    )
    check.add_argument("-f", dest="config_file", type=Path, metavar="FILE", required=True, help="jupyterhub_config.py")
    check.add_argument("--json", action="store_true", help="print the findings as JSON; progress goes to stderr")
    scope = check.add_mutually_exclusive_group()
    scope.add_argument("--local", action="store_true", help="ask nobody but the hub that runs beside it")
    scope.add_argument(
        "--probe",
        action="store_true",
        help="also create a Secret, a Service and routes in the cluster for a moment, and remove them",
    )
    operate.add_commands(commands)
    client.add_commands(commands)
    issuer.add_command(commands)
    policy.add_command(commands)
    options = parser.parse_args(arguments)
    try:
        return _run(options)
    except CasaError as error:
        print(f"casa-hub: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader of the output has ended, such as head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _run(options: argparse.Namespace) -> int:
    config_file = getattr(options, "config_file", None)
    if config_file is not None:
        _begin(f"reading {config_file}")
    if options.command in client.COMMANDS:
        return client.run(options)
    others: dict[str, Callable[[argparse.Namespace], int]] = {
        issuer.COMMAND: issuer.run,
        policy.COMMAND: partial(policy.run, groups_of=operate.groups_of),
    }
    if options.command in others:
        return others[options.command](options)
    match options.command:
        case "settings":
            _begin("loading the settings")
            return _settings(options.section)
        case "demo":
            return _demo(options)
        case "check":
            from casa_hub.checks.runner import check  # noqa: PLC0415 - JupyterHub takes a while to load

            return check(options.config_file, local=options.local, probing=options.probe, as_json=options.json)
    return operate.COMMANDS[options.command](operate.Hub.find(options.config_file, os.environ), options)


def _begin(what: str) -> None:
    """Tell at once what takes seconds, such as loading JupyterHub. On stderr: stdout is for the result."""
    print(f"casa-hub: {what} ...", file=sys.stderr, flush=True)


def add_demo_options(parser: argparse.ArgumentParser) -> None:
    """The options of a demo, on one machine or on Kubernetes."""
    parser.add_argument("--check", action="store_true", help="try everything by itself, print a table, and end")
    parser.add_argument("--port", type=int, help="the hub's port (default: 8000, with --check a free one)")
    parser.add_argument(
        "--directory", type=Path, help="where keys and logs are kept (default: casa-hub-demo in your state directory)"
    )


def _demo(options: argparse.Namespace) -> int:
    try:
        from casa_hub.demo.run import run  # noqa: PLC0415 - needs the extra
    except ImportError as error:
        remedy = "Install it: pip install 'casa_hub[demo]'."
        raise CasaError("casa-hub demo", f"{error.name} is not installed", remedy) from error
    return run(options)


def _settings(section: str | None) -> int:
    from casa_hub.authenticator import CasaOAuthenticator  # noqa: PLC0415 - JupyterHub takes a while to load
    from casa_hub.local_spawner import CasaLocalSpawner  # noqa: PLC0415
    from casa_hub.spawner import CasaSpawner  # noqa: PLC0415
    from casa_hub.startup import sections  # noqa: PLC0415
    from casa_hub.unknown_keys import did_you_mean  # noqa: PLC0415

    classes = {cls.__name__: cls for cls in sections(CasaOAuthenticator, CasaSpawner, CasaLocalSpawner)}
    if section is not None and section not in classes:
        remedy = did_you_mean(section, classes) or f"There are {', '.join(classes)}."
        raise CasaError(section, "there is no such section", remedy)
    for name, cls in classes.items():
        if section in (None, name):
            print(f"{name}\n{'=' * len(name)}\n")
            # Only the class's own traits: inherited ones are documented by the base class.
            for trait in cls.class_own_traits(config=True).values():
                print(f"{cls.class_get_trait_help(trait)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
