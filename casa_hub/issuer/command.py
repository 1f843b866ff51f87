"""``casa-hub issuer``: a new key, the published keys, and the file of keys for verifiers that can't reach the hub."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from casa_hub.errors import CasaError
from casa_hub.issuer.published import CACHE_LIFETIME, cache_file
from casa_hub.issuer.settings import FacilityIssuer
from casa_hub.issuer.tokens import MIN_RSA_BITS, new_private_key

COMMAND = "issuer"


def add_command(commands: Any) -> None:
    issuer = commands.add_parser(
        COMMAND,
        help="the facility's own issuer of tokens: its keys",
        description="Make a key of the facility's own issuer of tokens, or print what verifiers read.",
    )
    what = issuer.add_subparsers(dest="what", required=True)
    new = what.add_parser(
        "new-key",
        help="make a key",
        description="Write a new private key into a file with mode 0600, and print the public half as a JWK, as "
        "FacilityIssuer.extra_jwks takes it. A key in the directory FacilityIssuer.keys needs no more.",
    )
    new.add_argument("file", type=Path, metavar="FILE", help="such as /etc/casa-hub-issuer/2026-11.pem; must not exist")
    new.add_argument("--rsa", action="store_true", help=f"an RSA key of {MIN_RSA_BITS} bits, not EC P-256")
    for name, text in (
        ("jwks", "print the published keys"),
        ("cache", "print a JWKS cache file, for verifiers that can't reach the hub"),
    ):
        reader = what.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}. It asks no running hub.")
        reader.add_argument(
            "-f", dest="config_file", type=Path, metavar="FILE", required=True, help="jupyterhub_config.py"
        )


def run(options: argparse.Namespace) -> int:
    """Exit code 0. Raises CasaError."""
    if options.what == "new-key":
        return _new_key(options.file, rsa=options.rsa)
    from casa_hub.hub_config import configured_hub  # noqa: PLC0415 - JupyterHub takes a while to load

    issuer = FacilityIssuer(config=configured_hub(options.config_file).config)
    for problem in issuer.check():
        raise CasaError(problem.thing, problem.problem, problem.remedy)
    now = time.time()
    if options.what == "jwks":
        print(json.dumps(issuer.jwks(now), indent=1))
        return 0
    name, content = cache_file(issuer, now)
    days = CACHE_LIFETIME // 86400
    print(f"casa-hub: for /var/cache/jwks/{name} of the verifier; valid for {days} days", file=sys.stderr)
    print(content, end="")
    return 0


def _new_key(file: Path, *, rsa: bool) -> int:
    key, content = new_private_key(rsa_bits=MIN_RSA_BITS if rsa else None)
    try:
        with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as new:
            new.write(content)
    except FileExistsError:
        raise CasaError(str(file), "exists already", "Name another file: a key is never overwritten.") from None
    except OSError as error:
        raise CasaError(str(file), f"can't be written: {error.strerror}", "Name a file that can.") from None
    print(json.dumps(key.jwk))
    return 0
