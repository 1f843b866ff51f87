"""What an identity provider says, and whether it can be believed.

In the order in which an answer walks: `providers` (what each provider looks like), `oidc` (ask it, believe what is
signed), `verdicts` (pure: what a refusal means), `session` (what is kept of a log-in).
"""
