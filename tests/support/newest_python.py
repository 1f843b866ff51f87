"""Prints the path of the newest Python that is supported, for a second virtual environment of the tests.

Zero-to-JupyterHub's hub image has it, with JupyterHub 5.5. Where the machine has none, Debian's is unpacked without
root; where that can't be had, this Python is named, or it is an error if CASA_HUB_REQUIRE_PEERS is set.
"""

from __future__ import annotations

import os
import shutil
import sys

from casa_hub.demo.packages import Unavailable, unpack

NEWEST = "python3.14"


def main() -> int:
    def tell(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    found = shutil.which(NEWEST)
    if found is None:
        try:
            found = str(unpack([NEWEST, f"{NEWEST}-venv"], suite="sid", progress=tell).program(NEWEST))
        except Unavailable as error:
            tell(str(error))
            if os.environ.get("CASA_HUB_REQUIRE_PEERS") == "1":
                return 1
            tell(f"The tests with JupyterHub 5.5 run with {sys.executable} instead.")
            found = sys.executable
    print(found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
