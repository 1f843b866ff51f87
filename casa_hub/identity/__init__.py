"""Who somebody is, and whether they are a member: from the identity provider's answers to one standing per user.

In the order in which an answer walks: `providers` (what each provider looks like), `oidc` (ask it, believe what is
signed), `groups` and `membership` (pure: claims -> groups -> allowed or refused), `verdicts` (pure: what a refusal
means), `bindings` (whose name it is), `session` (what is kept of a log-in), `standing` (the verdict that all share).
"""
