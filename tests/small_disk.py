"""A folder that takes one MiB and not a byte more."""

from __future__ import annotations

import resource
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SIZE = 1024 * 1024


@contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """Mount a file system of 1 MiB at folder; it is gone afterwards.

    Who may not mount gets the system's limit on the length of a file instead, for the
    whole process as long as it lasts; writing beyond it fails much like a full disk.
    """
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "none", str(folder)]
    if _runs(mount):
        try:
            yield folder
        finally:
            # Also where a file is still open: it goes with the last one.
            _runs(["umount", "--lazy", str(folder)])
    else:
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (SIZE, hard))
        try:
            yield folder
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def _runs(command: list[str]) -> bool:
    try:
        done = subprocess.run(command, capture_output=True, check=False)
    except FileNotFoundError:
        return False
    return done.returncode == 0
