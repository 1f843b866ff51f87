"""What a hub's monitoring sees of us, on JupyterHub's own ``/hub/metrics``."""

from __future__ import annotations

from prometheus_client import Counter, Gauge

MINTS = Counter(
    "casa_hub_mints",
    "Credentials minted for servers, at their start and again while they run (minted, renewed, failed)",
    ["credential", "outcome"],
)
OVERDUE = Gauge(
    "casa_hub_credentials_overdue", "Credentials of running servers whose renewal has failed so far", ["credential"]
)
LIFE_LEFT = Gauge(
    "casa_hub_credential_life_left_ratio",
    "Of the life of the running servers' credentials, the part that the one nearest to its end has left",
    ["credential"],
)
UNKEPT = Gauge("casa_hub_servers_unkept", "Running servers of which nothing is known, so that nothing is renewed")
VERDICTS = Counter("casa_hub_membership_verdicts", "Answers to membership checks", ["verdict"])
HELD_BACK = Gauge(
    "casa_hub_memberships_held_back", 'Users whose "no" is held back until the operator confirms it; alarm if not 0'
)
ACCESS_ENDED = Counter("casa_hub_access_ended", "Users whose access was ended", ["why"])
LEAVING = Gauge("casa_hub_access_ending", "Users whose access is being ended, but is not yet in all parts")
