"""A credential that a service of the site gives: a voucher, for the person's own token of the identity provider.

The service gets a POST with the token as ``Authorization: Bearer`` and answers
``{"voucher": "...", "expires_in": 3600}``, or 403 to who may have none.
"""

import re
from collections.abc import Mapping, Sequence
from datetime import timedelta
from http import HTTPStatus
from pathlib import PurePosixPath
from typing import ClassVar

from traitlets import Unicode

from casa_hub.credentials.base import Credential, Minter, Request
from casa_hub.credentials.fetching import Answer, Fetch, Fetched, FetchError, Why
from casa_hub.errors import Problem, Severity
from casa_hub.naming import Server

_THING = "voucher of the site"
_ASK_SITE = "Ask the site's help desk."
_VOUCHER = re.compile(r"[A-Za-z0-9-]{1,200}")


def read(answer: Answer) -> Fetched:
    """What an answer means. It comes from outside: believe nothing of it. No secret of it goes into an error."""
    if answer.status == HTTPStatus.UNAUTHORIZED:
        # The hub asks the identity provider for another token, and once more. Only then the user is told.
        raise FetchError(_THING, "the service refuses your token", "Log out and in again.", Why.SIGN_IN)
    if answer.status == HTTPStatus.FORBIDDEN:
        raise FetchError(_THING, "you may have none", _ASK_SITE, Why.REFUSED)
    body = answer.body if isinstance(answer.body, Mapping) else {}
    voucher, life = body.get("voucher"), body.get("expires_in")
    if answer.status != HTTPStatus.OK or not isinstance(voucher, str) or not _VOUCHER.fullmatch(voucher):
        # Whatever this is, it is no refusal: it is tried again.
        raise FetchError(_THING, "the service's answer has none", _ASK_SITE)
    if type(life) is not int or not 0 < life <= 86400:
        raise FetchError(_THING, "the service doesn't say for how long it is good", _ASK_SITE)
    return Fetched(voucher, answer.now, answer.now + timedelta(seconds=life))


class Voucher(Minter):
    """Delivers vouchers. Its name is that of its section in the configuration: ``c.Voucher.url = ...``."""

    name: ClassVar[str] = "voucher"
    title: ClassVar[str] = "Voucher of the site"
    #: It lives as long as the service says, not as long as somebody wishes.
    shortens: ClassVar[bool] = False

    url = Unicode(
        "",
        help="""Where the service gives vouchers: https, or http on this machine. There is no default. Example:
        `https://vouchers.example.org/new`.""",
    ).tag(config=True)
    ca_file = Unicode(
        "",
        help="PEM file with the certificate authority of the service. Default: the system's authorities.",
    ).tag(config=True)

    @property
    def fetch(self) -> Fetch:
        """One request for each user. The hub sends it, keeps the answer for two thirds of its life, and renews it."""
        return Fetch("a voucher of the site", read, url=self.url, ca_file=self.ca_file)

    @property
    def paths(self) -> Sequence[str]:
        """Nobody can mint one without an answer, so the hub can't find out by a trial which file it is."""
        return ("site_voucher",)

    def check(self) -> Sequence[Problem]:
        """What an operator reads at the hub's start; it does not raise."""
        if self.url.startswith(("https://", "http://127.0.0.1:", "http://localhost:")):
            return ()
        return [Problem(Severity.ERROR, "Voucher.url", "is no https URL", "Set it to that of the service.")]

    def mint(self, request: Request) -> Credential:
        """No network: what it needs is there, or this raises what was wrong."""
        fetched = request.fetched_for(self.name)
        return Credential(
            name=self.name,
            files={"site_voucher": fetched.value.encode()},
            # By these two the hub sees when it must ask for a new one.
            issued_at=fetched.at,
            expires_at=fetched.expires_at,
        )

    def environment(self, server: Server, directory: PurePosixPath) -> Mapping[str, str]:  # noqa: ARG002
        """Paths and names; a secret would be seen by everything that the server starts."""
        return {"SITE_VOUCHER_FILE": str(directory / "site_voucher")}
