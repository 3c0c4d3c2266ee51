"""Asking the recorded stream: which commands, how many, and what became of a key."""
