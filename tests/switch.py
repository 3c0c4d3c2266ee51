"""An address that servers change behind, over a network that can be as bad as wanted.

It hides from a recorder which server it talks to, as a virtual IP or a proxy in front
of a failover does, and takes a replica's link to its primary away for certain: what is
written then does not even wait for it in the kernel. A switch that is stopped keeps its
links and says nothing, like a host that lost its power.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Self

# No link waits for it: it only bounds how long a thread outlives a test that broke.
_PATIENCE = 60.0

_PIECE = 16 * 1024


class Switch:
    """Relays from `port` to the server at `target`; None refuses everybody.

    before is called with each piece before it is passed on, in a thread.
    """

    def __init__(self, target: int | None) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.before: Callable[[bytes], None] = lambda data: None
        self._target = target
        self._may_pass = threading.Event()
        self._may_pass.set()
        self._bytes_per_second: int | None = None
        self._lock = threading.Lock()
        self._links: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def turn_to(self, target: int | None) -> None:
        """Cut all links, and relay to another server from now on."""
        with self._lock:
            self._target = target
            for link in self._links:
                _shut(link)
            self._links.clear()

    def cut(self) -> None:
        """Cut all links; new ones are welcome."""
        self.turn_to(self._target)

    def stop(self) -> None:
        """Pass nothing on, and cut nothing, until heal()."""
        self._may_pass.clear()

    def slow_down(self, bytes_per_second: int) -> None:
        """Pass on no more than this over each link each way, until heal()."""
        self._bytes_per_second = bytes_per_second

    def heal(self) -> None:
        """Pass everything on at once."""
        self._bytes_per_second = None
        self._may_pass.set()

    def close(self) -> None:
        """Cut all links and go away."""
        self.heal()
        self.turn_to(None)
        _shut(self._listener)
        for thread in self._threads:
            thread.join(_PATIENCE)
        self._listener.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                link, _ = self._listener.accept()
                with self._lock:
                    self._join(link)

    def _join(self, link: socket.socket) -> None:
        """Relay a link both ways, under the lock."""
        try:
            if self._target is None:
                raise ConnectionRefusedError
            server = socket.create_connection(("127.0.0.1", self._target))
        except OSError:
            link.close()
            return
        self._links += [link, server]
        for source, sink in ((link, server), (server, link)):
            thread = threading.Thread(
                target=self._relay, args=(source, sink), daemon=True
            )
            self._threads.append(thread)
            thread.start()

    def _relay(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(_PIECE):
                self._may_pass.wait()
                self.before(data)
                sink.sendall(data)
                if self._bytes_per_second:
                    time.sleep(len(data) / self._bytes_per_second)
        # Whichever end hung up: the other one learns of it.
        _shut(source)
        _shut(sink)
        source.close()


def _shut(link: socket.socket) -> None:
    with suppress(OSError):
        link.shutdown(socket.SHUT_RDWR)
