"""The identity provider of the tests is the one that facilities' own tests have."""

from casa_hub.testing.idp import IdP

__all__ = ["IdP"]
