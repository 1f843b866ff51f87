"""An identity provider for tests: oidc-provider-mock, extended by behaviour of real providers.

It runs in a thread of the test, on loopback, and asks for no password: everybody can log in as anybody. The extensions
are around the mock, which is unchanged: PKCE is verified, refresh tokens can rotate, the groups can be frozen in the
access token as INDIGO IAM does, access tokens are exchanged for other ones (RFC 8693), and any answer can be replaced
by a recorded one.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import io
import json
import logging
import secrets
import threading
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import timedelta
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qs, urlencode

import werkzeug.serving

from casa_hub.demo.identity_provider import EXCHANGE, client_of, exchange, put_user

with warnings.catch_warnings(record=True):  # warnings about its own libraries
    import oidc_provider_mock

__all__ = ["EXCHANGE", "Change", "IdP"]

Change = Callable[[dict[str, Any]], dict[str, Any]]

#: Secrets in the token endpoint's answers (RFC 6749, 5.1) and requests.
_TOKENS = ("access_token", "refresh_token", "id_token")
_REDEEMABLE = ("code", "code_verifier", "refresh_token", "subject_token")


class IdP:
    """The identity provider. Its attributes change its behaviour while it runs."""

    def __init__(self) -> None:
        self.app = oidc_provider_mock.app(access_token_max_age=timedelta(seconds=3600))
        #: Path or grant type -> event for which its requests wait, to show time-outs and races.
        self.hold: dict[str, threading.Event] = {}
        #: Set when a held request has arrived.
        self.arrived = threading.Event()
        #: Forms of the requests that are or were held.
        self.held: list[dict[str, str]] = []
        #: Refresh tokens that were revoked (RFC 7009).
        self.revoked: list[str] = []
        self.authorization_requests: list[dict[str, str]] = []
        self.token_requests: list[dict[str, str]] = []
        self.token_answers: list[dict[str, Any]] = []
        self._asked_scope = ""
        self._challenges: dict[str, str] = {}
        self._aliases: dict[str, str] = {}
        self._snapshots: dict[str, dict[str, Any]] = {}
        self._owners: dict[str, str] = {}
        self._server: werkzeug.serving.BaseWSGIServer | None = None
        self.reset()

    def reset(self) -> None:
        """Reset the behaviour; tokens and users stay."""
        for event in self.hold.values():
            event.set()
        self.hold.clear()
        self.arrived.clear()
        self.requests: Counter[str] = Counter()
        #: Path -> (status, body as JSON value or text) or a WSGI application, instead of the provider's own answer.
        self.answers: dict[str, Any] = {}
        #: (status, body), with which every refresh is refused.
        self.refresh_answer: tuple[int, Any] | None = None
        #: Subject -> the same, for refreshes of this subject; and answers of userinfo for this subject.
        self.refresh_answers: dict[str, tuple[int, Any]] = {}
        self.userinfo_answers: dict[str, Any] = {}
        #: Audience -> the same, for exchanges; "" for those that name none.
        self.exchange_answers: dict[str, tuple[int, Any]] = {}
        #: Seconds that exchanged tokens live, by what they say.
        self.exchange_life = 3600
        #: Whether exchanged tokens are no JSON Web Tokens.
        self.exchange_opaque = False
        #: Path of token endpoint, userinfo, discovery or key set, or `EXCHANGE` -> function that changes the answer.
        self.change: dict[str, Change] = {}
        #: Whether a refresh token can be used only once.
        self.rotate = False
        #: Lifetime of refresh tokens in seconds, told as Keycloak does (``refresh_expires_in``); None tells nothing.
        #: The mock itself accepts a token until a test refuses it (`refresh_answer`).
        self.refresh_life: float | None = None
        #: Whether userinfo shows the claims of the time when the access token was made.
        self.frozen = False
        #: Number of codes that were redeemed with a wrong or missing PKCE verifier.
        self.pkce_failures = 0

    @contextlib.contextmanager
    def holding(self, what: str) -> Iterator[threading.Event]:
        """A context in which requests to a path, or with a grant type, wait until its end or until the event is set."""
        self.arrived.clear()
        event = self.hold[what] = threading.Event()
        try:
            yield event
        finally:
            event.set()
            self.hold.pop(what, None)

    @property
    def issuer(self) -> str:
        """Its URL, for the hub's configuration; known only while the provider runs."""
        assert self._server is not None, "the identity provider doesn't run"
        return f"http://localhost:{self._server.server_port}"

    def put_user(self, sub: str, **claims: Any) -> None:
        """Let a subject log in. From now on userinfo and ID tokens have these claims for it.

        For claims whose names Python doesn't allow: ``put_user("1234", **{"wlcg.groups": ["/cms"]})``.
        """
        put_user(self.app, sub, claims)

    def owner(self, token: str) -> str:
        """The subject of an access or a refresh token."""
        return str(self._snapshots[token]["sub"]) if token in self._snapshots else self._owners.get(token, "")

    def revoke(self, sub: str) -> None:
        """End this user's session, and with it all tokens."""
        with self.app.test_client() as client:
            client.post(f"/users/{sub}/revoke-tokens")

    def secrets(self) -> set[str]:
        """All secrets that it gave to a hub or got from one."""
        found = {str(answer[name]) for answer in self.token_answers for name in _TOKENS if answer.get(name)}
        return found | {form[name] for form in self.token_requests for name in _REDEEMABLE if form.get(name)}

    @contextlib.contextmanager
    def running(self) -> Iterator[IdP]:
        """A context in which the provider listens on a free port of loopback."""
        for chatty in ("werkzeug", "oidc_provider_mock"):
            logging.getLogger(chatty).setLevel(logging.ERROR)
        self._server = werkzeug.serving.make_server("localhost", 0, self._wsgi, threaded=True)
        thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            for event in self.hold.values():
                event.set()
            self._server.shutdown()
            thread.join(10)
            self._server.server_close()

    # -- around the mock ----------------------------------------------------------------------------------------

    def _wsgi(self, environ: dict[str, Any], start_response: Any) -> Any:
        path = environ["PATH_INFO"]
        self.requests[path] += 1
        query = _flat(environ.get("QUERY_STRING", ""))
        form: dict[str, str] = {}
        if environ["REQUEST_METHOD"] == "POST":
            body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            form = _flat(body.decode())
            environ["wsgi.input"] = io.BytesIO(body)
        for event in (self.hold.get(path), self.hold.get(form.get("grant_type", ""))):
            if event is not None:
                self.held.append(form)
                self.arrived.set()
                event.wait(120)
        if path == "/oauth2/token":
            self.token_requests.append(dict(form))
            self.requests[form.get("grant_type", "")] += 1
            exchanges, client_id = form.get("grant_type") == EXCHANGE, client_of(form, environ)
            own = self._exchange(form, client_id) if exchanges else self._refusal(form)
            if own is not None:
                return _reply(start_response, *own)
            _replace_form(environ, form)
        answer = self.answers.get(path)
        if path == "/oauth2/revoke" and answer is None:
            self.revoked.append(form["token"])
            return _reply(start_response, 200, {})
        if path == "/userinfo":
            owner = self.owner(environ.get("HTTP_AUTHORIZATION", "").removeprefix("Bearer "))
            answer = self.userinfo_answers.get(owner, answer)
        if answer is not None:
            return answer(environ, start_response) if callable(answer) else _reply(start_response, *answer)
        if path == "/oauth2/authorize":
            self.authorization_requests.append(query)
            self._asked_scope = query.get("scope", "")
        return self._pass_on(environ, start_response, path, query, form)

    def _refusal(self, form: dict[str, str]) -> tuple[int, Any] | None:
        """The refusal of a token request that a real provider would refuse, or None.

        Replaces a rotated refresh token in the form by the mock's own.
        """
        if form.get("grant_type") != "refresh_token":
            if self._pkce_holds(form):
                return None
            self.pkce_failures += 1
            return 400, {"error": "invalid_grant", "error_description": "PKCE"}
        if form["refresh_token"] in self.revoked:
            return 400, {"error": "invalid_grant", "error_description": "revoked"}
        answer = self.refresh_answers.get(self.owner(form["refresh_token"]))
        if answer is not None:
            return answer
        if self.refresh_answer is None and (self.rotate or form["refresh_token"] in self._aliases):
            real = self._aliases.pop(form["refresh_token"], None)
            if real is None:
                return 400, {"error": "invalid_grant", "error_description": "used twice"}
            form["refresh_token"] = real
        return self.refresh_answer

    def _exchange(self, form: dict[str, str], client_id: str) -> tuple[int, Any]:
        """The answer to a token exchange: for a living access token of somebody, one for another audience."""
        audience = form.get("audience", "")
        if client_id and audience in self.exchange_answers:
            return self.exchange_answers[audience]
        status, answer = exchange(self.app, self.issuer, form, client_id, life=self.exchange_life)
        if status != HTTPStatus.OK:
            return status, answer
        if self.exchange_opaque:
            answer["access_token"] = secrets.token_urlsafe(24)
        answer = self.change.get(EXCHANGE, dict)(answer)
        self.token_answers.append(answer)
        return status, answer

    def _pkce_holds(self, form: dict[str, str]) -> bool:
        digest = hashlib.sha256(form.get("code_verifier", "").encode()).digest()
        challenge = base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
        return self._challenges.pop(form.get("code", ""), None) == challenge

    def _pass_on(
        self, environ: dict[str, Any], start_response: Any, path: str, query: dict[str, str], form: dict[str, str]
    ) -> Any:
        caught: dict[str, Any] = {}

        def catch(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> None:  # noqa: ARG001 - WSGI's
            caught.update(status=status, headers=headers)

        result = self.app.wsgi_app(environ, catch)
        body = b"".join(result)
        headers = caught["headers"]
        if path == "/oauth2/authorize" and caught["status"].startswith("302"):
            location = dict(headers)["Location"]
            code = _flat(location.partition("?")[2]).get("code", "")
            self._challenges[code] = query.get("code_challenge", "")
        if caught["status"].startswith("200") and dict(headers).get("Content-Type", "").startswith("application/json"):
            document = json.loads(body)
            if path == "/.well-known/openid-configuration":
                document["revocation_endpoint"] = f"{self.issuer}/oauth2/revoke"
                document["grant_types_supported"] = [*document["grant_types_supported"], EXCHANGE]
            if path == "/oauth2/token":
                self._made(document, form)
            if path == "/userinfo" and self.frozen:
                token = environ["HTTP_AUTHORIZATION"].removeprefix("Bearer ")
                document = self._snapshots[token]
            if path in self.change:
                document = self.change[path](document)
            if path == "/oauth2/token":
                self.token_answers.append(document)
            return _reply(start_response, 200, document)
        start_response(caught["status"], headers)
        return [body]

    def _made(self, document: dict[str, Any], form: dict[str, str]) -> None:
        """Note owner and claims of new tokens. All scopes are granted, also those that the mock doesn't know."""
        document["scope"] = self._asked_scope
        if self.refresh_life is not None:
            document["refresh_expires_in"] = self.refresh_life
        if self.rotate:
            real = document.get("refresh_token") or form["refresh_token"]
            alias = secrets.token_urlsafe(16)
            self._aliases[alias] = real
            document["refresh_token"] = alias
        with self.app.test_client() as client:
            answer = client.get("/userinfo", headers={"Authorization": f"Bearer {document['access_token']}"})
            self._snapshots[document["access_token"]] = answer.get_json()
        if document.get("refresh_token"):
            self._owners[document["refresh_token"]] = answer.get_json()["sub"]


def _flat(text: str) -> dict[str, str]:
    return {name: values[0] for name, values in parse_qs(text, keep_blank_values=True).items()}


def _replace_form(environ: dict[str, Any], form: dict[str, str]) -> None:
    body = urlencode(form).encode()
    environ["wsgi.input"] = io.BytesIO(body)
    environ["CONTENT_LENGTH"] = str(len(body))


def _reply(start_response: Any, status: int, body: Any) -> list[bytes]:
    text = body if isinstance(body, str) else json.dumps(body)
    kind = "text/html" if text.startswith("<") else "application/jwt" if text.startswith("eyJ") else "application/json"
    start_response(f"{status} Recorded", [("Content-Type", kind), ("Content-Length", str(len(text.encode())))])
    return [text.encode()]
