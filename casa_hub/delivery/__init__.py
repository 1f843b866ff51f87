"""How credentials and routes reach a server: by a directory on this machine, or by a pod's Secret.

Shared by both homes: `deadline` (how long work may take), `traefik` (settings and checks of routes), `layout` (a
directory whose files change all at once), `gc` (removal of leftovers). Then `local` and `kubernetes`, one home each.
"""
