"""The program that HTCondor's master starts as CREDMON_OAUTH: ``python -m casa_hub.credmon``."""

from __future__ import annotations

import argparse
import logging
import logging.handlers
import os
import signal
import time
from pathlib import Path

from casa_hub.credmon.signer import Credmon, Profile
from casa_hub.issuer.tokens import LONGEST

#: Seconds between two looks at the directory if nobody calls (SIGHUP), at most. The credd calls when it has a new user.
_LOOK = 10.0
#: The same as a part of a token's life, for short ones.
_PART = 1 / 12


def main(arguments: list[str] | None = None) -> None:
    options = _parse(arguments)
    log = _log(options.log)
    credmon = Credmon(
        options.directory,
        options.name,
        options.key,
        Profile(options.issuer, options.audience, options.scope, options.lifetime),
        clock=time.time,
        tell=log.info,
    )
    pid = options.directory / "pid"
    # Blocked, so that a signal between two waits isn't lost.
    called, ended = signal.SIGHUP, {signal.SIGTERM, signal.SIGQUIT, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, {called, *ended})
    pid.write_text(str(os.getpid()))  # there the credd finds whom to call
    log.info("started; tokens of %s for %s", options.issuer, " ".join(options.audience))
    try:
        while True:
            credmon.scan()
            got = signal.sigtimedwait({called, *ended}, min(_LOOK, options.lifetime * _PART))
            if got is not None and got.si_signo in ended:
                break
    finally:
        pid.unlink(missing_ok=True)


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m casa_hub.credmon",
        description="Keep the tokens of running HTCondor jobs fresh. HTCondor's master starts this program.",
    )
    parser.add_argument("--directory", type=Path, required=True, help="HTCondor's SEC_CREDENTIAL_DIRECTORY_OAUTH")
    parser.add_argument("--name", default="casa", help="of the credential: use_oauth_services = NAME (%(default)s)")
    parser.add_argument("--key", required=True, help="PEM file with the pool's own private key")
    parser.add_argument("--issuer", required=True, help="FacilityIssuer's URL and VO, as tokens say it (iss)")
    parser.add_argument("--audience", action="append", required=True, help="whom the tokens are for (aud); repeatable")
    parser.add_argument(
        "--scope", action="append", required=True, help="such as storage.read:/store/user/{username}; repeatable"
    )
    parser.add_argument("--lifetime", type=int, default=3600, help="seconds that a token is valid (%(default)s)")
    parser.add_argument("--log", type=Path, required=True, help="file for the log")
    options = parser.parse_args(arguments)
    if not 1 <= options.lifetime <= LONGEST:
        parser.error(
            f"--lifetime is {options.lifetime}, must be 1 to {LONGEST} seconds: the WLCG profile allows no more"
        )
    return options


def _log(file: Path) -> logging.Logger:
    handler = logging.handlers.RotatingFileHandler(file, maxBytes=10_000_000, backupCount=1)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    log = logging.getLogger("casa_hub.credmon")
    log.setLevel(logging.INFO)
    log.addHandler(handler)
    return log


if __name__ == "__main__":
    main()
