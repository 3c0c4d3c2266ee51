"""What a test wrote to real servers is what the audit lists: all of it, in order."""

from __future__ import annotations

from pathlib import Path

from chronicle import chronicle


def test_it_lists_what_was_written_in_order(server_name: str, tmp_path: Path) -> None:
    made = chronicle(server_name, tmp_path)
    assert len(made.written) > len(made.entries) > 1000
