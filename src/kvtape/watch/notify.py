"""Telling systemd that we are up, what we do, and that we are not stuck (sd_notify).

The protocol is one datagram of lines to the socket that NOTIFY_SOCKET names; a name
that begins with @ is abstract, and the @ stands for a zero byte. sd_notify(3) has the
lines, sd_watchdog_enabled(3) when the watchdog is to be told: half of WATCHDOG_USEC,
unless WATCHDOG_PID is another process.

READY=1 is said when every source has opened its spool, waits for what may pass, or
failed once: a unit that waits for a server which is down would be killed for starting
too slowly. The watchdog is told
from the loop that all recording runs in, so that silence means that it is stuck.

Decided against the package sdnotify: it is this, with less.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import trio

_log = logging.getLogger(__name__)

# How often STATUS= is refreshed where no watchdog asks for more.
_INTERVAL = 10.0

_USEC = 1_000_000


@dataclass(frozen=True, slots=True)
class Notifier:
    """Where to tell, and how often (s)."""

    address: str
    interval: float = _INTERVAL

    def tell(self, *lines: str) -> None:
        """Send lines; whoever supervises us may be gone, and that is not our end."""
        text = "\n".join(line.replace("\n", " ") for line in lines)
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sending:
                sending.setblocking(False)
                sending.sendto(text.encode(), self.address)
        except OSError as error:
            _log.debug("cannot notify %r: %s", self.address, error)

    async def keep_telling(self, status: Callable[[], str]) -> None:
        """Say that we are ready, then again and again that we live and what we do."""
        self.tell("READY=1", f"STATUS={status()}")
        while True:
            self.tell("WATCHDOG=1", f"STATUS={status()}")
            await trio.sleep(self.interval)

    def tell_stopping(self) -> None:
        """Say that what is left is storing what there is."""
        self.tell("STOPPING=1", "STATUS=storing what was recorded")


def find_notifier(environment: Mapping[str, str]) -> Notifier | None:
    """Return whom to tell, if the environment names somebody."""
    address = environment.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return None
    if address.startswith("@"):
        address = "\0" + address[1:]
    usec = environment.get("WATCHDOG_USEC", "")
    pid = environment.get("WATCHDOG_PID", str(os.getpid()))
    if pid != str(os.getpid()) or not usec.isdigit() or int(usec) == 0:
        return Notifier(address)
    return Notifier(address, min(_INTERVAL, int(usec) / _USEC / 2))
