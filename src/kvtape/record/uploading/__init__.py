"""From the spool to the repository, and what is there for certain."""
