"""Pages of our own: log-in, its answer, and why somebody is refused."""
