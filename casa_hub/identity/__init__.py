"""Who a user is, and whether they are a member: from the identity provider's answers to one standing per user.

In the order in which an answer is read:

- `providers`: a preset for each kind of provider;
- `oidc`: the requests to the provider and the verification of what it signed. Its parts: `transport` (one HTTP
  request), `discovery` (the provider's metadata), `signatures` (its keys), `tokens` (an answer of its token endpoint);
- `verdicts`: pure; what a refusal of the provider means for the person. `challenges` reads its ``WWW-Authenticate``;
- `groups` and `membership`: pure; claims -> groups -> allowed or refused;
- `bindings`: which person a user name belongs to;
- `session`: what the hub stores of a log-in;
- `standing`: the verdict on each user, which pages, API, spawns and re-checks share;
- `logout`: the provider's messages that somebody logged out there;
- `settings`: the checks of the operator's settings when the hub starts.
"""
