"""A child that clears up when its parent is gone, however that ended: also by kill -9.

Nobody can catch that signal, but the kernel closes what a dead process had open. So a
keeper has one end of a pipe as its standard input, which nothing is ever written to,
and its parent has the other. When that is closed, it does what it is there for: kills
the server that it has started, or removes a folder. An orderly end is the same: the
parent closes the pipe and waits for the keeper.

    keeper.py server PROGRAM [ARGUMENT]…     SIGTERM is passed on to the server
    keeper.py folder PATH

It is run as a file, without the environment and installed packages, to be there within
some hundredths of a second; so it may import nothing but the standard library.

Decided against: PR_SET_PDEATHSIG, which only Linux has, goes by the thread that started
the child (trio's are gone after a while) and removes no folder; and to clear up at the
next start, which may be never, while the disk is full.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from typing import NoReturn

# For so long (s) something may still write into a folder: the server that is killed.
_PATIENCE = 10.0
_POLL = 0.02


def main(what: str, *arguments: str) -> NoReturn:
    """Be a keeper; of a server, exit with its status as a shell tells it."""
    if what == "server":
        _keep_server(arguments)
    # Its parent decides, also where a service is stopped by a signal to all of it.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    _wait_for_end()
    for path in arguments:
        _remove(path)
    sys.exit(0)


def _keep_server(command: tuple[str, ...]) -> NoReturn:
    try:
        server = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    except OSError as error:
        sys.exit(f"cannot run {command[0]}: {error.strerror}")
    signal.signal(signal.SIGTERM, lambda *_: server.terminate())

    def kill_at_end() -> None:
        _wait_for_end()
        server.kill()

    threading.Thread(target=kill_at_end, daemon=True).start()
    status = server.wait()
    # At once: the thread still reads what the interpreter would wait to close.
    os._exit(status if status >= 0 else 128 - status)


def _wait_for_end() -> None:
    while os.read(sys.stdin.fileno(), 1):
        pass


def _remove(folder: str) -> None:
    until = time.monotonic() + _PATIENCE
    while os.path.lexists(folder) and time.monotonic() < until:
        shutil.rmtree(folder, ignore_errors=True)
        time.sleep(_POLL)


if __name__ == "__main__":
    main(*sys.argv[1:])
