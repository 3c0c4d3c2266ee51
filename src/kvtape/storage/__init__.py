"""Where bytes are kept: the stores, the repository, and the spool in front of it."""
