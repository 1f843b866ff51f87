"""One request to the hub. A token goes to no other address, and no answer is waited for without end."""

from __future__ import annotations

import json
import re
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from email.message import Message
from http import HTTPStatus
from http.client import HTTPException, HTTPMessage
from typing import IO, Any
from urllib.parse import urlencode, urlsplit

from . import __version__
from .addresses import host_of
from .errors import ClientError, RefusedError, TokenRefusedError, printable

#: Seconds for one answer: until it begins, or until there is more of it; and for all of it.
_QUIET, _ALL = 30.0, 60.0
#: Bytes that an answer may have.
_LARGEST = 4 * 1024**2
#: What a hub says of a token that it doesn't know, or that hasn't the scope, rather than of its user.
_SAID_OF_TOKENS = "invalid credentials|with current scopes|this needs the scope|has the scope of no credential"
#: Statuses by which a hub, or what stands before it, says "not now".
_NOT_NOW = {HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS}


@dataclass(frozen=True, slots=True)
class Wire:
    """The way to one hub.

    Raises, in all its methods:
        ClientError: the hub can't be reached, or doesn't answer as a hub does; asking later may help.
        RefusedError: the hub says no; TokenRefusedError: to this token.
    """

    #: The hub's base address.
    hub: str
    token: str = field(repr=False, default="")

    def get(self, path: str) -> Any:
        """The JSON answer."""
        return self._json("GET", path, None, "")

    def post(self, path: str, body: Mapping[str, Any]) -> Any:
        """The JSON answer to a JSON body."""
        return self._json("POST", path, json.dumps(body).encode(), "application/json")

    def post_form(self, path: str, form: Mapping[str, str]) -> Any:
        """The JSON answer to a form."""
        return self._json("POST", path, urlencode(form).encode(), "application/x-www-form-urlencoded")

    def post_for_bytes(self, path: str) -> bytes:
        """The answer as it is."""
        return self._ask("POST", path, b"{}", "application/json")

    def _json(self, method: str, path: str, body: bytes | None, kind: str) -> Any:
        content = self._ask(method, path, body, kind)
        try:
            return json.loads(content)
        except ValueError:
            raise ClientError(self.hub, "its answer is not that of a hub", "Is this the hub's address?") from None

    def _ask(self, method: str, path: str, body: bytes | None, kind: str) -> bytes:
        asked = urllib.request.Request(self.hub + path, data=body, method=method)  # noqa: S310 - http and https only
        asked.add_header("User-Agent", f"casa-hub-client/{__version__}")
        asked.add_header("Accept", "application/json, application/zip")
        if kind:
            asked.add_header("Content-Type", kind)
        if self.token:
            # Unredirected: if urllib ever asked another address, it would ask without it.
            asked.add_unredirected_header("Authorization", f"token {self.token}")
        try:
            with self._opener().open(asked, timeout=_QUIET) as answer:
                return self._read(answer)
        except urllib.error.HTTPError as error:
            with error:
                raise self._refusal(error.code, error.headers, self._message(error)) from None
        except ssl.SSLCertVerificationError as error:
            raise self._unknown_certificate(error) from None
        except urllib.error.URLError as error:
            if isinstance(error.reason, ssl.SSLCertVerificationError):
                raise self._unknown_certificate(error.reason) from None
            raise self._unreachable(error.reason) from None
        except (OSError, HTTPException, ValueError) as error:
            raise self._unreachable(error) from None

    def _opener(self) -> urllib.request.OpenerDirector:
        # A proxy of the environment would read what is sent without TLS; with TLS it only passes it on.
        plain = urlsplit(self.hub).scheme == "http"
        proxies = [urllib.request.ProxyHandler({})] if plain else []
        return urllib.request.build_opener(_NoRedirects(), *proxies)

    def _read(self, answer: Any) -> bytes:
        deadline, pieces, size = time.monotonic() + _ALL, list[bytes](), 0
        while piece := answer.read1(1 << 16):
            pieces.append(piece)
            size += len(piece)
            if size > _LARGEST or time.monotonic() > deadline:
                raise ClientError(self.hub, "its answer doesn't end", "Is this the hub's address?")
        return b"".join(pieces)

    def _message(self, error: urllib.error.HTTPError) -> str | None:
        """What a hub says with a refusal; None if this is no hub's answer."""
        try:
            answer = json.loads(self._read(error))
        except (ClientError, OSError, HTTPException, ValueError):
            return None
        message = answer.get("message") if isinstance(answer, dict) else None
        return printable(message) if isinstance(message, str) else None

    def _refusal(self, status: int, headers: Message, message: str | None) -> ClientError:
        if HTTPStatus.MULTIPLE_CHOICES <= status < HTTPStatus.BAD_REQUEST:
            there = printable(host_of(headers.get("Location", "")))
            remedy = "Give the hub's own address with --hub."
            return ClientError(self.hub, f"it leads to another address ({there or 'its own'}); not followed", remedy)
        if message is None:
            problem = f"its answer is not that of a hub (status {status})"
            return ClientError(self.hub, problem, "Is it the hub's address? Does the hub run?")
        if status >= HTTPStatus.INTERNAL_SERVER_ERROR or status in _NOT_NOW:
            return ClientError(self.hub, message or f"status {status}", "Try again later.")
        about_token = re.search(_SAID_OF_TOKENS, message, re.IGNORECASE) is not None
        if status == HTTPStatus.UNAUTHORIZED or (status == HTTPStatus.FORBIDDEN and about_token):
            remedy = f"Log in again, or make another token on {self.hub}/hub/token."
            return TokenRefusedError(self.hub, message or f"status {status}", remedy)
        return RefusedError(self.hub, message or f"status {status}")

    def _unreachable(self, reason: object) -> ClientError:
        # Of an OSError the text for people; others may hold what was sent.
        why = reason.strerror if isinstance(reason, OSError) and reason.strerror else type(reason).__name__
        return ClientError(self.hub, f"can't be reached ({why})", "Is the address right, and this machine online?")

    def _unknown_certificate(self, error: ssl.SSLCertVerificationError) -> ClientError:
        remedy = "If the hub has a certificate authority of its own, name its file: export SSL_CERT_FILE=ca.pem."
        return ClientError(self.hub, f"its certificate is not accepted ({error.verify_message})", remedy)


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Their target would get the token, or answer in the hub's place."""

    def redirect_request(  # noqa: PLR0917 - its arguments are urllib's
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> None:
        """None: the redirect becomes an HTTPError."""
