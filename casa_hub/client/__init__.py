"""The client for laptops and CI: short-lived credentials from the hub, in files where programs look for them.

It needs the standard library and nothing else, and imports nothing of the rest of casa_hub: the distribution
`casa-hub-client` is this directory, for machines without JupyterHub. To be read in this order: `addresses`, `names`,
`places`, `schedule` (pure); `files`, `store`, `wire`, `hub`, `login`, `keep`, `bundle`; `command`.
"""

__version__ = "0.1.0.dev0"
