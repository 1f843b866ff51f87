"""What each alert of the rules file fires for, and what it keeps quiet for: series as promtool reads them.

A series has one value a minute: ``0x5 1x10`` is six times 0, then eleven times 1; ``stale`` is a scrape that failed.
"""

from __future__ import annotations

from dataclasses import dataclass

#: What Prometheus itself adds to the series of a hub.
HUB = {"job": "hub", "namespace": "facility", "instance": "hub-1"}
STARTS = "jupyterhub_server_spawn_duration_seconds_count"
REQUESTS = "jupyterhub_request_duration_seconds_count"
VERDICTS = "casa_hub_membership_verdicts_total"
FETCHES, FETCH_USERS = "casa_hub_fetches_total", "casa_hub_fetch_users"
LOG_IN, CALLBACK = (f"casa_hub.web.pages.Casa{name}Handler" for name in ("Login", "Callback"))


def one(name: str, **labels: str) -> str:
    """A series of a hub."""
    condition = ", ".join(f'{key}="{value}"' for key, value in (HUB | labels).items())
    return f"{name}{{{condition}}}"


@dataclass(frozen=True)
class Case:
    alert: str
    what: str
    #: Series -> values.
    series: dict[str, str]
    #: Minutes after which the alert doesn't fire, and after which it does.
    quiet: tuple[int, ...] = ()
    fires: tuple[int, ...] = ()

    def __str__(self) -> str:
        return f"{self.alert}: {self.what}"


