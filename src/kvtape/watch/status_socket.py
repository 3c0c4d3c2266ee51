"""The Unix socket in a spool folder that says what its agent does.

One connection is a JSON document a line, and the end of them: first of the agent that
has the spool, then of the sources of the same process that have none open, since nobody
else could tell of those. Who may read the spool may ask:
the socket's mode is 0600. A socket that a killed agent left is replaced by renaming a
new one over it; the spool's lock has made sure by then that nobody else records here.

A socket's path has at most 107 bytes, and a spool's may be longer. Linux reaches it by
a short name for the open folder, /proc/self/fd/N. Where there is no /proc, a longer
path is refused with a sentence.

Nothing here may hurt the recording: a socket that cannot be made is a line of the log.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import NoReturn

import msgspec
import trio

from kvtape.errors import CheckError, RepositoryError
from kvtape.watch.status import Status

_log = logging.getLogger(__name__)

NAME = "status.sock"

# sun_path on Linux without its final zero; other systems have 103.
_LONGEST_PATH = 103

_OPEN_FOLDERS = Path("/proc/self/fd")

# Whoever asks reads at once; who does not is not waited for.
_SEND_TIMEOUT = 5.0
ASK_TIMEOUT = 5.0

_MOST_BYTES = 1024 * 1024
_RECEIVE = 64 * 1024


async def serve_statuses(spool: Path, told: Callable[[], Sequence[Status]]) -> None:
    """Answer everybody who asks, until cancelled."""
    try:
        with _short(spool) as folder:
            listening = _listen(folder)
    except OSError as error:
        _log.warning(
            "kvtape status will not find this recording: cannot make %s: %s",
            spool / NAME,
            error.strerror or error,
        )
        return
    try:
        await _serve(listening, told)
    finally:
        with suppress(OSError):
            (spool / NAME).unlink()


async def _serve(
    listening: socket.socket, told: Callable[[], Sequence[Status]]
) -> NoReturn:
    listener = trio.SocketListener(trio.socket.from_stdlib_socket(listening))
    await trio.serve_listeners(partial(_answer, told), [listener])


async def _answer(
    told: Callable[[], Sequence[Status]], stream: trio.SocketStream
) -> None:
    try:
        content = msgspec.json.Encoder().encode_lines(told())
    except Exception:  # noqa: BLE001 what is only shown must not end the recording
        _log.exception("cannot tell the status")
        content = b""
    with trio.move_on_after(_SEND_TIMEOUT), suppress(trio.BrokenResourceError):
        await stream.send_all(content)
    await trio.aclose_forcefully(stream)


def _listen(folder: str) -> socket.socket:
    """Return a listening socket at a path that is short enough."""
    new, path = f"{folder}/.{NAME}", f"{folder}/{NAME}"
    listening = socket.socket(socket.AF_UNIX)
    try:
        with suppress(FileNotFoundError):
            os.unlink(new)  # noqa: PTH108
        listening.bind(new)
        # Nobody can connect before listen(), so that nobody slips in before chmod().
        os.chmod(new, 0o600)  # noqa: PTH101
        listening.listen()
        os.replace(new, path)  # noqa: PTH105
    except BaseException:
        listening.close()
        raise
    return listening


@contextmanager
def _short(spool: Path) -> Iterator[str]:
    """Have a path to a folder that leaves room for the names of sockets."""
    path = str(spool.absolute())
    if len(os.fsencode(path)) + len(NAME) + 2 <= _LONGEST_PATH:
        yield path
        return
    if not _OPEN_FOLDERS.exists():
        raise OSError(None, "the path of the spool is too long for a Unix socket")
    opened = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield f"{_OPEN_FOLDERS}/{opened}"
    finally:
        os.close(opened)


def ask_statuses(spool: Path) -> list[Status]:
    """Ask the agent that records with a spool; CheckError if there is none. Blocks.

    Its own status comes first.
    """
    content = b""
    try:
        with socket.socket(socket.AF_UNIX) as asking:
            asking.settimeout(ASK_TIMEOUT)
            with _short(spool) as folder:
                asking.connect(f"{folder}/{NAME}")
            while len(content) < _MOST_BYTES and (data := asking.recv(_RECEIVE)):
                content += data
    except (FileNotFoundError, ConnectionRefusedError, NotADirectoryError):
        raise CheckError(
            f"no agent has the spool {spool} open: start kvtape record, or give its "
            "--spool; if it runs, its log says what it waits for"
        ) from None
    except TimeoutError:
        raise CheckError(
            f"the agent of the spool {spool} did not answer for {ASK_TIMEOUT:.0f} s: "
            "it hangs"
        ) from None
    except OSError as error:
        raise RepositoryError(
            f"cannot ask the agent of the spool {spool}: {error.strerror or error}"
        ) from None
    try:
        # Nothing at all is said by an agent that has a bug, or just ends.
        return msgspec.json.Decoder(Status).decode_lines(content or b"{}")
    except msgspec.DecodeError as error:
        raise CheckError(
            f"the agent of the spool {spool} did not answer with a status ({error}): "
            "it is of another version of kvtape, or just ended"
        ) from None
