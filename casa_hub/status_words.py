"""Pure: what `casa-hub status` and the page for administrators say of a hub, in the same words.

Both make the sentences from the hub's answer to ``GET /hub/api/casa-hub/status`` (`casa_hub.web.operations`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

from casa_hub.moments import when

ALL_WELL = "All is well."


def to_look_at(answer: Mapping[str, Any]) -> list[str]:
    """A sentence for each thing that an operator should look at; empty if all is well."""
    return [*_memberships(answer), *_servers(answer)]


def dask_secrets(answer: Mapping[str, Any]) -> list[str]:
    """How many servers use each Dask secret."""
    return [
        f"Dask secret {secret}: in use by {count} servers." for secret, count in sorted(answer["dask_secrets"].items())
    ]


def _memberships(answer: Mapping[str, Any]) -> Iterator[str]:
    for held in answer["held_back"]:
        ignored = held.get("ignored_until", "")  # hubs of earlier versions don't have the field
        until = f", ignored until {_when(ignored)}" if ignored else ""
        yield f"Held back since {_when(held['since'])}{until}: {held['user']}: {held['reason']}"
    if answer["held_back"]:
        yield "If these are true, end their access: casa-hub confirm"
    refused = Counter(user["reason"] for user in answer["client_refused"])
    for reason, count in sorted(refused.items()):
        yield f"The membership of {count} users can't be checked: {reason}"


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


def _when(moment: str) -> str:
    """A time of the API in the form for people."""
    return when(datetime.fromisoformat(moment))
