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
"""

from __future__ import annotations

from dataclasses import dataclass

import hiredis

from kvtape.errors import ProtocolError, ServerError
from kvtape.replication.replica import NEED_DATA, NeedData
from kvtape.replication.resp import pack

PING = pack("PING")

# A replica says little: a command longer than this is not one of a replica.
_MAX_BUFFER = 64 * 1024

# A TLS handshake begins so; a replica with tls-replication sends one.
_TLS_HANDSHAKE = b"\x16\x03"


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
    """The replica has applied the stream up to offset."""

    offset: int


Event = Psync | Ack


class Primary:
    """Our half of one connection from a replica.

    listening_port and version are what the replica announced, if it did; version is
    sent by Valkey 8 and later only.
    """

    def __init__(self) -> None:
        self.listening_port: int | None = None
        self.version: str | None = None
        self._reader = hiredis.Reader()
        self._has_heard = False
        self._outgoing = b""

    def data_to_send(self) -> bytes:
        """Return, once, the bytes that the conversation needs sent by now."""
        data, self._outgoing = self._outgoing, b""
        return data

    def receive_data(self, data: bytes) -> None:
        """Add what the replica sent. Nothing is answered until next_event()."""
        if not self._has_heard and data.startswith(_TLS_HANDSHAKE):
            raise ServerError(
                "the target connects back by TLS, which a restore does not speak: "
                "CONFIG SET tls-replication no there for as long as it takes"
            )
        self._has_heard = self._has_heard or bool(data)
        self._reader.feed(data)
        if self._reader.len() > _MAX_BUFFER:
            raise ProtocolError("the target sent what no replica sends")

    def next_event(self) -> Event | NeedData:
        """Answer what needs no decision; return what does, or NEED_DATA."""
        try:
            while (command := self._reader.gets()) is not False:
                if (event := self._read(command)) is not None:
                    return event
        except hiredis.ProtocolError as error:
            raise ProtocolError(f"the target is no replica: {error}") from None
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

    def _read(self, command: object) -> Event | None:
        match command:
            case [bytes(name), *rest]:
                words = [word for word in rest if isinstance(word, bytes)]
                if len(words) == len(rest):
                    return self._answer(name.upper(), words)
            case _:
                pass
        raise ProtocolError(f"the target is no replica: it sent {command!r:.80}")

    def _answer(self, name: bytes, words: list[bytes]) -> Event | None:
        match name:
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
            return Ack(_integer(options[b"ack"]))
        if port := options.get(b"listening-port"):
            self.listening_port = _integer(port)
        if version := options.get(b"version"):
            self.version = version.decode("ascii", "replace")
        self._outgoing += b"+OK\r\n"
        return None


def _integer(word: bytes) -> int:
    try:
        return int(word)
    except ValueError:
        raise ProtocolError(f"the target sent {word!r:.40} for a number") from None
