"""A newer token of a user goes to the user's running servers."""

from __future__ import annotations

import logging
from typing import Any

from casa_hub.errors import CasaError
from casa_hub.facility import Facility
from casa_hub.identity.verdicts import Verdict
from casa_hub.membership.member import Member

log = logging.getLogger(__name__)


async def tokens_changed(user: Any, member: Member) -> None:
    """New tokens of this user are stored: servers get them, unless they came with a "no"."""
    if member.effective is not Verdict.NO:
        await hand_out_token(user)


async def hand_out_token(user: Any) -> None:
    """Give the newest token to the running servers: the old one may be dead (IAM: clearAccessTokensOnRefresh)."""
    minters = Facility.in_settings(user.settings, user.settings["config"]).minters
    names = [name for name, minter in minters.items() if minter.renewal == "token"]
    for spawner in list(user.spawners.values()):
        renew = getattr(spawner, "renew_credentials", None)
        if names and renew is not None and spawner.active and not spawner.pending:
            try:
                await renew(names)
            except CasaError as error:
                log.error("Token of %s for server %r: %s", user.name, spawner.name, error)  # noqa: TRY400
