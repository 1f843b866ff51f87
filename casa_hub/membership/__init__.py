"""Who is a member, and what follows for somebody who is none any more.

In the order in which to read them:

- `groups`, `policy` (pure): the provider's claims -> groups -> allowed or refused;
- `usernames`: whose name a user name is; `log_ins`: what is stored of each user's last log-in;
- `member`: the one record of what the hub knows of a person, and `outcome` (pure): what follows from it;
- `recheck`: the one request to the provider about a person; `rounds`: whose turn it is; `active_users`: of whom;
- `mass_loss`: a "no" among many is held back, by `loss_limit` (pure);
- `revocation`: the end of all access, in an order in which nothing is lost half way;
- `fetching`: what credentials are made of and somebody else gives, for the person's token;
- `admission`: what a request or a start may do now, and what pages say; `rights`: groups and administration;
- `settings`: the operator's times; `tables`: what the hub's database keeps.
"""
