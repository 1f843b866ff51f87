"""Checks the identity provider: discovery, keys, clock, and this hub's registration as far as it shows without a user.

- The authorization endpoint gets the request of a browser. A provider that knows the client and its redirect URI shows
  its log-in page. A provider that doesn't shows an error page, or sends the browser back with an error. Some (INDIGO
  IAM) show their log-in page in any case. They are found out by a redirect URI that nobody can have registered.
- The token endpoint is asked to refresh a token that never existed. If it refuses the token, it accepted the client's
  id and secret. That is all it says: INDIGO IAM looks for the token before it looks whether the client is suspended or
  may refresh at all. If it refuses the client, its words depend on the provider (`client`).
"""

from __future__ import annotations

import base64
import hashlib
import re
import secrets
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import aiohttp

from casa_hub.authenticator import CasaOAuthenticator
from casa_hub.checks.findings import Finding, error, ok, unseen, warning
from casa_hub.checks.site import Site
from casa_hub.checks.web import TIMEOUT, Answer, NoAnswerError, ask, clock
from casa_hub.identity.discovery import document_url
from casa_hub.identity.errors import OIDCError
from casa_hub.identity.oidc import Issuer
from casa_hub.identity.verdicts import Verdict

#: A redirect URI that nobody can have registered (RFC 6761).
_NOBODYS = "https://casa-hub-check.invalid/oauth_callback"
_REGISTRATION = "Compare the client's registration at the provider with CasaOAuthenticator.client_id"


async def look(site: Site) -> AsyncIterator[Finding]:
    authenticator = site.authenticator
    if authenticator is None:
        return
    issuer = Issuer(replace(authenticator.provider_side.client, timeout=TIMEOUT))
    try:
        metadata = await issuer.metadata()
        yield ok(f"issuer {issuer.client.issuer}", "discovery is sound")
        if await issuer.count_keys():
            yield ok(metadata.jwks_uri, "has keys")
        else:
            problem, remedy = "has no key that can verify a token", "Ask the provider's administrators."
            yield error(metadata.jwks_uri, problem, remedy)
        session = await issuer.session()
        async for finding in _registration(authenticator, issuer, session):
            yield finding
        yield await _refresh(issuer)
    except OIDCError as problem:
        yield error(problem.thing, problem.problem, problem.remedy or "Ask the provider's administrators.")
    finally:
        await issuer.close()


async def _registration(
    authenticator: CasaOAuthenticator, issuer: Issuer, session: aiohttp.ClientSession
) -> AsyncIterator[Finding]:
    proxy = issuer.client.proxy or None
    try:
        url = document_url(issuer.client.issuer)
        discovery = await ask(session, url, proxy=proxy)
        fails = "tokens are refused, or believed for too long"
        for finding in clock(f"issuer {issuer.client.issuer}", discovery, discovery.at, fails=fails):
            yield finding
        scopes = tuple(authenticator.scope)
        for finding in offered(discovery.document, scopes, basic_auth=issuer.client.basic_auth):
            yield finding
        for finding in log_outs(discovery.document, scopes, provider=authenticator.provider):
            yield finding
        callback = authenticator.oauth_callback_url
        if not callback:
            seen = "is not set, so the redirect URI depends on the address that browsers use and can't be checked"
            yield ok("CasaOAuthenticator.oauth_callback_url", seen)
            return
        end_point = (await issuer.metadata()).authorization_endpoint
        own = await ask(session, _authorization(end_point, authenticator, callback), proxy=proxy)
        nobodys = await ask(session, _authorization(end_point, authenticator, _NOBODYS), proxy=proxy)
        yield authorization(own, nobodys, callback)
    except NoAnswerError as problem:
        remedy = "Try again. If it stays so, tell the provider's administrators."
        yield unseen(f"issuer {issuer.client.issuer}", str(problem), remedy)


def offered(document: Mapping[str, Any], scopes: tuple[str, ...], *, basic_auth: bool) -> list[Finding]:
    """Where the discovery document (Discovery 3; RFC 8414, 2) and the configuration don't fit."""
    found = []
    supported = document.get("scopes_supported")
    if isinstance(supported, list):
        # wlcg.groups:/cms/production and storage.read:/ are forms of the offered wlcg.groups and storage.read.
        missing = [scope for scope in scopes if scope not in supported and scope.partition(":")[0] not in supported]
        found += [
            warning(
                "CasaOAuthenticator.scope",
                f"the provider doesn't offer {scope}",
                "Without it there may be no refresh token, and a membership can't be checked again."
                if scope == "offline_access"
                else "Remove it, or ask the provider's administrators: a claim may hang on it.",
            )
            for scope in missing
        ]
        if not missing:
            found.append(ok("CasaOAuthenticator.scope", "the provider offers all of it"))
    grants = document.get("grant_types_supported")
    if isinstance(grants, list) and "refresh_token" not in grants:
        found.append(
            warning(
                f"issuer {document.get('issuer')}",
                "gives no refresh tokens (grant_types_supported)",
                "Everybody has to log in again after Keeper.membership_max_age.",
            )
        )
    # If the document doesn't say, client_secret_basic is the RFC's default.
    methods = document.get("token_endpoint_auth_methods_supported") or ["client_secret_basic"]
    method = "client_secret_basic" if basic_auth else "client_secret_post"
    if method not in methods and {"client_secret_basic", "client_secret_post"} & set(methods):
        remedy = f"Set it to {not basic_auth}."
        found.append(error("CasaOAuthenticator.basic_auth", f"the provider doesn't accept {method}", remedy))
    return found


