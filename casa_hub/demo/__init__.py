"""A whole facility on one machine, with real servers, without root, and without anything left afterwards.

Read `run` (the command `casa-hub demo`), `facility` (starts everything in order) and `check` (tries everything, for
`--check`). Then the parts:

- who and what: `accounts`; `facility_config`, `jupyterhub_config` and `kubernetes_config`, which are examples for
  facilities, too; `quickstart.ipynb`, the notebook in each home;
- the servers: `xrootd`, `htcondor`, `traefik`, with `certificates`;
- the tools: `packages` (programs of Debian packages), `processes` and `supervise` (child processes), `names` (host
  names), `doors` (ports into a network namespace), `browser` and `dial` (a person's browser and laptop).
"""
