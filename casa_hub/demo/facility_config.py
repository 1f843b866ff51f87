"""Common configuration of the demo's hubs: who may log in, and which credentials servers get.

`jupyterhub_config.py` (one machine) and `kubernetes_config.py` add the rest.
"""

import json
import os
from pathlib import Path

c = get_config()
os.umask(0o077)  # database and files of servers are for this user only
#: Addresses, ports and files that `casa_hub.demo.facility` chose.
demo = json.loads(Path(os.environ["CASA_HUB_DEMO"]).read_text())
here = Path(demo["directory"])

# Who may log in.
c.CasaOAuthenticator.login_service = "the demo's identity provider"
c.JupyterHub.authenticator_class = "casa"
c.CasaOAuthenticator.provider = "cms-iam"
c.CasaOAuthenticator.issuer = demo["issuer"]
c.CasaOAuthenticator.client_id = demo["client_id"]
c.CasaOAuthenticator.client_secret = demo["client_secret"]
# The preset's scopes, and the one without which the provider makes no X.509 proxy.
c.CasaOAuthenticator.scope = ["openid", "profile", "email", "offline_access", "wlcg.groups", "proxy:generate"]
c.CasaOAuthenticator.oauth_callback_url = demo["url"] + "/hub/oauth_callback"
c.CasaOAuthenticator.allowed_groups = {demo["members"]}
c.CasaOAuthenticator.admin_groups = {demo["administrators"]}
c.CasaOAuthenticator.join_url = "https://example.org/how-to-join"

c.Keeper.recheck_interval = demo["recheck_interval"]
# Who may use the operator's commands: `casa-hub renew`, `casa-hub revoke` ...
c.JupyterHub.services = [{"name": "casa-hub", "api_token": demo["operator_token"]}]
c.JupyterHub.load_roles = [
    {"name": "casa-hub", "services": ["casa-hub"], "scopes": ["custom:casa-hub:operate"]},
    # The same, by the buttons of the page Facility.
    {"name": "operators", "groups": [demo["administrators"]], "scopes": ["custom:casa-hub:operate"]},
]

# Which credentials servers get.
c.Facility.credentials = demo["credentials"]
c.Facility.required = demo["required"]
c.Facility.hub_id = "demo"
if "xcache" in demo["credentials"]:
    c.XCache.key_file = demo["xcache"]["key_file"]
    c.XCache.site_name = demo["xcache"]["site"]
    c.XCache.host = demo["xcache"]["host"]
    c.XCache.port = demo["xcache"]["port"]
    c.XCache.credential = demo["xcache"]["credential"]
if "htcondor" in demo["credentials"]:
    c.HTCondor.key_file = demo["htcondor"]["key_file"]
    c.HTCondor.trust_domain = demo["htcondor"]["domain"]
    c.HTCondor.uid_domain = demo["htcondor"]["domain"]
    c.HTCondor.subject = "{username}"
    c.HTCondor.collector = demo["htcondor"]["collector"]
    c.HTCondor.schedd = demo["htcondor"]["schedd"]
c.FacilityIssuer.update(demo["tokens"])
c.TokenExchange.services = {"rucio": {"preset": "rucio"}}
c.Dask.secret_file = demo["dask"]["secret_file"]
c.Dask.domain = demo["dask"]["domain"]

# The hub itself.
c.CryptKeeper.keys = [(here / "crypt-key").read_text()]
c.JupyterHub.bind_url = demo["url"]
c.JupyterHub.default_url = "/hub/casa/credentials"  # where a log-in ends; without it, in the user's server
c.JupyterHub.hub_port = demo["hub_port"]
c.JupyterHub.db_url = "sqlite:///" + str(here / "hub.sqlite")
c.JupyterHub.cookie_secret_file = str(here / "cookie_secret")
c.JupyterHub.cleanup_servers = True
c.JupyterHub.proxy_class = "traefik_file"
c.TraefikProxy.traefik_api_url = f"http://127.0.0.1:{demo['proxy_api_port']}"
c.TraefikProxy.traefik_api_username = "hub"
c.TraefikProxy.traefik_api_password = demo["proxy_password"]
c.TraefikProxy.traefik_api_hashed_password = demo["proxy_password_hash"]
c.TraefikProxy.static_config_file = str(here / "proxy/traefik.toml")
c.TraefikFileProviderProxy.dynamic_config_file = str(here / "proxy/routes.toml")
c.Spawner.default_url = "/lab/tree/quickstart.ipynb"
