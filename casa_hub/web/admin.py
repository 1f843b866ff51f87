"""The page for administrators of the hub: who is in, what servers hold, what is held back, what has happened.

To look needs JupyterHub's scope ``admin-ui``, as its own page for administrators does. To end somebody's access, to
renew, to confirm or to ignore needs ``custom:casa-hub:operate``, too, as the operators' API does
(`casa_hub.web.operations`): an operator gives it to people by a role. Each action is a form with JupyterHub's XSRF
token, and is asked back on a page of its own, so that nothing needs JavaScript.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from jupyterhub import orm
from jupyterhub.scopes import needs_scope
from sqlalchemy import or_
from sqlalchemy.exc import SQLAlchemyError
from tornado import web

from casa_hub import operator_words
from casa_hub.audit import last_events
from casa_hub.database import mended, roll_back
from casa_hub.errors import CasaError
from casa_hub.jupyterhub import HubUser
from casa_hub.keys import changed_at
from casa_hub.membership.member import Members
from casa_hub.servers.running import running_servers, shown
from casa_hub.servers.status import Survey
from casa_hub.tasks import Background, Turns, in_turns
from casa_hub.web import admin_view, operations
from casa_hub.web.frame import Pages

if TYPE_CHECKING:
    from casa_hub.authenticator import CasaOAuthenticator

#: The scope to look, and the one to act.
LOOK, OPERATE = "admin-ui", operations.SCOPE
#: Seconds after which the page says that an action goes on. A server may take half a minute to stop.
_PATIENCE = 5.0
#: Most sentences of the status that are shown at once; `casa-hub status` has all.
_MOST_SENTENCES = 100


class AdminHandler(Pages):
    """``/hub/casa/admin``."""

    authenticator: CasaOAuthenticator
    #: Actions that outlast their request.
    _background = Background()

    @property
    def members(self) -> Members:
        return self.authenticator.members

    @web.authenticated
    @needs_scope(LOOK)  # type: ignore[untyped-decorator]
    async def get(self) -> None:
        self.person()
        self.set_header("Cache-Control", "no-store")
        await asyncio.sleep(0)  # JupyterHub has had a turn to find out who asks
        turns, casa = Turns(), self.casa
        search = self.get_argument("search", "")[:100]
        names, page = await self._people(search, self.get_argument("page", "1"))
        await turns.give()
        credentials, survey = await self._servers(set(names))
        status = await operations.status(casa, survey)
        await turns.give()
        found = operator_words.to_look_at(status)
        await turns.give()
        held = [one for one in casa.mass_loss.held() if search.lower() in one.username]
        people = [self._person(name) async for name in in_turns(names)]
        contact = self.authenticator.provider_side.contact
        provider = admin_view.ProviderView(self.authenticator.preset.title, self.authenticator.issuer, contact)
        async for member in in_turns(self.members):
            provider.add(member)
        await self.show(
            HTTPStatus.OK,
            "casa_admin.html",
            may_operate=self._may_operate,
            operate_scope=OPERATE,
            search=search,
            page=page,
            rows=admin_view.ROWS,
            found=found[:_MOST_SENTENCES],
            found_more=max(len(found) - _MOST_SENTENCES, 0),
            all_well="" if found else operator_words.ALL_WELL,
            dask_secrets=operator_words.dask_secrets(status),
            issuer_keys=operator_words.issuer_keys(status),
            held=held,
            people=people,
            credentials=credentials,
            provider=provider,
            keys=await self._keys(),
            events=[admin_view.event(data) for data in last_events(casa.app)],
            routine_events=[admin_view.event(data) for data in last_events(casa.app, routine=True)],
        )

    @web.authenticated
    @needs_scope(LOOK)  # type: ignore[untyped-decorator]
    async def post(self) -> None:
        """Ask back (the field ``ask``: an action and a user, or an action for all), or do it (``action``, ``user``)."""
        self._check_operator()
        self.set_header("Cache-Control", "no-store")
        action, _, username = self.get_body_argument("ask", "", strip=False).partition(" ")
        sure = not action
        action = action or self.get_body_argument("action", "")
        if action not in admin_view.ACTIONS:
            raise web.HTTPError(HTTPStatus.BAD_REQUEST, "There is no such action")
        users = self._users(
            action, self.get_body_arguments("user", strip=False) if sure else [username] if username else None
        )
        if sure:
            told = await self._do(action, users) if users else ["Nothing is held back of them any more."]
            await self.show(HTTPStatus.OK, "casa_admin_ask.html", told=told)
        else:
            question = admin_view.question(action, users, self.members.settings)
            await self.show(HTTPStatus.OK, "casa_admin_ask.html", question=question)

    # -- who may

    @property
    def _may_operate(self) -> bool:
        return OPERATE in self.expanded_scopes

    def _check_operator(self) -> None:
        """Raises HTTPError. The XSRF token was checked before (`BaseHandler.prepare`)."""
        self.person()
        if not self._may_operate:
            raise web.HTTPError(HTTPStatus.FORBIDDEN, f"This needs the scope {OPERATE}")
        # What a browser says by itself, and no page can change. Older browsers don't say it; they have the token.
        if self.request.headers.get("Sec-Fetch-Site", "same-origin") not in {"same-origin", "none"}:
            raise web.HTTPError(HTTPStatus.FORBIDDEN, "This form was sent by another page than this hub's")

    # -- what there is

    async def _people(self, search: str, number: str) -> tuple[list[str], admin_view.Page]:
        """Names of those who have a log-in or a server, on one page. Costs two queries."""
        db = mended(self.db)
        servers = db.query(orm.Spawner.user_id).filter(orm.Spawner.server_id.is_not(None))
        people = db.query(orm.User.name).filter(
            or_(orm.User.encrypted_auth_state.is_not(None), orm.User.id.in_(servers))
        )
        if search:
            people = people.filter(orm.User.name.contains(search.lower(), autoescape=True))
        page = admin_view.Page.asked(number, people.count())
        await asyncio.sleep(0)
        found = people.order_by(orm.User.name).offset(page.first).limit(admin_view.ROWS)
        return [name for (name,) in found], page

    def _person(self, name: str) -> admin_view.PersonView:
        member = self.members.get(name)
        return admin_view.person(name, member, None if member is None else self.members.outcome(member))

    async def _servers(self, names: set[str]) -> tuple[admin_view.Credentials, Survey]:
        """What running servers hold, in full for these users, and which of them an operator should look at."""
        renewals, survey = self.casa.renewals, Survey()
        credentials = admin_view.Credentials(self.casa.facility.minters)
        async for user, spawner, running in in_turns(running_servers(self.casa.app)):
            title = shown(user.name, spawner.name, "" if running is None else running.server.username)
            held, unkept = renewals.held(spawner), renewals.unkept(spawner)
            survey.note_known(title, running, unkept, held)
            server = admin_view.ServerView(title, unkept, {one.name: one for one in held})
            credentials.add(user.name, server, keep=user.name in names)
        return credentials, survey

    async def _keys(self) -> list[admin_view.KeyView]:
        facility = self.casa.facility

        def look() -> dict[str, float | None]:
            return {setting: changed_at(path) for setting, path in facility.key_files().items()}

        # In a thread: a file may be on a file server.
        changed = await asyncio.to_thread(look)
        return [admin_view.key(setting, at, time.time()) for setting, at in changed.items()]

    # -- what is asked for

    def _users(self, action: str, names: list[str] | None) -> list[str]:
        """The names of the hub's users whom an action is for; None for all that is held back. Raises HTTPError."""
        if action in {"confirm", "ignore"}:
            held = [one.username for one in self.casa.mass_loss.held()]
            return held if names is None else [name for name in held if name in names]
        if names is None or len(names) != 1:
            raise web.HTTPError(HTTPStatus.BAD_REQUEST, "For one user at a time")
        return [self._user(names[0]).name]

    def _user(self, name: str) -> HubUser:
        user: HubUser | None = (
            self.find_user(self.authenticator.normalize_username(name)) if name.isprintable() else None
        )
        if user is None:
            raise web.HTTPError(HTTPStatus.NOT_FOUND, "This hub has no such user")
        return user

    async def _do(self, action: str, users: list[str]) -> list[str]:
        """Do it. Returns what has become of it, as sentences."""
        by, mass_loss = f"user {self.current_user.name}", self.casa.mass_loss
        match action:
            case "confirm":
                return [operator_words.confirmed({"confirmed": mass_loss.confirm(by, users)})]
            case "ignore":
                try:
                    return [operator_words.ignored({"ignored": mass_loss.ignore(by, users)})]
                except SQLAlchemyError as error:
                    roll_back(self.db)
                    self.log.error("Nothing was ignored: the hub's database failed (%s)", type(error).__name__)  # noqa: TRY400
                    return ["Nothing was ignored: the hub's database can't be written."]
            case "renew":
                return await self._patiently(self._renew(users[0], by), f"The renewal for {users[0]}")
            case _:
                reason = self.get_body_argument("reason", "")
                return await self._patiently(self._revoke(users[0], reason, by), f"The end of the access of {users[0]}")

    async def _renew(self, username: str, by: str) -> list[str]:
        return operator_words.renewed(await operations.renew(self.casa, [username], (), by))

    async def _revoke(self, username: str, reason: str, by: str) -> list[str]:
        answer = await operations.revoke(self.casa, self._user(username), reason, by)
        return [*operator_words.departed(answer), *operator_words.namesakes(answer), operator_words.CAN_COME_BACK]

    async def _patiently(self, work: Coroutine[Any, Any, list[str]], what: str) -> list[str]:
        """What came of some work, or that it goes on; it isn't ended with the request."""
        task = self._background.start(work, what)
        done, _ = await asyncio.wait({task}, timeout=_PATIENCE)
        if not done:
            return [f"{what} goes on. The page for administrators shows when it is over."]
        try:
            return task.result()
        except CasaError as error:
            return [str(error)]


handlers: list[tuple[Any, ...]] = [(r"/casa/admin", AdminHandler)]
