"""Pure: what the operator's commands and the page for administrators say, in the same words.

Both make the sentences from the answers of the operators' API (`casa_hub.web.operations`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

from casa_hub.moments import when

ALL_WELL = "All is well."
PUT_BACK = "Put the file of the key before it back, if that wasn't stolen."
NOTHING_HELD = "Nothing is held back."


def to_look_at(answer: Mapping[str, Any]) -> list[str]:
    """A sentence for each thing that an operator should look at, by the status; empty if all is well."""
    return [*_memberships(answer), *_fetches(answer), *_servers(answer), *_issuer(answer)]


def dask_secrets(answer: Mapping[str, Any]) -> list[str]:
    """How many servers use each Dask secret."""
    return [
        f"Dask secret {secret}: in use by {count} servers." for secret, count in sorted(answer["dask_secrets"].items())
    ]


def issuer_keys(answer: Mapping[str, Any]) -> list[str]:
    """What each key of the facility's issuer is for."""
    return [f"{state['key']}: {what_for(state)}." for state in answer.get("issuer_keys", [])]


def what_for(state: Mapping[str, Any]) -> str:
    """What one key of the issuer is for, as a predicate."""
    if state["signs"]:
        return "signs"
    if state["signs_from"]:
        return f"is published, and signs from {_when(state['signs_from'])}"
    return "is published, and does not sign"


def _memberships(answer: Mapping[str, Any]) -> Iterator[str]:
    for held in answer["held_back"]:
        ignored_until = held.get("ignored_until", "")  # hubs of earlier versions don't have the field
        until = f", ignored until {_when(ignored_until)}" if ignored_until else ""
        yield f"Held back since {_when(held['since'])}{until}: {held['user']}: {held['reason']}"
    if answer["held_back"]:
        yield "If these are true, end their access: casa-hub confirm"
    refused = Counter(user["reason"] for user in answer["client_refused"])
    for reason, count in sorted(refused.items()):
        yield f"The membership of {count} users can't be checked: {reason}"


#: Why something can't be fetched (`casa_hub.credentials.fetching.Why`), before ": credential for 3 users".
_WHY = {"refused": "Refused", "outage": "No usable answer", "sign-in": "Refused, because of the sign-in"}
#: How a remedy for users begins; the operator reads what follows.
_TELL = "Tell the operator of this hub"


def _fetches(answer: Mapping[str, Any]) -> Iterator[str]:
    for one in answer.get("fetches", []):  # hubs of earlier versions don't have it
        users = f"{one['users']} user{'s' if one['users'] > 1 else ''}"
        told = f"{_WHY[one['why']]}: {one['credential']} for {users}. {one['problem']}. {for_operator(one['remedy'])}"
        yield told.rstrip()


def for_operator(remedy: str) -> str:
    """A remedy for users, for the operator, to whom it may send them; "" if it says nothing else.

    "Tell the operator of this hub: the client needs ..." -> "The client needs ..."
    """
    told = remedy.removeprefix(_TELL).lstrip(":. ") if remedy.startswith(_TELL) else remedy
    first = told.partition(" ")[0]
    return f"{told[:1].upper()}{told[1:]}" if first.isalpha() else told  # a setting or a scope stays as it is


def _servers(answer: Mapping[str, Any]) -> Iterator[str]:
    for overdue in answer["overdue"]:
        until = f", which is valid until {_when(overdue['until'])}" if overdue["until"] else ""
        yield f"Not renewed: {overdue['credential']} of {overdue['server']}{until}: {overdue['why']}"
    for thing in answer.get("missing", []):  # nor this one
        yield f"Missing, and tried again: {thing['what']} of {thing['server']}: {thing['why']}"
    for server, why in sorted(answer["unkept"].items()):
        yield f"Not renewed: all credentials of {server}: {why}. Restart the server to mend it."
    for server, why in sorted(answer["unsure"].items()):
        yield f"Unknown: the credentials of {server} can't be read now: {why}"


def departed(answer: Mapping[str, Any]) -> list[str]:
    """What has become of the end of somebody's access."""
    servers = [f"server {name}" if name else "the default server" for name in answer["servers"]]
    stopped = ", ".join(servers) or "nothing"
    told = f"{answer['user']}: access ended; stopped: {stopped}; tokens deleted: {answer['tokens']}."
    return [told, *(f"Not yet: {sentence}" for sentence in answer["still"])]


def namesakes(answer: Mapping[str, Any]) -> list[str]:
    """Who else is the same person."""
    if not answer["also"]:
        return []
    return [f"The same person has other user names here, which keep their access: {', '.join(answer['also'])}"]


CAN_COME_BACK = "A user who is still a member can log in again. To prevent that: CasaOAuthenticator.blocked_users."


def renewed(answer: Mapping[str, Any]) -> list[str]:
    """What has become of a renewal."""
    failed = [f"{server}: {why}" for server, why in sorted(answer["failed"].items())]
    return [f"Renewed: {len(answer['renewed'])} servers.", *failed]


def confirmed(answer: Mapping[str, Any]) -> str:
    """Whose access ends, of those who were held back."""
    return f"Access ends: {', '.join(answer['confirmed'])}." if answer["confirmed"] else NOTHING_HELD


def ignored(answer: Mapping[str, Any]) -> str:
    """Whose access goes on, of those who were held back."""
    return f"Access goes on for now: {', '.join(answer['ignored'])}." if answer["ignored"] else NOTHING_HELD


def _issuer(answer: Mapping[str, Any]) -> Iterator[str]:
    if why := none_signs(answer):
        yield f"No key of the facility's issuer signs now, so no token can be made: {why}. {PUT_BACK}"


def none_signs(answer: Mapping[str, Any]) -> str:
    """When the first key of the issuer signs, if none does now; "" if one does, or if there is no issuer."""
    states = answer.get("issuer_keys", [])
    if not states or any(state["signs"] for state in states):
        return ""
    return f"the first one signs from {_when(min(state['signs_from'] for state in states))}"


def _when(moment: str) -> str:
    """A time of the API in the form for people."""
    return when(datetime.fromisoformat(moment))
