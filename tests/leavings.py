"""What a moment that was loaded must not leave behind, and a way to damage one.

It hides where kvtape loads a moment: in a folder of its own within the temporary one
(`temporary` in conftest.py points there), by a server that has it in its arguments.
"""

from __future__ import annotations

from pathlib import Path

from kvtape.restore.state import FOLDER


def left_in(folder: Path) -> list[str]:
    """Return the folders that are left, and the processes that work in one."""
    processes = []
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            arguments = process.read_text(errors="replace")
        except OSError:
            continue  # it has ended
        if str(folder / FOLDER) in arguments:
            processes.append(arguments)
    return [*map(str, folder.glob(f"{FOLDER}*")), *processes]


def is_loading(folder: Path) -> bool:
    """Whether a server has been started on a moment."""
    processes = (each for each in left_in(folder) if "\0" in each)
    return any("-server" in each and "keeper" not in each for each in processes)


def damage(file: Path) -> None:
    """Flip one bit in the middle of a file."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
