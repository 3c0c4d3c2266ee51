"""A folder that takes one MiB, or what is wanted, and not a byte more."""

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
    with mounted_disk(folder, SIZE) as is_mounted:
        if is_mounted:
            yield folder
            return
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (SIZE, hard))
        try:
            yield folder
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextmanager
def mounted_disk(folder: Path, size: int) -> Iterator[bool]:
    """Make a folder with a file system of its own, if that is allowed; yield whether.

    The size is in bytes. The file system is gone afterwards.
    """
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(folder)]
    is_mounted = _runs(mount)
    try:
        yield is_mounted
    finally:
        if is_mounted:
            # Also where a file is still open: it goes with the last one.
            _runs(["umount", "--lazy", str(folder)])


def _runs(command: list[str]) -> bool:
    try:
        done = subprocess.run(command, capture_output=True, check=False)
    except FileNotFoundError:
        return False
    return done.returncode == 0
