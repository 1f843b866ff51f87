"""A whole facility on one machine: the real servers, started without root and stopped without a trace."""
