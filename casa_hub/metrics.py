"""The metrics, on JupyterHub's ``/hub/metrics``. docs/operations.md explains each; helm-values/monitoring has alerts.

No label ever holds the name of a user or a server.
"""

from __future__ import annotations

from prometheus_client import Counter, Gauge

#: Why a user's access was ended. `no`: the provider said "no". `outage`: it gave no answer for too long. `age`: the
#: user did not log in again in time. `revoked`: the provider revoked the sign-in. `operator`: an operator asked for it.
#: `deleted`: the user was deleted in the hub.
WHYS = ("no", "outage", "age", "revoked", "operator", "deleted")

MINTS = Counter(
    "casa_hub_mints",
    "Credentials minted for servers, at their start and again while they run (minted, renewed, failed)",
    ["credential", "outcome"],
)
#: Outcomes of `MINTS`. Each exists from the hub's start, otherwise Prometheus would not count the first failure.
OUTCOMES = ("minted", "renewed", "failed")
FETCHES = Counter(
    "casa_hub_fetches",
    "Requests for what credentials are made of, with a user's token (fetched, outage, refused, sign-in)",
    ["credential", "outcome"],
)
#: The outcome of a request that was answered as it should be.
FETCHED = "fetched"
#: Outcomes of `FETCHES`: the others are those of `casa_hub.credentials.fetching.Why`.
FETCH_OUTCOMES = (FETCHED, "outage", "refused", "sign-in")
FETCH_USERS = Gauge(
    "casa_hub_fetch_users",
    "Users by what came of the last request for what a credential is made of (fetched, outage, refused, sign-in)",
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
MISSING = Gauge(
    "casa_hub_missing",
    "Running servers that lack something: a credential or an object that could not be had so far",
    ["what"],
)
UNKEPT = Gauge("casa_hub_servers_unkept", "Running servers without a record that can be read: nothing is renewed")
VERDICTS = Counter("casa_hub_membership_verdicts", "Answers to membership checks", ["verdict"])
HELD_BACK = Gauge(
    "casa_hub_memberships_held_back",
    'Users whose "no" is held back, because the provider says it of too many at once',
)
CLIENT_REFUSED = Gauge(
    "casa_hub_memberships_client_refused",
    "Users about whom the provider refuses to speak with this hub's client, or whose groups it keeps from it",
)
ACCESS_ENDED = Counter("casa_hub_access_ended", "Users whose access was ended", ["why"])
LEAVING = Gauge("casa_hub_access_ending", "Users whose access is being ended, but is not yet in all parts")
LEFTOVERS = Gauge(
    "casa_hub_leftovers", "Pods of this hub without a living server that it may not, or could not remove by itself"
)
#: A time and no age, as Prometheus wants it: an age would stand still until the file is read again.
KEY_MODIFIED = Gauge(
    "casa_hub_key_modified_timestamp_seconds",
    "When the key file that was read last was modified, in seconds since the epoch",
    ["setting"],
)

# Each label exists from the hub's start, otherwise Prometheus would not count the first event.
for _why in WHYS:
    ACCESS_ENDED.labels(_why)
