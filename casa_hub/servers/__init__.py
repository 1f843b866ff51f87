"""While servers run: what they hold stays fresh, and what they lack comes back."""
