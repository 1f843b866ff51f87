"""What tasks do at the workers of a Dask cluster (`tests.peers.test_dask_fresh_token`). Workers import it alone."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from tests.support.xrootd_client import Reader, content_of, path_of


def held() -> str:
    """What programs at this worker find in their token file."""
    return Path(os.environ["BEARER_TOKEN_FILE"]).read_text()


def watch(last: str) -> list[str]:
    """What they find, one after the other, until it is `last`."""
    seen = [held()]
    end = time.monotonic() + 100
    while seen[-1] != last and time.monotonic() < end:
        now = held()
        if now != seen[-1]:
            seen.append(now)
        time.sleep(0.002)
    return seen


def read(ca_file: str, seconds: float) -> dict[str, Any]:
    """Open and read files of an XCache for some time: how often, and all that was refused."""
    reader, count, failures = Reader(ca_file), 0, []
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        answer = reader.authz(path_of(count))
        if answer != content_of(count):
            failures.append(str(answer))
        count += 1
        time.sleep(0.05)
    return {"read": count, "failures": failures}


async def look(dask_scheduler: Any) -> bool:
    """At the scheduler: look at the token file now. Returns whether a new worker would get a token."""
    await dask_scheduler.periodic_callbacks["casa_hub-fresh-token"].callback()
    return "casa_hub-fresh-token" in dask_scheduler.worker_plugins
