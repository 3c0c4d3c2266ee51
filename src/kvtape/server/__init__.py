"""Talking to a server as an ordinary client."""
