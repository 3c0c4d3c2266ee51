"""The primary's half of a replication link, with no I/O.

It serves restores to real servers, and it is the fake primary of the tests of the
replica's half, so that the fake cannot drift from what is shipped.

The caller feeds it what the replica sent, answers the Psync event with full_resync() or
partial_resync(), and from then on writes the snapshot and the stream to the socket
itself: nothing of them passes through here. What real replicas need of a primary (tried
on Redis 6.2 to 8.0 and Valkey 8.0 to 9.1):

- A replica asks first to resume what it followed before, so Psync often names an
  unknown replid. An error would make it fall back to SYNC, which has no offsets.
- A snapshot of known length may be followed by the stream at once. After one that ends
  with a mark, nothing may follow until the first ACK: a replica looks for the mark at
  the end of what it has read.
- Newlines are welcome between Psync and the snapshot, and nowhere else: in the stream
  they count in the offset, and within a snapshot they are snapshot.
- An inline command makes a replica drop the link and everything it knows.
- A replica sends newlines, too: while it empties itself and loads a snapshot, to say
  that it is alive (replication.c:replicationSendNewlineToMaster).

Commands are parsed here and not by hiredis, which never tells where one ends, so that
a newline between two of them could not be skipped; and it makes room for as many words
as a header announces, on a port that anyone may connect to.
"""

from __future__ import annotations

from dataclasses import dataclass

from kvtape.errors import ProtocolError, ServerError
from kvtape.replication.replica import NEED_DATA, NeedData
from kvtape.replication.resp import pack

PING = pack("PING")

# A replica says little: what is longer than this is not one of its commands.
_MOST_WORDS = 64
_MOST_BYTES = 64 * 1024
_LONGEST_LINE = len("$65536\r\n")

# A TLS record of type handshake begins so; a replica with tls-replication sends one.
_TLS_HANDSHAKE = b"\x16"


@dataclass(frozen=True, slots=True)
class Psync:
    """The replica asks for the stream from offset on.

    replid is None if it knows no history, and offset is then meaningless. Offset is
    the number of bytes it has, so what it wants first is the byte after that.
    """

    replid: str | None
    offset: int


@dataclass(frozen=True, slots=True)
class Ack:
    """The replica has applied the stream up to offset.

    durable is up to where it says that it would survive a crash, if it does.
    """

    offset: int
    durable: int | None = None


Event = Psync | Ack


