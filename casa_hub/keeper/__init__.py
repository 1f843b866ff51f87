"""While servers run: credentials stay fresh, and who is no member any more has no access."""
