"""Being seen: what a recording does, for people, scripts and monitoring."""