class Primary:
    """Our half of one connection from a replica.

    listening_port and version are what the replica announced, if it did; version is
    sent by Valkey 8 and later only. next_event() raises ServerError for a replica that
    wants TLS and ProtocolError for what no replica says; there is no going on then.
    """

    def __init__(self) -> None:
        self.listening_port: int | None = None
        self.version: str | None = None
        self._buffer = b""
        self._outgoing = b""

    def data_to_send(self) -> bytes:
        """Return, once, the bytes that the conversation needs sent by now."""
        data, self._outgoing = self._outgoing, b""
        return data

    def receive_data(self, data: bytes) -> None:
        """Add what the replica sent. Nothing is answered until next_event()."""
        self._buffer += data

    def next_event(self) -> Event | NeedData:
        """Answer what needs no decision; return what does, or NEED_DATA."""
        while (command := self._take_command()) is not None:
            name, *words = command
            if (event := self._answer(name.upper(), words)) is not None:
                return event
        return NEED_DATA

    def full_resync(
        self, replid: str, offset: int, *, length: int | None, mark: bytes = b""
    ) -> None:
        """Answer Psync with a snapshot, which the caller sends next, then the stream.

        A snapshot of unknown length (None) ends with the 40 bytes of mark, which the
        caller sends too.
        """
        preamble = f"$EOF:{mark.decode()}" if length is None else f"${length}"
        self._outgoing += f"+FULLRESYNC {replid} {offset}\r\n{preamble}\r\n".encode()

    def partial_resync(self, replid: str) -> None:
        """Answer Psync with the stream, which the caller sends from there on."""
        self._outgoing += f"+CONTINUE {replid}\r\n".encode()

    def refuse(self, error: str) -> None:
        """Answer with an error, such as "LOADING Redis is loading"."""
        self._outgoing += f"-{error}\r\n".encode()

    def _take_command(self) -> list[bytes] | None:
        self._buffer = self._buffer.lstrip(b"\n")
        if self._buffer.startswith(_TLS_HANDSHAKE):
            raise ServerError(
                "the target connects back by TLS, which a restore does not speak: "
                "CONFIG SET tls-replication no there for as long as it takes"
            )
        if (command := first_command(self._buffer)) is None:
            return None
        words, end = command
        self._buffer = self._buffer[end:]
        return words

    def _answer(self, name: bytes, words: list[bytes]) -> Event | None:
        match name:
            case b"PSYNC" if b"FAILOVER" in map(bytes.upper, words):
                # A primary wants us to take its place, and to follow us.
                self.refuse("ERR this is no server to fail over to")
            case b"PSYNC":
                return self._psync(words)
            case b"REPLCONF":
                return self._replconf(words)
            case b"PING":
                self._outgoing += b"+PONG\r\n"
            case b"AUTH":
                # We have no password; a target with a primaryauth must not fail here.
                self._outgoing += b"+OK\r\n"
            case _:
                self.refuse("ERR unknown command")
        return None

    def _psync(self, words: list[bytes]) -> Event:
        try:
            replid, wanted = words[0].decode(), int(words[1])
        except (IndexError, ValueError):
            raise ProtocolError(f"the target asked for PSYNC {words!r:.80}") from None
        return Psync(None if replid.startswith("?") else replid, wanted - 1)

    def _replconf(self, words: list[bytes]) -> Event | None:
        options = dict(zip(words[::2], words[1::2], strict=False))
        options = {name.lower(): value for name, value in options.items()}
        if b"ack" in options:
            # The one command that must not be answered.
            durable = options.get(b"fack")
            return Ack(
                _integer(options[b"ack"]),
                None if durable is None else _integer(durable),
            )
        if port := options.get(b"listening-port"):
            self.listening_port = _integer(port)
        if version := options.get(b"version"):
            self.version = version.decode("ascii", "replace")
        self._outgoing += b"+OK\r\n"
        return None


def first_command(data: bytes) -> tuple[list[bytes], int] | None:
    """Return the words of the command that data begins with, and where it ends.

    None if it is not complete.
    """
    if (header := _length(b"*", data, 0)) is None:
        return None
    count, end = header
    if not 0 < count <= _MOST_WORDS:
        raise ProtocolError(f"the target is no replica: it sent {count} words at once")
    words = []
    for _ in range(count):
        if (header := _length(b"$", data, end)) is None:
            return None
        length, start = header
        end = start + length + len(b"\r\n")
        if end > _MOST_BYTES:
            raise ProtocolError("the target is no replica: it sent too long a command")
        if len(data) < end:
            return None
        words.append(data[start : start + length])
    return words, end


def _length(kind: bytes, data: bytes, start: int) -> tuple[int, int] | None:
    """Return the number in a line such as $40, and where the line ends.

    None if it is not complete.
    """
    end = data.find(b"\n", start, start + _LONGEST_LINE) + 1
    line = data[start : end or start + _LONGEST_LINE]
    if not end and len(line) < _LONGEST_LINE and line[:1] in (b"", kind):
        return None
    digits = line[1:-2]
    if line[:1] != kind or line[-2:] != b"\r\n" or not digits.isdigit():
        raise ProtocolError(f"the target is no replica: it sent {line!r}")
    return int(digits), end


def _integer(word: bytes) -> int:
    try:
        return int(word)
    except ValueError:
        raise ProtocolError(f"the target sent {word!r:.40} for a number") from None
