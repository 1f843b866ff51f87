"""While servers run: what they hold stays fresh, and what they lack comes back.

- `running`: the protocol by which these see a server;
- `renewals`: renews credentials, by `renewal_schedule` (pure) and what it knows of each server (`renewal_state`);
- `mending`: brings back what a server lacks;
- `status`: for operators, which servers are not renewed.
"""
