"""Who is a member, and what follows for those who are none any more."""
