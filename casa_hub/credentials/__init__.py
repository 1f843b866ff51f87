"""The credentials that a server can hold, one module each.

Read `base` first: `Minter`, the interface of all of them, and `Credential`, what one mints. `bearer` is the shortest
example. The others, from simple to involved: `xcache` (a macaroon), `htcondor` (an IDTOKEN), `dask` (a CA and its
certificates), `servicex` (a configuration file with the user's refresh token). `tokens` reads what a JSON Web Token of
another issuer says about itself.
"""
