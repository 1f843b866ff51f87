"""A person's browser at the hub of a test."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urljoin, urlsplit

import requests

if TYPE_CHECKING:
    from casa_hub.testing.hub import Hub


class Browser(requests.Session):
    """Follows redirects, keeps cookies, and presses the button at the identity provider."""

    def __init__(self, hub: Hub) -> None:
        super().__init__()
        self.hub = hub
        self.trust_env = False

    def page(self, path: str, **kwargs: Any) -> requests.Response:
        """A page of the hub, such as ``/hub/home``."""
        return self.get(urljoin(self.hub.url, path), timeout=60, **kwargs)

    def log_in(self, sub: str, *, next_path: str = "/hub/home") -> requests.Response:
        """Log in as this subject; returns the last page: 200 if the person is let in, 403 with the reason if not."""
        consent = self.page("/hub/oauth_login" + (f"?next={next_path}" if next_path else ""))
        if consent.status_code != requests.codes.ok or "authorize" not in consent.url:
            return consent
        return self.post(consent.url, data={"sub": sub}, timeout=60)

    def is_in(self) -> bool:
        """Whether the browser is logged in: the hub shows its page. Else it must redirect to the log-in."""
        answer = self.page("/hub/home", allow_redirects=False)
        if answer.status_code == requests.codes.found:
            assert urlsplit(answer.headers["Location"]).path == "/hub/login"
        else:
            assert answer.status_code == requests.codes.ok, answer.text
        return bool(answer.status_code == requests.codes.ok)

    def token(self) -> str:
        """A new API token of this user."""
        path = f"/hub/api/users/{quote(self.user())}/tokens"
        answer = self.post(self.hub.url + path, json={}, headers=self._xsrf(), timeout=60)
        answer.raise_for_status()
        return str(answer.json()["token"])

    def spawn(self, name: str = "") -> requests.Response:
        """Start a server as the page does, with the form's token against forged requests.

        Returns:
            201: the server is ready; 202: it takes longer (`FacilityHub.given` waits for it); 403 and others: it
            doesn't start, with the reason.
        """
        self.page("/hub/home")
        user = quote(self.user())
        path = f"/hub/api/users/{user}/servers/{quote(name)}" if name else f"/hub/api/users/{user}/server"
        return self.post(self.hub.url + path, headers=self._xsrf(), timeout=120)

    def user(self) -> str:
        """The hub's name of the user who is logged in."""
        answer = self.get(self.hub.url + "/hub/api/user", headers=self._xsrf(), timeout=60)
        answer.raise_for_status()
        return str(answer.json()["name"])

    def _xsrf(self) -> dict[str, str]:
        cookies = [cookie for cookie in self.cookies if cookie.name == "_xsrf" and cookie.path == "/hub/"]
        return {"X-XSRFToken": str(cookies[0].value)} if cookies else {}
