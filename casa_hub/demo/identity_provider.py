"""The demo's identity provider: oidc-provider-mock, which exchanges access tokens for others, too (RFC 8693).

It makes X.509 proxies as INDIGO IAM does, of those that people have stored there. It asks for no password: everybody
can log in as anybody. A program of its own:
``python -m casa_hub.demo.identity_provider --port 9000 --user-claims '{"sub": "oksana"}'``.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import logging
import os
import secrets
import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote_plus

import jwt
import werkzeug.serving

from casa_hub.credentials.x509 import SCOPE
from casa_hub.demo.proxies import Holder
from casa_hub.demo.proxycert import PATH as PROXYCERT
from casa_hub.demo.proxycert import ProxyCertificates

with warnings.catch_warnings(record=True):  # warnings about its own libraries
    import oidc_provider_mock
    from oidc_provider_mock._storage import Client, ClientAllowAny, User, storage

#: Grant type of a token exchange.
EXCHANGE = "urn:ietf:params:oauth:grant-type:token-exchange"
TOKEN_ENDPOINT = "/oauth2/token"  # noqa: S105 - no secret

WSGI = Callable[[dict[str, Any], Any], Iterable[bytes]]


def exchange(
    app: Any, issuer: str, form: Mapping[str, str], client_id: str, *, life: int = 3600
) -> tuple[int, dict[str, Any]]:
    """The answer to a token exchange: for a living access token of somebody, one for another audience.

    Args:
        app: of oidc-provider-mock.
        issuer: its URL.
        form: of the request.
        client_id: who asks; "" if it didn't authenticate.
        life: seconds that the new token lives.

    Returns:
        Status and JSON object.
    """
    audience = form.get("audience", "")
    if not client_id:
        return HTTPStatus.UNAUTHORIZED, {"error": "invalid_client"}
    sub = owner(app, form.get("subject_token", ""))
    if not sub:
        description = "The subject token is not valid."
        return HTTPStatus.UNAUTHORIZED, {"error": "invalid_token", "error_description": description}
    now = int(time.time())
    claims = {"iss": issuer, "sub": sub, "act": {"sub": client_id}, "iat": now}
    claims |= {"exp": now + life, "jti": secrets.token_hex(8)}
    claims |= {"aud": audience} if audience else {}
    answer: dict[str, Any] = {"token_type": "Bearer", "expires_in": life}
    answer["issued_token_type"] = "urn:ietf:params:oauth:token-type:access_token"  # noqa: S105 - no secret
    if form.get("scope"):
        claims["scope"] = answer["scope"] = form["scope"]
    answer["access_token"] = _signed(app, claims)
    return HTTPStatus.OK, answer


def owner(app: Any, token: str) -> str:
    """The subject of a living access token; "" if it is none."""
    with app.test_client() as client:
        userinfo = client.get("/userinfo", headers={"Authorization": f"Bearer {token}"})
    return str(userinfo.get_json()["sub"]) if userinfo.status_code == HTTPStatus.OK else ""


def _scopes(app: Any, token: str) -> list[str]:
    """The scopes of an access token."""
    with app.test_request_context():
        app.preprocess_request()
        found = storage.get_access_token(token)
        return found.scope.split() if found else []


def register(app: Any, client_id: str, *scopes: str) -> None:
    """Let a client have these scopes, besides those of OpenID Connect. Others are dropped, whoever asks for them."""
    anything: Any = ClientAllowAny()
    client = Client(
        id=client_id,
        secret=anything,
        redirect_uris=anything,
        allowed_scopes=(*Client.SCOPES_SUPPORTED, *scopes),
        token_endpoint_auth_method=anything,
    )
    with app.test_request_context():
        app.preprocess_request()
        storage.store_client(client)


def _signed(app: Any, claims: dict[str, Any]) -> str:
    """A JSON Web Token by the key that signs the ID tokens."""
    with app.test_request_context():
        app.preprocess_request()
        # By position: it is "is_private" for the mock of Python 3.11, and "private" for that of newer ones.
        key = storage.jwk.as_dict(True)
    return jwt.encode(claims, jwt.PyJWK(key, "RS256").key, "RS256", headers={"kid": key["kid"]})


def client_of(form: Mapping[str, str], environ: Mapping[str, Any]) -> str:
    """Id of the client that asks for a token; "" if it doesn't authenticate."""
    authorization: str = environ.get("HTTP_AUTHORIZATION", "")
    if not authorization.startswith("Basic "):
        return form.get("client_id", "") if form.get("client_secret") else ""
    return unquote_plus(base64.b64decode(authorization.removeprefix("Basic ")).decode().partition(":")[0])


def put_user(app: Any, sub: str, claims: Mapping[str, Any]) -> None:
    """Let a subject log in. From now on userinfo and ID tokens have these claims for it."""
    # Not by the mock's HTTP address: it allows no slash, but CILogon's subjects are URIs.
    with app.test_request_context():
        app.preprocess_request()
        storage.store_user(User(sub=sub, claims=dict(claims)))


def extended(app: Any, issuer: str, proxies: ProxyCertificates) -> WSGI:
    """The mock's application with token exchange, and IAM's end point for proxies."""

    def own_answer(path: str, form: Mapping[str, str], environ: Mapping[str, Any]) -> tuple[int, dict[str, Any]] | None:
        if path == TOKEN_ENDPOINT and form.get("grant_type") == EXCHANGE:
            return exchange(app, issuer, form, client_of(form, environ))
        if path == PROXYCERT:
            token = environ.get("HTTP_AUTHORIZATION", "").removeprefix("Bearer ")
            return proxies.answer(token, form, knows_client=bool(client_of(form, environ)))
        return None

    def serve(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        if environ["REQUEST_METHOD"] == "POST" and environ["PATH_INFO"] in {TOKEN_ENDPOINT, PROXYCERT}:
            body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            form = {name: values[0] for name, values in parse_qs(body.decode()).items()}
            own = own_answer(environ["PATH_INFO"], form, environ)
            if own is not None:
                status, answer = own
                content = json.dumps(answer).encode()
                kind = [("Content-Type", "application/json"), ("Content-Length", str(len(content)))]
                start_response(f"{status:d} {HTTPStatus(status).phrase}", kind)
                return [content]
            environ["wsgi.input"] = io.BytesIO(body)
        answered: Iterable[bytes] = app.wsgi_app(environ, start_response)
        return answered

    return serve


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m casa_hub.demo.identity_provider", description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--user-claims", type=json.loads, action="append", default=[], help="a JSON object with sub")
    parser.add_argument("--client", required=True, help="id of the client that may have proxies made")
    parser.add_argument("--proxies", type=Path, required=True, help="directory of the stored ones: SUB.pem")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO)
    os.environ["AUTHLIB_INSECURE_TRANSPORT"] = "1"
    app = oidc_provider_mock.app(require_nonce=True)
    for claims in options.user_claims:
        put_user(app, claims.pop("sub"), claims)
    register(app, options.client, SCOPE)
    stored = {path.stem: Holder.of_pem(path.read_bytes()) for path in options.proxies.glob("*.pem")}
    proxies = ProxyCertificates(partial(owner, app), partial(_scopes, app), stored)
    serve = extended(app, f"http://localhost:{options.port}", proxies)
    werkzeug.serving.make_server("127.0.0.1", options.port, serve, threaded=True).serve_forever()


if __name__ == "__main__":
    main()
