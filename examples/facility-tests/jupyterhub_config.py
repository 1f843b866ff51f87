# A facility's configuration, as it is in production: the tests beside it overrule what a test can't have.
c = get_config()

c.JupyterHub.authenticator_class = "casa"
c.JupyterHub.spawner_class = "casa"
c.CasaOAuthenticator.provider = "cms-iam"
c.CasaOAuthenticator.client_id = "00000000-example"
c.CasaOAuthenticator.oauth_callback_url = "https://hub.example.org/hub/oauth_callback"
c.CasaOAuthenticator.allowed_groups = {"/cms/uscms"}
c.CasaOAuthenticator.admin_groups = {"/cms/uscms/admins"}
c.CasaOAuthenticator.join_url = "https://hub.example.org/how-to-join"

c.Facility.credentials = ["xcache", "htcondor", "dask", "bearer"]
c.Facility.required = ["xcache"]
c.XCache.key_file = "/etc/casa-hub/xcache"
c.XCache.site_name = "T2_US_Example"
c.XCache.host = "xcache.example.org"
c.HTCondor.key_file = "/etc/casa-hub/condor"
c.HTCondor.trust_domain = "pool.example.org"
c.HTCondor.uid_domain = "example.org"
c.HTCondor.subject = "af-{username}"
c.Dask.secret_file = "/etc/casa-hub/dask"
c.Dask.domain = "example.org"

c.KubeSpawner.image = "registry.example.org/analysis:2026.11"
