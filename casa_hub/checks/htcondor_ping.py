"""A separate program, because HTCondor's client reads its settings once per process: as whom does a pool know a token?

Arguments: the collector, the schedd's name (or ""). The token is in the directory that the environment names.
Prints a JSON object; exit code 3 if HTCondor's client isn't installed.
"""

from __future__ import annotations

import json
import sys


def main() -> None:
    try:
        import htcondor2  # noqa: PLC0415
    except ImportError:
        raise SystemExit(3) from None
    collector, name = sys.argv[1:]
    answer: dict[str, object] = {}
    try:
        answer["step"] = "collector"
        schedds = htcondor2.Collector(collector).query(htcondor2.AdType.Schedd, projection=[])
        answer["schedds"] = [str(ad["Name"]) for ad in schedds]
        chosen = [ad for ad in schedds if name in ("", ad["Name"])]
        if chosen:
            answer["step"] = "schedd"
            ad = htcondor2.ping(chosen[0], "WRITE")
            answer["authorized"] = bool(ad.get("AuthorizationSucceeded"))
            answer["method"] = str(ad.get("AuthMethods"))
            answer["user"] = str(ad.get("MyRemoteUserName"))
    except htcondor2.HTCondorException as error:
        answer["error"] = str(error)
    sys.stdout.write(json.dumps(answer))


if __name__ == "__main__":
    main()
