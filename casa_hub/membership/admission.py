"""What a person may do at this moment: each request to the hub, each start of a server, and what the pages say."""

from __future__ import annotations

from collections.abc import Collection
from contextvars import ContextVar
from typing import Any

from casa_hub.errors import CasaError
from casa_hub.identity.verdicts import Verdict
from casa_hub.jupyterhub import HubUser
from casa_hub.membership.member import Access, Member, Standing
from casa_hub.membership.recheck import FRESH, Recheck
from casa_hub.membership.tables import Entry
from casa_hub.moments import when
from casa_hub.text import sentence

#: Seconds that a page waits for the identity provider while the last "yes" still counts.
PATIENCE = 2.0
#: Seconds for which somebody who is back is told why the access had ended.
_TOLD = 86400.0

#: For a page on which nobody is logged in, because this request's cookie isn't enough any more.
NOTICE: ContextVar[str] = ContextVar("casa_notice", default="")


class MembershipError(CasaError):
    """A spawn is refused because the user is no member, or nobody can say so."""

    def __init__(self, thing: str, problem: str, remedy: str, *, later: bool = False) -> None:
        """`later`: whether the same may be allowed in a few minutes, without anybody's doing."""
        super().__init__(thing, problem, remedy)
        self.later = later

    @property
    def jupyterhub_message(self) -> str:
        return f"{self.problem}. {self.remedy}".rstrip()


class Admission:
    """Lives on the hub's event loop. Its users are JupyterHub's."""

    def __init__(self, recheck: Recheck, technical: Collection[str]) -> None:
        """`technical`: names of users who may have servers, but never a browser session."""
        self._recheck = recheck
        self._members = recheck.members
        self._technical = technical

    async def of_request(self, user: HubUser, handler: Any) -> bool:
        """Whether this user's page or API request goes on; asked again every `Keeper.recheck_interval`."""
        max_age = self._members.settings.recheck_interval
        standing = await self._recheck.of(user, max_age=max_age, patience=PATIENCE)
        by_own_cookie = _by_own_cookie(user, handler)
        if user.name in self._technical and by_own_cookie:
            return False  # never a browser session, however it came about
        access = self._members.outcome(self._members[user.name], standing).access
        if access is not Access.ON:
            NOTICE.set(self.notice(user))  # for the page that asks for the log-in, where nobody is logged in
        # A cookie can be sent to a new log-in. A token can't: it goes on while the membership counts.
        return access is Access.ON or (access is Access.LOG_IN and not by_own_cookie)

    async def of_start(self, user: HubUser) -> Standing:
        """The membership before a spawn: a "yes" younger than `FRESH` counts.
        Raises MembershipError with what the user should do.
        """
        standing = await self._recheck.of(user, max_age=FRESH, for_server=True)
        member = self._members[user.name]
        ending = member.ending(standing.session_id)
        if ending:
            raise MembershipError(user.name, ending.rstrip("."), "Log in again when all of it has ended")
        if not self._members.outcome(member, standing).may_start:
            remedy = {
                Verdict.NO: "Ask the administrators of this hub" if standing.decision is None else "",  # it says itself
                Verdict.LOG_IN_AGAIN: "Log in again",
            }.get(standing.verdict, "Try again in a few minutes")
            later = standing.verdict is Verdict.CANT_SAY
            raise MembershipError(user.name, standing.reason.rstrip("."), remedy, later=later)
        return standing

    def notice(self, user: HubUser) -> str:
        """What the hub's pages tell this user about the membership; "" if there is nothing to tell."""
        member = self._members.get(user.name)
        if member is None or member.standing is None:
            return ""
        text = self._members.outcome(member).notice
        if text or member.standing.verdict is not Verdict.YES:  # who is refused isn't let in again
            return text
        self._forget_what_was_told(member)
        return "" if member.last_revocation is None else farewell(member.last_revocation)

    def _forget_what_was_told(self, member: Member) -> None:
        """Whoever is back reads of the end of the access for one day."""
        if member.last_revocation is not None:
            member.told_at = member.told_at or self._members.now()
            if self._members.now() - member.told_at > _TOLD:
                member.last_revocation = member.told_at = None


def farewell(ended: Entry) -> str:
    """What somebody reads who is back."""
    stopped = {0: "", 1: " Your server was stopped."}.get(ended.servers, f" Your {ended.servers} servers were stopped.")
    return f"You are let in again. Your access had ended at {when(ended.began)}: {sentence(ended.reason)}{stopped}"


def _by_own_cookie(user: HubUser, handler: Any) -> bool:
    """Whether a request comes from this user's own browser. JupyterHub 5 asks before it notes who it is."""
    if handler is None or getattr(handler, "_token_authenticated", False):
        return False
    return getattr(handler, "_jupyterhub_user", user) is user
