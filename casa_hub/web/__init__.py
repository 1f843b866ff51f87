"""What this package adds to the hub's addresses: `pages` (the pages of a log-in), `backchannel` (the provider's
log-outs), `operations` (the operator's API); `page_notices` (notices on the hub's own pages).
"""
