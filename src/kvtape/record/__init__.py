"""Recording: from the socket to the repository."""
