"""Replaying: the recorded stream again, into a running server, as a client."""