CASES = [
    Case(
        "CasaHubDown",
        "the hub can't be read any more",
        {one("casa_hub_servers_unkept"): "0x10 stale"},
        quiet=(10, 15),
        fires=(17, 60, 1400),
    ),
    Case(
        "CasaHubDown",
        "one of two hubs is gone",
        {
            one("casa_hub_servers_unkept"): "0x60",
            one("casa_hub_servers_unkept", namespace="other", instance="hub-2"): "0x10 stale",
        },
        quiet=(15,),
        fires=(17,),
    ),
    Case(
        "CasaHubDown",
        "one of two hubs of the same job doesn't answer",
        {
            one("casa_hub_servers_unkept"): "0x60",
            one("casa_hub_servers_unkept", instance="hub-2"): "0x10 stale",
            one("up"): "1x60",
            one("up", instance="hub-2"): "1x10 0x60",
        },
        quiet=(15,),
        fires=(17,),
    ),
    Case(
        "CasaHubDown",
        "the hub was restarted in another pod, with another version of the chart",
        {
            one("casa_hub_servers_unkept", pod="hub-a", instance="hub-a", chart="4.3"): "0x10 stale",
            one("casa_hub_servers_unkept", pod="hub-b", instance="hub-b", chart="4.4"): "_x13 0x60",
            one("up", pod="hub-a", instance="hub-a", chart="4.3"): "1x10 0 stale",
            one("up", pod="hub-b", instance="hub-b", chart="4.4"): "_x12 0 1x60",
        },
        quiet=(10, 13, 17, 40),
    ),
    Case(
        "CasaHubDown",
        "something of the same job that is no hub doesn't answer",
        {one("casa_hub_servers_unkept"): "0x60", one("up"): "1x60", one("up", instance="other"): "0x60"},
        quiet=(17,),
    ),
    Case(
        "CasaHubDown",
        "it is told once",
        {one("casa_hub_servers_unkept"): "0x10 stale", one("up"): "1x10 0x60"},
        fires=(17, 40),
    ),
    Case(
        "CasaHubNobodyCanLogIn",
        "the provider can't be reached",
        {one(REQUESTS, method="GET", handler=LOG_IN, code="503"): "_x3 1 2 3x20"},
        quiet=(4, 8),
        fires=(12,),
    ),
    Case(
        "CasaHubNobodyCanLogIn",
        "the provider doesn't take the code, and nobody has logged in since",
        {
            one(REQUESTS, method="GET", handler=CALLBACK, code="503"): "_x3 1 2 3x20",
            one(REQUESTS, method="GET", handler=CALLBACK, code="302"): "9x60",
        },
        fires=(12,),
    ),
    Case(
        "CasaHubNobodyCanLogIn",
        "others do log in",
        {
            one(REQUESTS, method="GET", handler=CALLBACK, code="503"): "0+1x30",
            one(REQUESTS, method="GET", handler=CALLBACK, code="302"): "0+1x30",
        },
        quiet=(5, 12, 25),
    ),
    Case(
        "CasaHubNobodyCanLogIn",
        "only the first ones could not begin",
        {
            one(REQUESTS, method="GET", handler=LOG_IN, code="503"): "_x3 1 2 3x20",
            one(REQUESTS, method="GET", handler=CALLBACK, code="302"): "0+1x30",
        },
        quiet=(5, 12, 25),
    ),
    Case(
        "CasaHubNobodyCanLogIn",
        "somebody is no member",
        {one(REQUESTS, method="GET", handler=CALLBACK, code="403"): "0+1x30"},
        quiet=(12, 25),
    ),
    Case(
        "CasaHubProviderSilent",
        "no answer is a yes",
        {
            one(VERDICTS, verdict="yes"): "0+9x10 90x60",
            one(VERDICTS, verdict="cant-say"): "0x10 9+9x60",
        },
        quiet=(10, 30),
        fires=(45,),
    ),
    Case(
        "CasaHubProviderSilent",
        "some answers are a yes",
        {one(VERDICTS, verdict="yes"): "0+1x60", one(VERDICTS, verdict="cant-say"): "0+9x60"},
        quiet=(10, 45),
    ),
    Case(
        "CasaHubProviderSilent",
        "nobody is asked about",
        {one(VERDICTS, verdict="yes"): "7x60", one(VERDICTS, verdict="cant-say"): "7x60"},
        quiet=(10, 45),
    ),
    Case("CasaHubHeldBack", "", {one("casa_hub_memberships_held_back"): "0x5 4x5"}, quiet=(5,), fires=(6,)),
    Case(
        "CasaHubClientRefused", "", {one("casa_hub_memberships_client_refused"): "0x5 2x20"}, quiet=(5, 10), fires=(12,)
    ),
    Case(
        "CasaHubCredentialRunsOut",
        "a macaroon wasn't renewed",
        {one("casa_hub_credential_life_left_ratio", credential="xcache"): "0.3x5 0.14x10"},
        quiet=(5, 6),
        fires=(8,),
    ),
    Case(
        "CasaHubCredentialRunsOut",
        "Dask's certificates are old",
        {one("casa_hub_credential_life_left_ratio", credential="dask"): "0.01x20"},
        quiet=(8,),
    ),
    Case(
        "CasaHubDaskRunsOut",
        "Dask's certificates are old",
        {one("casa_hub_credential_life_left_ratio", credential="dask"): "0.2x5 0.09x10"},
        quiet=(5, 6),
        fires=(8,),
    ),
    Case(
        "CasaHubDaskRunsOut",
        "a macaroon wasn't renewed",
        {one("casa_hub_credential_life_left_ratio", credential="xcache"): "0.01x20"},
        quiet=(8,),
    ),
    Case(
        "CasaHubRenewalsFail",
        "",
        {one("casa_hub_credentials_overdue", credential="htcondor"): "0x5 1x30"},
        quiet=(5, 19),
        fires=(22,),
    ),
    Case(
        "CasaHubFetchesFail",
        "the identity provider gives no usable answer to exchanges, though some tokens still live",
        {
            one(FETCH_USERS, credential="exchange:rucio", outcome="outage"): "0x5 1 2 3x90",
            one(FETCH_USERS, credential="exchange:rucio", outcome="refused"): "0x90",
            one(FETCH_USERS, credential="exchange:rucio", outcome="fetched"): "40x90",
            one(FETCHES, credential="exchange:rucio", outcome="fetched"): "0+1x5 5x90",
        },
        quiet=(5, 20, 40),
        fires=(47, 80),
    ),
    Case(
        "CasaHubFetchesFail",
        "the client may not exchange any more",
        {
            one(FETCH_USERS, credential="exchange:rucio", outcome="refused"): "0x5 2x40 9x50",
            one(FETCH_USERS, credential="exchange:rucio", outcome="fetched"): "12x60 1x40",
            one(FETCHES, credential="exchange:rucio", outcome="fetched"): "9x100",
        },
        quiet=(40, 60, 69),
        fires=(72,),
    ),
    Case(
        "CasaHubFetchesFail",
        "one person has no certificate, and nobody else asks",
        {
            one(FETCH_USERS, credential="x509", outcome="refused"): "1x120",
            one(FETCH_USERS, credential="x509", outcome="fetched"): "0x120",
            one(FETCHES, credential="x509", outcome="refused"): "0+1x120",
            one(FETCHES, credential="x509", outcome="fetched"): "0x120",
        },
        quiet=(15, 60, 110),
    ),
    Case(
        "CasaHubFetchesFail",
        "some have no certificate, and others have a proxy that lives for hours",
        {
            one(FETCH_USERS, credential="x509", outcome="refused"): "5x120",
            one(FETCH_USERS, credential="x509", outcome="fetched"): "30x120",
            one(FETCHES, credential="x509", outcome="fetched"): "30x120",
        },
        quiet=(15, 60, 110),
    ),
    Case(
        "CasaHubFetchesFail",
        "some have no certificate, and others are given theirs",
        {
            one(FETCH_USERS, credential="x509", outcome="refused"): "5x120",
            one(FETCH_USERS, credential="x509", outcome="fetched"): "2x120",
            one(FETCHES, credential="x509", outcome="fetched"): "0+1x120",
        },
        quiet=(15, 60, 110),
    ),
    Case(
        "CasaHubFetchesFail",
        "another service gives nothing, too",
        {
            one(FETCH_USERS, credential="exchange:rucio", outcome="outage"): "3x60",
            one(FETCHES, credential="exchange:rucio", outcome="fetched"): "0+1x60",
            one(FETCHES, credential="exchange:eos", outcome="fetched"): "0x60",
        },
        quiet=(15, 50),
    ),
    Case(
        "CasaHubObjectsMissing",
        "a Service can't be made",
        {one("casa_hub_missing", what="Service"): "0x5 1x30"},
        quiet=(5, 19),
        fires=(22,),
    ),
    Case(
        "CasaHubObjectsMissing",
        "somebody can't have a credential",
        {one("casa_hub_missing", what="xcache"): "1x60"},
        quiet=(22, 50),
    ),
    Case("CasaHubServersUnkept", "", {one("casa_hub_servers_unkept"): "0x5 3x1500"}, quiet=(5, 1400), fires=(1460,)),
    Case("CasaHubAccessNotEnded", "", {one("casa_hub_access_ending"): "0x5 1x20"}, quiet=(5, 14), fires=(17,)),
    Case(
        "CasaHubManyLeave",
        "six within an hour, for several reasons",
        {
            one("casa_hub_access_ended_total", why="no"): "0x5 3x60",
            one("casa_hub_access_ended_total", why="age"): "0x5 3x60",
        },
        quiet=(5, 70),
        fires=(8,),
    ),
    Case(
        "CasaHubManyLeave",
        "three of each of two hubs",
        {
            one("casa_hub_access_ended_total", why="no"): "0x5 3x60",
            one("casa_hub_access_ended_total", why="no", namespace="other", instance="hub-2"): "0x5 3x60",
        },
        quiet=(8,),
    ),
    Case("CasaHubLeftovers", "", {one("casa_hub_leftovers"): "0x5 2x90"}, quiet=(5, 60), fires=(67,)),
    # The clock of these tests begins at 0.
    Case(
        "CasaHubKeyOld",
        "331 days",
        {one("casa_hub_key_modified_timestamp_seconds", setting="XCache.key_file"): f"{-331 * 86400}x10"},
        fires=(1,),
    ),
    Case(
        "CasaHubKeyOld",
        "329 days",
        {one("casa_hub_key_modified_timestamp_seconds", setting="XCache.key_file"): f"{-329 * 86400}x10"},
        quiet=(1,),
    ),
    Case(
        "CasaHubKeyOld",
        "a key of the issuer, which has an alert of its own",
        {one("casa_hub_key_modified_timestamp_seconds", setting="FacilityIssuer.keys: 1.pem"): f"{-331 * 86400}x10"},
        quiet=(1,),
    ),
    Case(
        "CasaHubIssuerKeyOld",
        "151 days, and one of last year",
        {
            one("casa_hub_key_modified_timestamp_seconds", setting="FacilityIssuer.keys: 1.pem"): f"{-331 * 86400}x10",
            one("casa_hub_key_modified_timestamp_seconds", setting="FacilityIssuer.keys: 2.pem"): f"{-151 * 86400}x10",
        },
        fires=(1,),
    ),
    Case(
        "CasaHubIssuerKeyOld",
        "the next one is there",
        {
            one("casa_hub_key_modified_timestamp_seconds", setting="FacilityIssuer.keys: 1.pem"): f"{-200 * 86400}x10",
            one("casa_hub_key_modified_timestamp_seconds", setting="FacilityIssuer.keys: 2.pem"): "0x10",
        },
        quiet=(1,),
    ),
    Case(
        "CasaHubStartsFail",
        "JupyterHub 6, half of them",
        {
            one(STARTS, status="error"): "0+1x10 10x30",
            one(STARTS, status="failure"): "0x40",
            one(STARTS, status="success"): "0+1x10 10x30",
        },
        quiet=(1, 30),
        fires=(6,),
    ),
    Case(
        "CasaHubStartsFail",
        "JupyterHub 6, users who are refused",
        {
            one(STARTS, status="error"): "0x40",
            one(STARTS, status="failure", reason="throttled"): "0+9x40",
            one(STARTS, status="failure"): "0+9x40",
            one(STARTS, status="success"): "0+1x40",
        },
        quiet=(6, 20),
    ),
    Case(
        "CasaHubStartsFail",
        "JupyterHub 5, half of them",
        {one(STARTS, status="failure"): "0+1x10 10x30", one(STARTS, status="success"): "0+1x10 10x30"},
        quiet=(1, 30),
        fires=(6,),
    ),
    Case(
        "CasaHubStartsFail",
        "JupyterHub 5, users who have to wait",
        {one(STARTS, status="throttled"): "0+9x40", one(STARTS, status="failure"): "0x40"},
        quiet=(6, 20),
    ),
    Case(
        "CasaHubStartsFail",
        "a few of many",
        {one(STARTS, status="error"): "0+1x40", one(STARTS, status="success"): "0+9x40"},
        quiet=(6, 20),
    ),
    Case(
        "CasaHubStartsFail",
        "the only two",
        {one(STARTS, status="error"): "0x5 1 2x30", one(STARTS, status="success"): "0x40"},
        quiet=(8, 12),
    ),
]
