"""What an identity provider says, and whether it can be believed.

In the order in which an answer is read:

- `providers`: a preset for each kind of provider;
- `oidc`: the requests to the provider and the verification of what it signed. Its parts: `transport` (one HTTP
  request), `discovery` (the provider's metadata), `signatures` (its keys), `tokens` (an answer of its token endpoint);
- `fetches`: requests for what credentials are made of, with a person's token;
- `verdicts`: pure; what a refusal of the provider means for the person. `challenges` reads its ``WWW-Authenticate``;
- `errors`: what a failed request means, with a reason for people;
- `session`: what the hub stores of a log-in;
- `logout`: the provider's messages that somebody logged out there;
- `settings`: the checks of the operator's settings when the hub starts.
"""
