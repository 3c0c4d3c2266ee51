"""Restoring: from the repository to a folder or a running server."""
