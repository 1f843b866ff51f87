"""A separate program, for the reason given in `htcondor_ping`: lists the tokens of the jobs in a schedd's queue.

Arguments: the collector, the schedd's name (or ""), and the beginning of the token ids to leave out (or "").
Prints a JSON list of pairs, public id and subject of a token.
"""

from __future__ import annotations

import json
import sys

#: A token id of `casa_hub.credentials.base.new_identifier`: ``hub/server/random``, or without hub.
IDENTIFIER = "^([^/]+/)?[a-z0-9-]+/[0-9a-f]{32}$"
#: Most jobs that are read: one job of a hub is enough to know of the hub.
_MOST = 1000


def main() -> None:
    import htcondor2  # noqa: PLC0415 - needs the extra

    collector, name, own = sys.argv[1:]
    schedds = htcondor2.Collector(collector).query(htcondor2.AdType.Schedd, projection=[])
    chosen = next(ad for ad in schedds if name in ("", ad["Name"]))
    # The schedd selects the jobs, because a queue may be long. =?= heeds the case of letters, == doesn't. An id has no
    # quote.
    wanted = f'regexp("{IDENTIFIER}", AuthTokenId)'
    if own:
        wanted += f' && !(substr(AuthTokenId, 0, {len(own)}) =?= "{own}")'
    else:  # only tokens with a hub id: this hub has none, so others without one look like its own
        wanted += ' && regexp("/.*/", AuthTokenId)'
    jobs = htcondor2.Schedd(chosen).query(wanted, ["AuthTokenId", "AuthTokenSubject"], limit=_MOST)
    tokens = {(str(ad["AuthTokenId"]), str(ad.get("AuthTokenSubject", ""))) for ad in jobs}
    sys.stdout.write(json.dumps(sorted(tokens)))


if __name__ == "__main__":
    main()
