"""A credential monitor ("credmon") for HTCondor: it keeps the tokens of running jobs fresh.

HTCondor's credd keeps a file ``USER/NAME.top`` for each user who asked for the credential NAME. The credmon writes a
fresh token to ``USER/NAME.use`` beside it, well before the old one expires. HTCondor sends that file into each running
job, again and again. The tokens are of the facility's issuer, signed with a key of the pool's own, whose public half is
in `FacilityIssuer.extra_jwks`.

It runs beside the schedd (``python -m casa_hub.credmon``), where no JupyterHub is, and imports nothing of it. `signer`
decides what a token says and which files are due; `__main__` is the program that HTCondor's master starts.
"""
