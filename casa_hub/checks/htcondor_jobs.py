"""A program of its own, as `htcondor_ping`: which jobs in a schedd's queue were submitted with which tokens?

Arguments: the collector, the schedd's name (or ""), and what begins the token ids that aren't asked for (or "").
Prints a JSON list of pairs, public id and subject of a token.
"""

from __future__ import annotations

import json
import sys

#: A token id as `casa_hub.credentials.base.new_identifier` makes it: ``hub/server/random``, or without hub.
IDENTIFIER = "^([^/]+/)?[a-z0-9-]+/[0-9a-f]{32}$"
#: Jobs that are looked at: one tells as much of its hub as all of them.
_MOST = 1000


def main() -> None:
    import htcondor2  # noqa: PLC0415 - needs the extra

    collector, name, own = sys.argv[1:]
    schedds = htcondor2.Collector(collector).query(htcondor2.AdType.Schedd, projection=[])
    chosen = next(ad for ad in schedds if name in ("", ad["Name"]))
    # The schedd chooses, for a queue may be long. =?= minds the case of letters, == doesn't; an id has no quote in it.
    wanted = f'regexp("{IDENTIFIER}", AuthTokenId)'
    if own:
        wanted += f' && !(substr(AuthTokenId, 0, {len(own)}) =?= "{own}")'
    else:  # of hubs with a name: those without one can't be told apart
        wanted += ' && regexp("/.*/", AuthTokenId)'
    jobs = htcondor2.Schedd(chosen).query(wanted, ["AuthTokenId", "AuthTokenSubject"], limit=_MOST)
    tokens = {(str(ad["AuthTokenId"]), str(ad.get("AuthTokenSubject", ""))) for ad in jobs}
    sys.stdout.write(json.dumps(sorted(tokens)))


if __name__ == "__main__":
    main()
