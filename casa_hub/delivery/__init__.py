"""How credentials and routes reach a server: by a directory on this machine, or by a pod's Secret.

Shared by both homes: `deadline` (how long work may take), `traefik` (settings and checks of routes), `file_layout` (a
directory whose files change all at once), `removals` (of what has no living server). Then `local` and `kubernetes`, one
home each.
"""
