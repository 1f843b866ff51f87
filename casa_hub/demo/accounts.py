"""The people who can log in to the demo."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Account:
    """An account at the demo's identity provider."""

    name: str
    groups: tuple[str, ...]
    #: Shown to the person who tries the demo.
    about: str

    @property
    def full_name(self) -> str:
        """In the person's certificate."""
        return self.name.title()

    @property
    def claims(self) -> dict[str, object]:
        """The claims that INDIGO IAM would give with its profile `wlcg`."""
        return {"sub": self.name, "preferred_username": self.name, "wlcg.groups": list(self.groups)}


#: The demo's host names are below this domain: ``oksana.dask.localhost``.
DOMAIN = "localhost"
#: The group of the members, and the group of the hub's administrators.
MEMBERS = "/cms/uscms"
ADMINISTRATORS = "/cms/uscms/admins"
#: The virtual organisation of the members.
VO = "cms"
#: Name of the authority that the people's certificates are of.
PEOPLE = "People of the demo"

#: Seconds between two membership checks; a facility would choose some minutes.
RECHECK_INTERVAL = 5.0

MEMBER = Account("oksana", ("/cms", MEMBERS), "a member: gets a server with working credentials")
ADMINISTRATOR = Account(
    "maria", ("/cms", MEMBERS, ADMINISTRATORS), "an administrator: a member who also sees Admin and Facility"
)
STRANGER = Account("guest", ("/atlas",), f"signs in, but is not in {MEMBERS}: refused, and told why")
ACCOUNTS = (MEMBER, ADMINISTRATOR, STRANGER)
