"""Why a link broke, in the words of who runs the server.

A server closes the connection of a replica without a word, whatever the reason. What
can be known comes from what it said of itself before the link and says after it, and
from our own clock. All of that is compared here, the strongest evidence first; where
none is left, what is known is said, and that the rest is not.

What there is to compare (tried on Redis 6.2 to 8.0, Valkey 8.0 to 9.1): run_id changes
at each start; a promoted server has a new master_replid; a replica that gets another
history drops its own replicas, and one that only loses its primary does not;
client_output_buffer_limit_disconnections is neither in Redis 6.2 nor in 7.0. There is
no counter for repl-timeout and none for CLIENT KILL.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from kvtape.amounts import duration, size
from kvtape.server.info import ServerInfo

# A pause of ours that is not worth a word.
_SHORT = 3.0

_REPL_TIMEOUT = 60.0  # the servers' default

Phase = Literal["connecting", "snapshot", "streaming"]


@dataclass(frozen=True, slots=True)
class Cut:
    """What we know ourselves of a link that broke. Times are in s.

    replid is the history that was streamed, if it came to that; refusal what the server
    answers to us since; lasted how long the link stood, ago how long it is gone; paused
    how long this program did not run just before (stopped, suspended, starved), unread
    how long it did not read since its disk was slow; was_silent tells that it was we
    who gave up.
    """

    error: str
    phase: Phase
    offset: int
    replid: str | None = None
    lasted: float = 0.0
    ago: float = 0.0
    paused: float = 0.0
    unread: float = 0.0
    was_silent: bool = False
    refusal: str | None = None


@dataclass(frozen=True, slots=True)
class _Case:
    before: ServerInfo
    after: ServerInfo
    cut: Cut

    def changed(self, name: str) -> bool:
        """Whether a field is known both times, and another one now."""
        then, now = self.before.fields.get(name), self.after.fields.get(name)
        return then is not None and now is not None and then != now

    def grown(self, name: str) -> int | None:
        """By how much a counter grew; None if the server has none."""
        then, now = self.before.number(name), self.after.number(name)
        return None if then is None or now is None else now - then

    @property
    def has_another_history(self) -> bool:
        """Whether it streams another history than we recorded."""
        now = self.after.fields.get("master_replid")
        return None not in (self.cut.replid, now) and self.cut.replid != now

    @property
    def roles(self) -> tuple[str | None, str | None]:
        return self.before.server.role, self.after.server.role


def explain(before: ServerInfo, after: ServerInfo | None, cut: Cut) -> str:
    """Return why a link broke, as far as it can be known.

    before is what the server said of itself before the link, after what the server at
    the address says now; None if it may not be asked any more.
    """
    if after is None and cut.refusal is not None:
        return (
            f"it does not let this recording in any more: {cut.refusal}; a server "
            "closes the links of a user that is deleted"
        )
    if after is not None and after.fields.get("run_id") and before.fields.get("run_id"):
        case = _Case(before, after, cut)
        for reason in _REASONS:
            if (said := reason(case)) is not None:
                return said
    ours = _ours(cut, _REPL_TIMEOUT)
    if ours is not None:
        return ours
    return (
        "why is unknown, since the server does not tell about itself (its user lacks "
        f"+info); what was seen of it: {cut.error}"
    )


# The server itself.


def _another_server(case: _Case) -> str | None:
    if not case.changed("run_id"):
        return None
    uptime = case.after.number("uptime_in_seconds")
    # Whoever was up before the link broke is not the one that was restarted.
    if uptime is not None and uptime > case.cut.ago + 2:
        return (
            "another server answers at the address (its run_id is another, and it "
            f"is up for {duration(uptime)}): a failover behind a name or a load "
            "balancer, or a port taken over"
        )
    return f"the server was restarted; {_how_it_ended(case)}"


def _how_it_ended(case: _Case) -> str:
    """Return what the data it came back with tells of its end."""
    after, cut = case.after, case.cut
    # It remembers the history that it had when its RDB file was saved.
    saved = None
    if cut.replid is not None and after.fields.get("master_replid2") == cut.replid:
        saved = after.number("second_repl_offset")
    if saved is None:
        return "whether it was shut down or crashed, it does not tell"
    missing = cut.offset - (saved - 1)
    if missing <= 0:
        return "it has all that was recorded, as after an orderly shutdown"
    return (
        f"it came back without the last {size(missing)} of the stream that are "
        "recorded: it crashed, or was shut down without saving"
    )


def _role(case: _Case) -> str | None:
    then, now = case.roles
    after = case.after
    if after.fields.get("master_failover_state", "no-failover") != "no-failover":
        return "a FAILOVER is under way there"
    how = "a cluster failover" if after.is_clustered else "a failover, or REPLICAOF"
    upstream = _upstream(after)
    if (then, now) == ("primary", "replica"):
        return f"it was a primary and is now a replica of {upstream} ({how})"
    if (then, now) == ("replica", "primary"):
        return (
            f"it was a replica and is now a primary ({how}); a server that is promoted "
            "closes the links of its replicas"
        )
    if now == "replica" and upstream != _upstream(case.before):
        return (
            f"it was a replica of {_upstream(case.before)} and is now one of {upstream}"
            f" ({how})"
        )
    return None


def _upstream(info: ServerInfo) -> str:
    fields = info.fields
    return f"{fields.get('master_host', '?')}:{fields.get('master_port', '?')}"


def _its_own_primary(case: _Case) -> str | None:
    fields = case.after.fields
    if case.roles != ("replica", "replica"):
        return None
    upstream = _upstream(case.after)
    if fields.get("master_sync_in_progress") == "1":
        return (
            "it is a replica that takes a new snapshot from its own primary "
            f"{upstream}, and then has another history"
        )
    if fields.get("master_link_status") == "down":
        return f"it is a replica that has lost its own primary {upstream}"
    if case.has_another_history:
        return (
            f"it is a replica, and its own primary {upstream} has another history now "
            "(it was restarted, replaced, or failed over): a replica then closes the "
            "links of its own"
        )
    return None


def _history(case: _Case) -> str | None:
    if not case.has_another_history:
        return None
    if case.after.fields.get("master_replid2") == case.cut.replid:
        return "it was made a replica and a primary again (REPLICAOF)"
    return "the link broke for reasons unknown, and it has another history since"


# What it does to a replica.


def _limit(case: _Case) -> str | None:
    grown = case.grown("client_output_buffer_limit_disconnections")
    cut = case.cut
    if grown is not None and grown <= 0:
        return None
    if grown is None and max(cut.paused, cut.unread) < _SHORT:
        return None
    limits = replica_limits(case.after)
    if grown is None:
        timeout = _timeout(case.after)
        if cut.paused > timeout:
            return None
        return (
            f"{_slowness(cut)}; most likely the server's output buffer for it grew "
            f"beyond {limits} (a server this old does not count that), or the network "
            f"cut it; {_REMEDY}"
        )
    # The counter is of all clients, so that it alone proves little.
    surely = "" if max(cut.paused, cut.unread) >= _SHORT else "most likely, "
    return (
        f"{surely}the server's output buffer for this recording grew beyond {limits}; "
        f"it has closed {grown} connection{'s' * (grown > 1)} for such a limit since "
        f"the link began; {_slowness(cut)}; by how much it was over, it does not tell; "
        f"{_REMEDY}"
    )


_REMEDY = (
    "set client-output-buffer-limit replica to more than is written in the longest "
    "such pause, or to 0 0 0 where the memory allows"
)


def _slowness(cut: Cut) -> str:
    if cut.paused >= _SHORT:
        return (
            f"this program did not run for {duration(cut.paused)} (stopped, suspended "
            "or starved)"
        )
    if cut.unread >= _SHORT:
        return f"nothing was read for {duration(cut.unread)}, as the disk was slow"
    return "the network, or this program, took less than was written"


def replica_limits(info: ServerInfo) -> str:
    """Return the output buffer limits for replicas, as an operator would set them."""
    words = info.fields.get("client-output-buffer-limit", "").split()
    # In fours: the class, hard and soft limit in bytes, and the seconds for the soft.
    # All releases still answer with the old word for a replica.
    for start in range(0, len(words) - 3, 4):
        name, hard, soft, seconds = words[start : start + 4]
        if name in ("slave", "replica") and (hard + soft + seconds).isdigit():
            return (
                f"client-output-buffer-limit replica (hard {_or_none(int(hard))}, soft "
                f"{_or_none(int(soft))} for {seconds} s)"
            )
    return "client-output-buffer-limit replica (by default 256mb, or 64mb for 60 s)"


def _or_none(limit: int) -> str:
    return size(limit) if limit else "none"


def _timeout(info: ServerInfo) -> float:
    return float(info.number("repl-timeout") or _REPL_TIMEOUT)


def _silence(case: _Case) -> str | None:
    return _ours(case.cut, _timeout(case.after))


def _ours(cut: Cut, timeout: float) -> str | None:
    """Return what our own clock tells."""
    if cut.was_silent:
        return cut.error
    if cut.paused > timeout:
        return (
            f"{_slowness(cut)}, and a server gives up a replica that is silent for "
            f"longer than its repl-timeout ({duration(timeout)})"
        )
    if cut.paused >= _SHORT:
        return (
            f"{_slowness(cut)}; whether that is why the link broke, or the network, or "
            "CLIENT KILL, is unknown"
        )
    return None


def _snapshot(case: _Case) -> str | None:
    status = "rdb_last_bgsave_status"
    if case.cut.phase == "snapshot" and case.changed(status):
        return (
            "the server could not make the snapshot (rdb_last_bgsave_status:"
            f"{case.after.fields[status]}); its log says why"
        )
    return None


def _somebody(case: _Case) -> str:
    counts = "client_output_buffer_limit_disconnections" in case.after.fields
    buffer = " and closed nothing over an output buffer limit" if counts else ""
    same = "role" if case.cut.replid is None else "role and history"
    return (
        "somebody or something cut this connection (CLIENT KILL, or a change of its "
        "user's rights), or the network did: the server is up, has the same run_id, "
        f"{same} as before{buffer}"
    )


_REASONS: tuple[Callable[[_Case], str | None], ...] = (
    _another_server,
    _role,
    _its_own_primary,
    _limit,
    _silence,
    _snapshot,
    _history,
    _somebody,
)
