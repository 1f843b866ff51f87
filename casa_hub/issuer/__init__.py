"""The facility's own issuer of WLCG tokens, which anybody verifies by its public keys.

`tokens` (pure) makes keys public and signs claims. `keys` reads the directory of private keys and decides which one
signs. `settings` has the section `FacilityIssuer`. `published` is what verifiers read: documents, and the pages with
them, which need neither a log-in nor the hub's database.
"""
