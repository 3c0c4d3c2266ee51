"""What was recorded, read back without kvtape: names, Zstandard, and nothing else."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import zstandard


def command(*words: str | bytes | int) -> bytes:
    """Return a command as a primary writes it."""
    encoded = [
        word if isinstance(word, bytes) else str(word).encode() for word in words
    ]
    lines = [b"*%d\r\n" % len(encoded)]
    lines += [b"$%d\r\n%s\r\n" % (len(word), word) for word in encoded]
    return b"".join(lines)


def decompressed(content: bytes) -> bytes:
    """Return what zstd -dc prints of a file."""
    decompressor = zstandard.ZstdDecompressor()
    with decompressor.stream_reader(content, read_across_frames=True) as reader:
        data: bytes = reader.read()
    return data


def stream_of(folders: Iterable[Path] | Path, replid: str) -> tuple[int, bytes]:
    """Return where the stream of a history begins, and its bytes.

    folders are those of a source: in repositories, or the queue of a spool.

    AssertionError if there is a hole in it, an overlap, or a name that is not true.
    """
    folders = [folders] if isinstance(folders, Path) else folders
    files = {
        file.name: file
        for folder in folders
        for file in folder.glob(f"stream/{replid}/*/*.seg")
    }
    start: int | None = None
    data = b""
    for name, file in sorted(files.items()):
        first, end = (int(offset) for offset in name.split("-")[:2])
        start = first if start is None else start
        assert first == start + len(data), f"{name} does not follow {start + len(data)}"
        data += decompressed(file.read_bytes())
        assert end == start + len(data), f"{name} holds {len(data)} bytes from {start}"
    assert start is not None, f"nothing is recorded of {replid}"
    return start, data


def documents_of(
    folders: Iterable[Path] | Path, pattern: str
) -> list[dict[str, object]]:
    """Return the JSON documents whose path matches, in order of their paths."""
    folders = [folders] if isinstance(folders, Path) else folders
    files = {
        file.relative_to(folder): file
        for folder in folders
        for file in folder.glob(pattern)
    }
    return [json.loads(file.read_bytes()) for _, file in sorted(files.items())]
