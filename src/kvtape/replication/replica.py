"""The replica's half of a replication link, with no I/O.

Give it what the primary sent with receive_data(), call next_event() until it returns
NEED_DATA, and send the primary what data_to_send() returns. It never touches a socket,
a file or a clock.

An offset is the number of stream bytes that came before; it is what INFO replication
shows as master_repl_offset. PSYNC counts bytes from one and names the first it wants;
the "+ 1" that takes lives in _psync() and nowhere else.

Three rules that servers enforce shape the conversation (tried on Redis 6.2 to 8.0 and
Valkey 8.0 to 9.1):

- PSYNC is refused while another reply is owed ("SYNC and PSYNC are invalid with
  pending output"), so commands go one at a time, each after the last one's reply. And
  each REPLCONF option goes alone: an unknown one stops the rest of its command.
- Once the stream flows, anything that produces a reply ends the link (before Redis 7
  it lands in the stream), so then nothing is sent but ACKs and newlines, which do not.
- After a snapshot that ends with a mark, the stream starts at an ACK, and the ACK is
  forgotten if it comes before the primary has reaped its child. So ACKs must keep
  coming, also at offset 0; the caller's heartbeat sees to that.

Newlines are legal where a primary has nothing else to say: before its answer to PSYNC
and before a snapshot. They are not part of any offset.

A replica that only wants the snapshot says so (rdb-only); the conversation then ends
with it, since the server hangs up and streams nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

from kvtape.errors import ProtocolError, ServerError
from kvtape.replication.refusal import (
    closed_without_a_word,
    not_a_server,
    quoted,
    refused,
)
from kvtape.replication.resp import pack

# The longest line a server sends here is what it says in protected mode: up to 1101
# bytes (networking.c:clientAcceptHandler of Redis 6.2), more than the 1024 of the
# buffer that Redis itself reads these lines into.
MAX_LINE = 4096

# A diskless snapshot has no length: the primary invents 40 random bytes, says them up
# front, and says them again at the end.
MARK_LENGTH = 40

REPLID_LENGTH = 40

# Offsets and lengths are signed 64-bit numbers.
_HIGHEST = 2**63 - 1

# Servers accept and show any number; Sentinel ignores a replica whose port is beyond
# 65535, so that it never counts us as one of its own (sentinel.c:createSentinelAddr).
HIDDEN_PORT = 70000

# Valkey 9.1 gives a replica the RDB version that it says it can read, and an old one
# to a replica that says none; in that, field TTLs do not fit, and the snapshot fails
# every time (replication.c:replicaRdbVersion). Every part may be at most 255.
ANY_VERSION = "255.255.255"


class LinkError(ServerError):
    """The link to the primary broke; what was received until then is good."""


@dataclass(frozen=True, slots=True)
class Announced:
    """Where the primary is told that we listen; no host is where we connect from."""

    host: str | None
    port: int


HIDDEN = Announced(None, HIDDEN_PORT)


@dataclass(frozen=True, slots=True)
class FullResync:
    """The primary will send a snapshot taken at offset, then the stream from there."""

    replid: str
    offset: int


@dataclass(frozen=True, slots=True)
class Continue:
    """The primary will send the stream from the offset we asked for.

    The replid is another than we asked for if the primary was promoted meanwhile.
    """

    replid: str


@dataclass(frozen=True, slots=True)
class SnapshotStart:
    """The snapshot begins; length is None if a mark will end it."""

    length: int | None


@dataclass(frozen=True, slots=True)
class SnapshotData:
    """A piece of the RDB file."""

    data: bytes


@dataclass(frozen=True, slots=True)
class SnapshotEnd:
    """The RDB file is complete; the stream follows."""


@dataclass(frozen=True, slots=True)
class StreamData:
    """A piece of the stream, starting at offset. It may end in mid-command."""

    offset: int
    data: bytes


Event = FullResync | Continue | SnapshotStart | SnapshotData | SnapshotEnd | StreamData


class NeedData(Enum):
    """The type of NEED_DATA, so that mypy can tell it from an event."""

    NEED_DATA = auto()


NEED_DATA: Final = NeedData.NEED_DATA


class _State(Enum):
    HANDSHAKE = auto()  # waiting for the reply to what was sent last
    PSYNC = auto()  # waiting for +FULLRESYNC or +CONTINUE
    PREAMBLE = auto()  # waiting for $length or $EOF:mark
    SNAPSHOT = auto()
    STREAM = auto()
    DONE = auto()  # the snapshot was all that was wanted


# What it means that the connection ends.
_ENDS = {
    _State.HANDSHAKE: "the {peer} closed the connection in the handshake",
    _State.PSYNC: "the {peer} closed the connection in the handshake",
    _State.PREAMBLE: "the {peer} closed the connection before the snapshot; its log "
    "says why the snapshot failed",
    _State.SNAPSHOT: "the {peer} cut the link within the snapshot",
    _State.STREAM: "the {peer} cut the link after {offset}",
    _State.DONE: "the {peer} closed the connection after the snapshot",
}


@dataclass(frozen=True, slots=True)
class _Step:
    """One command of the handshake. An optional one may be refused."""

    words: tuple[str | int, ...]
    is_optional: bool = False

    @property
    def name(self) -> str:
        """What to call it in an error: never with its arguments if it is AUTH."""
        words = self.words[:1] if self.secret else self.words
        return " ".join(map(str, words))

    @property
    def secret(self) -> str:
        """The password in it, if there is one."""
        return str(self.words[-1]) if self.words[0] == "AUTH" else ""


class Replica:
    """Our half of one connection to a primary.

    Pass a replid and an offset to resume where an earlier connection stopped; the
    primary may refuse, and answer with FullResync instead of Continue. The first bytes
    to send are there from the start.

    next_event() raises RefusedError for what the primary refuses and ProtocolError for
    what it must not say; receive_end() returns the error for a link that broke.
    """

    def __init__(
        self,
        replid: str | None = None,
        offset: int = 0,
        *,
        username: str | None = None,
        password: str | None = None,
        announced: Announced = HIDDEN,
    ) -> None:
        self._replid = replid
        self._offset = offset
        self._snapshot_only = False
        self._steps = list(_handshake(username, password, announced))
        self._step = self._steps.pop(0)
        self._state = _State.HANDSHAKE
        self._has_heard = False
        self._buffer = b""
        self._outgoing = pack(*self._step.words)
        self._remaining = 0  # snapshot bytes still to come, when the length is known
        self._mark = b""  # otherwise, what the snapshot ends with

    @classmethod
    def for_snapshot(cls, username: str | None, password: str | None) -> Replica:
        """Return one that wants a snapshot and no stream: SnapshotEnd is its last.

        The other end is as a rule a replica, too.
        """
        replica = cls(username=username, password=password)
        replica._snapshot_only = True
        replica._steps.append(_Step(("REPLCONF", "rdb-only", 1)))
        return replica

    @property
    def is_online(self) -> bool:
        """Whether the stream flows, or would after an ACK: the time for heartbeats."""
        return self._state is _State.STREAM

    def data_to_send(self) -> bytes:
        """Return, once, the bytes that the conversation needs sent by now."""
        data, self._outgoing = self._outgoing, b""
        return data

    def ack(self, offset: int, durable: int | None = None) -> None:
        """Tell the primary that we hold the stream up to offset.

        durable is up to where it would survive anything, if that is to be told; a
        server before Redis 7.2 does not read so far. A primary keeps the highest of
        each that it was ever told, and refreshes its idea of our being alive whatever
        they are.
        """
        fack = () if durable is None else ("FACK", durable)
        self._outgoing += pack("REPLCONF", "ACK", offset, *fack)

    def receive_data(self, data: bytes) -> None:
        """Add what the primary sent. Nothing is parsed until next_event()."""
        self._has_heard = self._has_heard or bool(data)
        self._buffer = self._buffer + data if self._buffer else data

    def receive_end(self) -> ServerError:
        """Return the error that the end of the connection amounts to."""
        if not self._has_heard:
            return closed_without_a_word()
        peer = "replica" if self._snapshot_only else "primary"
        return LinkError(_ENDS[self._state].format(peer=peer, offset=self._offset))

    def next_event(self) -> Event | NeedData:
        """Return the next thing that happened, or NEED_DATA."""
        if self._state is _State.STREAM:
            return self._stream()
        if self._state is _State.DONE:
            return NEED_DATA
        if self._state is _State.SNAPSHOT:
            return self._marked_snapshot() if self._mark else self._sized_snapshot()
        return self._next_line()

    def _next_line(self) -> Event | NeedData:
        while (line := self._line()) is not None:
            if not line and self._state is not _State.HANDSHAKE:
                continue  # the primary is busy with its snapshot, and alive
            if (event := self._read_line(line)) is not None:
                return event
        return NEED_DATA

    def _line(self) -> bytes | None:
        end = self._buffer.find(b"\n", 0, MAX_LINE)
        if end < 0:
            if not_server := not_a_server(self._buffer):
                raise not_server
            if len(self._buffer) > MAX_LINE:
                raise ProtocolError(f"the server sent {MAX_LINE} bytes without a line")
            return None
        return self._take(end + 1).rstrip(b"\r\n")

    def _read_line(self, line: bytes) -> Event | None:
        if not_server := not_a_server(line):
            raise not_server
        match self._state:
            case _State.HANDSHAKE:
                self._read_reply(line)
                return None
            case _State.PSYNC:
                return self._read_psync_reply(line)
            case _:
                return self._read_preamble(line)

    def _read_reply(self, line: bytes) -> None:
        if line.startswith(b"-"):
            if not self._step.is_optional:
                raise refused(_text(line[1:]), self._step.name, self._step.secret)
        elif line != b"+OK":
            reply = quoted(_text(line), self._step.secret)
            raise ProtocolError(f"the server answered {self._step.name} with {reply}")
        if self._steps:
            self._step = self._steps.pop(0)
            self._outgoing += pack(*self._step.words)
        else:
            self._psync()

    def _psync(self) -> None:
        self._state = _State.PSYNC
        if self._replid is None:
            self._outgoing += pack("PSYNC", "?", -1)
        else:
            self._outgoing += pack("PSYNC", self._replid, self._offset + 1)

    def _read_psync_reply(self, line: bytes) -> Event:
        match line.split():
            case [b"+FULLRESYNC", replid, offset] if _is_replid(replid) and _is_number(
                offset
            ):
                self._state = _State.PREAMBLE
                self._offset = int(offset)
                return FullResync(_text(replid), self._offset)
            case [b"+CONTINUE"] if self._replid is not None:
                self._state = _State.STREAM
                return Continue(self._replid)
            case [b"+CONTINUE", replid] if (
                _is_replid(replid) and self._replid is not None
            ):
                self._state = _State.STREAM
                return Continue(_text(replid))
        if line.startswith(b"-"):
            raise refused(_text(line[1:]), "PSYNC")
        raise ProtocolError(f"the server answered PSYNC with {quoted(_text(line))}")

    def _read_preamble(self, line: bytes) -> Event:
        mark = line.removeprefix(b"$EOF:")
        if mark != line and len(mark) == MARK_LENGTH:
            self._state = _State.SNAPSHOT
            self._mark = mark
            return SnapshotStart(None)
        if line[:1] == b"$" and _is_number(line[1:]):
            self._state = _State.SNAPSHOT
            self._remaining = int(line[1:])
            return SnapshotStart(self._remaining)
        if line.startswith(b"-"):
            raise refused(_text(line[1:]), "PSYNC")
        raise ProtocolError(f"the server began a snapshot with {quoted(_text(line))}")

    def _sized_snapshot(self) -> Event | NeedData:
        if self._remaining == 0:
            return self._end_snapshot()
        if not self._buffer:
            return NEED_DATA
        data = self._take(self._remaining)
        self._remaining -= len(data)
        return SnapshotData(data)

    def _marked_snapshot(self) -> Event | NeedData:
        end = self._buffer.find(self._mark)
        if end == 0:
            self._take(MARK_LENGTH)
            return self._end_snapshot()
        # The last bytes we have may be the start of the mark, so they have to wait.
        safe = end if end > 0 else len(self._buffer) - MARK_LENGTH + 1
        return SnapshotData(self._take(safe)) if safe > 0 else NEED_DATA

    def _end_snapshot(self) -> SnapshotEnd:
        self._state = _State.DONE if self._snapshot_only else _State.STREAM
        return SnapshotEnd()

    def _stream(self) -> Event | NeedData:
        if not self._buffer:
            return NEED_DATA
        event = StreamData(self._offset, self._take(len(self._buffer)))
        self._offset += len(event.data)
        return event

    def _take(self, count: int) -> bytes:
        # Taking all there is copies nothing, and online that is what happens.
        data, self._buffer = self._buffer[:count], self._buffer[count:]
        return data


def _handshake(
    username: str | None, password: str | None, announced: Announced
) -> tuple[_Step, ...]:
    auth: tuple[_Step, ...] = ()
    if password is not None:
        words = (username, password) if username is not None else (password,)
        auth = (_Step(("AUTH", *words)),)
    address: tuple[_Step, ...] = ()
    if announced.host is not None:
        address = (_Step(("REPLCONF", "ip-address", announced.host)),)
    return (
        *auth,
        _Step(("REPLCONF", "listening-port", announced.port)),
        *address,
        _Step(("REPLCONF", "capa", "eof")),
        _Step(("REPLCONF", "capa", "psync2")),
        # Servers before Valkey 8 do not know it, and need not.
        _Step(("REPLCONF", "version", ANY_VERSION), is_optional=True),
    )


def _is_replid(word: bytes) -> bool:
    # It becomes the name of a folder. Real ones are hexadecimal.
    return len(word) == REPLID_LENGTH and word.isalnum()


def _is_number(word: bytes) -> bool:
    return word.isdigit() and int(word) <= _HIGHEST


def _text(line: bytes) -> str:
    return line.decode("utf-8", "replace")
