"""Pure: what somebody reads on the hub's pages who is back after the access had ended."""

from __future__ import annotations

from casa_hub.keeper.ledger import Entry
from casa_hub.moments import when


def farewell(ended: Entry) -> str:
    """What somebody reads who is back."""
    stopped = {0: "", 1: " Your server was stopped."}.get(ended.servers, f" Your {ended.servers} servers were stopped.")
    reason = f"{ended.reason.rstrip('.')}."
    return f"You are let in again. Your access had ended at {when(ended.began)}: {reason}{stopped}"
