"""What this package adds to the hub's addresses: `handlers` (the pages of a log-in), `backchannel` (the provider's
log-outs), `operations` (the operator's API); and `notices` on the hub's pages.
"""
