"""How long an outage the primary's backlog would cover, at the present write rate.

The backlog holds the last bytes of the stream. If the link is away for longer than it
takes to write that many, the primary has to take a new snapshot, and what was written
in between is a gap. The primary is asked for its backlog's size now and then, over a
connection of its own; the rate is what was received since it was asked last. Idle, a
backlog lasts for ever: math.inf.

A user without +info is asked once an hour and not twice a minute, since each refusal
stands in the server's ACL LOG.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass

import trio

from kvtape.errors import ServerError
from kvtape.record.agent import Agent
from kvtape.server.client import open_client
from kvtape.server.info import ask_info

_log = logging.getLogger(__name__)

INTERVAL = 20.0
_INTERVAL_IF_REFUSED = 3600.0

# Below so many seconds a restart of kvtape may cost a gap; docs/operations/alerts.yml
# and kvtape check have the same bar.
TOO_SHORT = 60.0

# PINGs alone are 14 bytes in 10 s; that is no rate of writes.
_IDLE_RATE = 10.0


@dataclass(slots=True)
class Headroom:
    """What was found out last: both None if unknown. rate is in bytes a second."""

    seconds: float | None = None
    rate: float | None = None

    async def watch(self, agent: Agent, interval: float = INTERVAL) -> None:
        """Find it out again and again, until cancelled, while a link stands."""
        while True:
            began, received = trio.current_time(), agent.recorder.received
            replid = agent.recorder.replid
            await trio.sleep(interval)
            rate = (agent.recorder.received - received) / (trio.current_time() - began)
            # Offsets of another history, or of none yet, are no measure.
            is_another = replid is None or replid != agent.recorder.replid
            if agent.trouble is not None or is_another or rate < 0:
                self.seconds = self.rate = None
                continue
            try:
                backlog = await _backlog(agent)
            except ServerError as error:
                _log.debug("cannot ask for the backlog: %s", error)
                self.seconds, self.rate = None, rate
                continue
            self.rate = rate
            if backlog is None:
                self.seconds, self.rate = None, rate
                await trio.sleep(_INTERVAL_IF_REFUSED - interval)
                continue
            seconds = backlog / rate if rate > _IDLE_RATE else math.inf
            self.seconds, self.rate = seconds, rate


async def _backlog(agent: Agent) -> int | None:
    """Ask how long the backlog is, in bytes; None if that is not told."""
    url = agent.linker.url
    if url is None:
        return None
    async with open_client(url) as client:
        info = await ask_info(client, "replication")
    return info.number("repl_backlog_size")
