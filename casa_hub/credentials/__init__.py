"""The credentials that a server can hold, one module each.

Read `base` first: `Minter`, the interface of all of them, and `Credential`, what one mints. `bearer` is the shortest
example. The others, from simple to involved: `xcache` (a macaroon or a token), `htcondor` (an IDTOKEN or a token),
`dask` (a CA and its certificates), `servicex` (a configuration file with the user's refresh token), `exchange`
(tokens of the identity provider for one service each, for which somebody has to ask).

Pure parts of them: `macaroons`, `scopes`, `idtokens`, `exchange_services`, `exchange_answers`. `fetching` is what a
credential says that is made of something which somebody else gives for the person's token. `issued` makes the tokens of
the facility's own issuer for all of them; `tokens` reads what a JSON Web Token of another issuer says about itself.
`dask_fresh_token` isn't imported here: it runs in servers and at their Dask workers.
"""
