"""The hub side of an analysis facility: single sign-on, membership, and working credentials for every server."""

__version__ = "0.1.0.dev0"
