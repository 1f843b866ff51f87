"""`casa-hub check`: compares a facility with its hub's configuration, before users meet the differences.

Read `findings` (one result), `site` (the configured hub that all checks look at) and `runner` (runs the checks side by
side and prints their findings). Then one module a subject, each with an asynchronous generator ``look(site)`` of
findings:

- this machine: `configuration`, `hub` (the running hub, if there is one);
- the neighbours: `issuer` (the identity provider), `facility_issuer` (the facility's own), `cluster`, `traefik`,
  `xcache`, `htcondor` (with the program `htcondor_ping`), `servicex`, `s3`; `exchange` and `x509`, which ask for what
  those credentials are made of (by `fetches`);
- `probe`, the only check that creates anything; it removes its objects again.

Shared: `web` and `kube` (one request), `nobody` (tokens to try verifiers with), `rights` (what the hub may do in
Kubernetes), `versions` (which versions of the neighbours are safe). No finding holds a secret.
"""
