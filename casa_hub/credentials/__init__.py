"""The credentials that a server can hold, one module each.

Read `base` first: `Minter`, the interface of all of them, and `Credential`, what one mints. `bearer` is the shortest
example. The others, from simple to involved: `xcache` (a macaroon or a token), `htcondor` (an IDTOKEN or a token),
`dask` (a CA and its certificates), `servicex` (a configuration file with the user's refresh token), `s3` (a token for
the STS of an S3). Somebody else makes `exchange` (tokens of the identity provider, for one service each) and `x509` (a
proxy); `fetching` is what such a credential says of the request.

Pure parts of them: `macaroons`, `scopes`, `idtokens`, `exchange_services`, `exchange_answers`, `proxy_chain`. `issued`
makes the tokens of the facility's own issuer for all of them; `tokens` reads what a JSON Web Token of another issuer
says about itself. `dask_fresh_token` isn't imported here: it runs in servers and at their Dask workers.
"""
