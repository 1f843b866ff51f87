"""An authenticator for hubs of tests that need no identity provider, as text of their configuration."""

from __future__ import annotations

WITH_TOKEN = """
from pathlib import Path
from jupyterhub.auth import DummyAuthenticator
from casa_hub.credentials.base import AccessToken
from casa_hub.startup import on_hub_start

class WithToken(DummyAuthenticator):
    # Offers a spawner what CasaOAuthenticator does; files stand for the identity provider.
    auth_refresh_age = 1

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        on_hub_start(self.parent)

    async def access_token(self, user):
        return AccessToken(Path("token").read_text(), None) if Path("token").exists() else None

    async def refresh_user(self, user, handler=None):
        for spawner in user.spawners.values():
            if spawner.ready and hasattr(spawner, "renew_credentials"):
                await spawner.renew_credentials(["bearer"])
        return True

c.JupyterHub.authenticator_class = WithToken
"""
