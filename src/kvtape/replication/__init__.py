"""The replication protocol, both ends of it, with no I/O."""