def log_outs(document: Mapping[str, Any], scopes: tuple[str, ...], *, provider: str | None) -> list[Finding]:
    """Whether Keycloak tells this hub about log-outs. Other providers don't show it.

    Only Keycloak's administrators see whether a client has a back-channel logout URL. But Keycloak sends no logouts for
    offline sessions. So with the default scopes here, such a URL has no effect.
    """
    if provider != "keycloak" or document.get("backchannel_logout_supported") is not True:
        return []
    thing = "back-channel logout"
    if "offline_access" not in scopes:
        return [ok(thing, "the provider sends it if the client has the URL of /hub/backchannel-logout")]
    seen = (
        "Keycloak sends none for log-ins with the scope offline_access. Without that scope it does, but people have to "
        "log in again when their session at Keycloak ends"
    )
    return [ok(thing, seen)]


def authorization(own: Answer, nobodys: Answer, callback: str) -> Finding:
    """Whether the redirect URI is registered: by the answers to a request with it, and with nobody's (`_NOBODYS`)."""
    thing = f"redirect URI {callback}"
    if code := _sent_back(own, callback):
        return error(
            f"client at {urlsplit(callback).hostname}",
            f"the provider refuses its authorization request: {code}",
            f"{_REGISTRATION}: scopes, response type code, grant types.",
        )
    if own.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return unseen(thing, f"the provider fails with status {own.status}", "Tell the provider's administrators.")
    if own.status >= HTTPStatus.BAD_REQUEST:
        return error(
            thing,
            f"the provider shows an error page (status {own.status}) instead of its log-in",
            f"{_REGISTRATION} and oauth_callback_url: this very redirect URI must be registered.",
        )
    if nobodys.status < HTTPStatus.BAD_REQUEST and not _sent_back(nobodys, _NOBODYS):
        return ok(thing, "can't be checked: this provider tells only after a log-in whether it is registered")
    return ok(thing, "is registered")


def _sent_back(answer: Answer, callback: str) -> str:
    """The error code of an answer that sends the browser back to the hub (RFC 6749, 4.1.2.1); else ""."""
    headers = {name.lower(): value for name, value in answer.headers.items()}
    location = headers.get("location", "")
    if answer.status not in range(300, 400) or not location.startswith(callback):
        return ""
    code = parse_qs(urlsplit(location).query).get("error", [""])[0]
    return "".join(letter for letter in code[:40] if letter.isalnum() or letter == "_")


def _authorization(end_point: str, authenticator: CasaOAuthenticator, redirect_uri: str) -> str:
    challenge = hashlib.sha256(secrets.token_bytes(32)).digest()
    parameters = {
        **authenticator.extra_authorize_params,
        "response_type": "code",
        "client_id": authenticator.client_id,
        "redirect_uri": redirect_uri,
        "scope": " ".join(authenticator.scope),
        "state": secrets.token_urlsafe(16),
        "nonce": secrets.token_urlsafe(16),
        "code_challenge": base64.urlsafe_b64encode(challenge).rstrip(b"=").decode(),
        "code_challenge_method": "S256",
    }
    return end_point + ("&" if "?" in end_point else "?") + urlencode(parameters)


async def _refresh(issuer: Issuer) -> Finding:
    thing = (await issuer.metadata()).token_endpoint
    try:
        await issuer.refresh(f"casa-hub-check-{int(time.time())}", sub="")
    except OIDCError as answered:
        return client(thing, answered)
    return warning(thing, "accepted a refresh token that never existed", "Tell the provider's administrators.")


#: The provider's error code and description at the end of a verdict's reason.
_ERROR = re.compile(r"\(([a-z_]+)(?:: (.*))?\)\.?$")


def client(thing: str, answered: OIDCError) -> Finding:
    """What the refusal of a refresh token that never existed says about this hub's client.

    - Wrong id or secret: 401 `invalid_client` (RFC 6749, 5.2); `unauthorized`, "Bad credentials" (INDIGO IAM);
      `unauthorized_client`, "Invalid client or Invalid client credentials" (Keycloak, which says the same with
      `invalid_client` for a disabled client).
    - The client may not refresh: `unauthorized_client` (RFC 6749, 5.2); `invalid_client`, "Unauthorized grant type"
      (INDIGO IAM); `unsupported_grant_type`.
    """
    answer = answered.answer
    if answer.verdict is Verdict.LOG_IN_AGAIN:
        seen = (
            "accepts this hub's client id and secret; only a log-in shows whether the client may refresh, or is "
            "suspended"
        )
        return ok(thing, seen)
    if not answer.our_fault:
        return unseen(thing, answered.problem, "Tell the provider's administrators.")
    found = _ERROR.search(answer.reason)
    code, description = (found[1], (found[2] or "").lower()) if found else ("", "")
    if "suspended" in description:
        return error(thing, answer.reason, "Ask the provider's administrators to put the client back into service.")
    grant = "grant type" in description or code == "unsupported_grant_type"
    if grant or (code == "unauthorized_client" and "credentials" not in description):
        return error(thing, answer.reason, f"{_REGISTRATION}: the grant type refresh_token must be allowed.")
    if code in ("invalid_client", "unauthorized", "unauthorized_client"):
        return error(
            thing,
            answer.reason,
            "CasaOAuthenticator.client_id and client_secret must be those of the registration, basic_auth must fit its "
            "authentication method, and the client must be enabled there.",
        )
    return error(thing, answer.reason, f"{_REGISTRATION}: scopes, grant types.")
