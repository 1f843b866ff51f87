"""An HTCondor client that lives long: one process that gives commands to a schedd while its token file is replaced.

Run as a program: ``condor_client.py END PAUSE``, with a server's environment. Submits a job (held), looks at it and
removes it, over and over until END (seconds since the epoch) and until ``AT_LEAST`` commands were given, PAUSE seconds
between two commands; prints how many were done and what was refused, as JSON. Nothing is tried twice.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable

#: Failures that are kept: the first ones.
_KEPT = 20
HELD = {
    "executable": "/bin/true",
    "hold": "true",
    "initialdir": "/tmp",
    "transfer_executable": "false",
    "request_cpus": "1",
    "request_memory": "16M",
    "request_disk": "1M",
}


def main(end: float, pause: float) -> None:
    import htcondor2  # noqa: PLC0415 - the tests themselves don't need it

    # One look-up and one object for all: what a notebook has in a variable.
    schedd = htcondor2.Schedd(htcondor2.Collector(os.environ["CONDOR_HOST"]).query(htcondor2.AdType.Schedd)[0])
    begin, done, failures, cluster = time.time(), 0, [], 0

    def submit() -> bool:
        nonlocal cluster
        cluster = schedd.submit(htcondor2.Submit(HELD)).cluster()
        return True

    def query() -> bool:
        return len(schedd.query(f"ClusterId == {cluster}", ["JobStatus"])) == 1

    def remove() -> bool:
        return bool(schedd.act(htcondor2.JobAction.Remove, f"ClusterId == {cluster}")["TotalSuccess"] == 1)

    commands: list[Callable[[], bool]] = [submit, query, remove]
    least, given = int(os.environ.get("AT_LEAST", "0")), 0
    while time.time() < end or given < least:
        for command in commands:
            try:
                why = "" if command() else "not done"
            except htcondor2.HTCondorException as error:
                why = str(error)
            given, done = given + 1, done + (not why)
            if why and len(failures) < _KEPT:
                failures.append([round(time.time() - begin, 2), command.__name__, why])
            time.sleep(pause)
    print(json.dumps({"done": done, "failures": failures}))


if __name__ == "__main__":
    main(float(sys.argv[1]), float(sys.argv[2]))
