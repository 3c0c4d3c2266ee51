"""A snapshot from elsewhere, for a primary that is not to fork."""
