"""What is kept of each user's last log-in: in JupyterHub's auth state, and in memory what the database didn't take."""

from __future__ import annotations

import logging
import math
from collections.abc import Collection, Mapping
from dataclasses import replace
from datetime import UTC, datetime

from sqlalchemy.exc import SQLAlchemyError

from casa_hub.database import mended, roll_back
from casa_hub.identity.discovery import same_issuer
from casa_hub.identity.oidc import Issuer
from casa_hub.identity.session import Kept, Session
from casa_hub.identity.verdicts import Verdict
from casa_hub.jupyterhub import HubUser
from casa_hub.membership.member import UNASKED, Members, Standing

log = logging.getLogger(__name__)


class LogIns:
    """Lives on the hub's event loop. Its users are JupyterHub's."""

    def __init__(self, members: Members, issuer: Issuer, technical: Collection[str] = ()) -> None:
        """`technical`: names of users who need no log-in; their standing is always "yes"."""
        self.members = members
        self.issuer = issuer
        self._technical = technical

    async def session(self, user: HubUser) -> Session | None:
        """What is stored of a user's last log-in."""
        member = self.members[user.name]
        async with member.saving:
            stored = await self.stored(user)
        unsaved = member.unsaved
        if unsaved is None or stored is None or unsaved.id != stored.id:
            return stored
        return replace(unsaved, fetched=stored.fetched)

    def is_of_this_provider(self, session: Session) -> bool:
        """Whether a log-in was at the identity provider that this hub has now: only that one may see its tokens."""
        return same_issuer(session.issuer, self.issuer.client.issuer)

    async def stored(self, user: HubUser) -> Session | None:
        """As `session`, for who holds `Member.saving`, and without what the hub's database didn't take."""
        mended(user.db)
        return Session.from_auth_state(await user.get_auth_state())

    async def known(self, user: HubUser) -> Standing:
        """The last verdict, or what the hub's database knows before the first; asks nobody."""
        if user.name in self._technical:
            return Standing(Verdict.YES, self.members.now(), "", self.members.now())
        member = self.members[user.name]
        if member.standing is not None:
            return member.standing
        session = await self.session(user)
        if member.standing is None:  # also after the session was read
            member.standing = (
                UNASKED
                if session is None
                else replace(UNASKED, last_yes=session.last_yes, session_id=session.id, due_at=due_at(session))
            )
        return member.standing

    async def save(self, user: HubUser, session: Session) -> None:
        """Store newer tokens of a log-in, unless there is a later log-in.
        Raises SQLAlchemyError if the database didn't take it; this process knows it all the same.
        """
        member = self.members[user.name]
        try:
            async with member.saving:
                stored = await self.stored(user)
                if stored is not None and stored.id == session.id:
                    if not stored.refresh_token:  # a log-out at the provider has dropped it during a refresh
                        session = replace(session, refresh_token="")
                    # Both may have changed since this session was read: a site's own part, and what was fetched.
                    latest = replace(session, others=stored.others, fetched=stored.fetched)
                    await user.save_auth_state(latest.to_auth_state())
                else:
                    log.info("Tokens of an earlier log-in of %s are dropped: there is a newer one", user.name)
        except SQLAlchemyError:
            roll_back(user.db)  # or else nobody could use the hub's session any more
            member.unsaved = session
            raise
        member.unsaved = None

    async def keep(self, user: HubUser, session_id: str, fetched: Mapping[str, Kept]) -> None:
        """Store what was fetched with a log-in's token, unless there is a later log-in. Drops what has expired.
        If the database doesn't take it, the log says so, and it is fetched again when it is needed.
        """
        now = datetime.fromtimestamp(self.members.now(), UTC)
        try:
            async with self.members[user.name].saving:
                stored = await self.stored(user)
                if stored is None or stored.id != session_id:
                    return
                kept = {name: one for name, one in stored.fetched.items() if one.fetched.expires_at > now}
                await user.save_auth_state(replace(stored, fetched={**kept, **fetched}).to_auth_state())
        except SQLAlchemyError as error:
            roll_back(user.db)
            log.error("What was fetched for %s can't be stored (%s)", user.name, type(error).__name__)  # noqa: TRY400

    async def forget(self, user: HubUser, session_id: str) -> bool:
        """Drop what is stored of a log-in, unless there is a later one. Returns whether none is stored any more."""
        member = self.members[user.name]
        async with member.saving:
            session = await self.stored(user)
            last = session is None or session.id == session_id
            if last:
                await user.save_auth_state(None)
        if member.standing is not None and member.standing.session_id == session_id:
            member.standing = None
        if member.unsaved is not None and member.unsaved.id == session_id:
            member.unsaved = None
        return last


def due_at(session: Session) -> float:
    """When a session's access token should be replaced. One whose life isn't known is replaced at each asking."""
    return math.inf if not session.refresh_token or session.due_at is None else session.due_at
