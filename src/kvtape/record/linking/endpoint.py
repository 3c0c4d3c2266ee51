"""A small server at the address we announce, for those who come to look at a replica.

Who comes is a primary that was told FAILOVER and picked us, and Sentinel. Both must
learn that there is nothing to promote: PSYNC is refused, so that the primary gives its
FAILOVER up at once, and INFO tells of a replica of priority 0 that is not to be listed.

Whoever can reach the port may come, so nothing is believed and nothing kept. Commands,
their words and connections are few and short, silence ends a connection, and what one
of them does is never seen by another. No password is asked for: there is nothing to
guard, and a primary logs in with the one it has (primaryauth) before it asks; it gets
+OK, or its FAILOVER would hang at that.

Sentinel tells every replica whom to follow after a failover, and waits until INFO says
that it does (a minute and more, while others wait their turn). So SLAVEOF is
answered by +OK, and what INFO says on that connection follows it; whom we record does
not. A PUBLISH reaches nobody: what one Sentinel says to others there, they believe, and
it could come from anybody here.
"""

from __future__ import annotations

import errno
import logging
import re
import secrets
import socket
from collections.abc import Callable
from dataclasses import dataclass, field

import trio

from kvtape.errors import ProtocolError, UsageError
from kvtape.replication.primary import first_command
from kvtape.replication.replica import Announced
from kvtape.replication.resp import pack
from kvtape.server.url import format_address

_log = logging.getLogger(__name__)

# Each of a few sentinels has two, and a primary one.
MOST_CONNECTIONS = 64

# Sentinel pings every second, and drops a subscription that is silent for six.
IDLE_TIMEOUT = 60.0

_RECEIVE = 4096

# What a command may be long: Sentinel's longest has a host, a port and two run IDs.
_MOST_BYTES = 16 * 1024

_HOST = re.compile(r"[A-Za-z0-9._:%-]{1,255}")

_OK = b"+OK\r\n"
_UNKNOWN = b"-ERR kvtape poses as a replica, and knows no such command\r\n"
_NOT_FOLLOWED = b"-ERR kvtape follows whom it was started for\r\n"
_NO_PRIMARY = b"-ERR kvtape records, and is no server to fail over to\r\n"

_REPLIES = {
    b"PING": b"+PONG\r\n",
    b"AUTH": _OK,
    b"REPLCONF": _OK,
    b"SELECT": _OK,
    b"PUBLISH": b":0\r\n",
    b"PSYNC": _NO_PRIMARY,
    b"SYNC": _NO_PRIMARY,
}

# What Sentinel and client libraries do to a connection, and to a file and clients of
# ours, of which there are none.
_SUBCOMMANDS = dict.fromkeys((b"SETNAME", b"SETINFO", b"KILL", b"REWRITE"), _OK)


@dataclass(frozen=True, slots=True)
class Standing:
    """Whom we record, up to which offset, and whether the link stands."""

    host: str
    port: int
    is_up: bool
    offset: int


@dataclass(slots=True)
class Posture:
    """What one connection is told; run_id is the same for all of one run.

    told is whom its other end said that we should follow.
    """

    standing: Callable[[], Standing]
    run_id: str
    told: tuple[str, int] | None = None

    def answer(self, words: list[bytes]) -> bytes:
        """Return the reply to a command."""
        name, *arguments = words
        match name.upper():
            case b"INFO":
                return _bulk(self._info().encode())
            case b"ROLE":
                return self._role()
            case b"SLAVEOF" | b"REPLICAOF":
                return self._follow(arguments)
            case name:
                return _answer_to_anybody(name, arguments)

    def _follow(self, arguments: list[bytes]) -> bytes:
        try:
            host, port = (word.decode("ascii") for word in arguments)
            number = int(port)
        except ValueError:
            return _NOT_FOLLOWED
        # What INFO says is one line for each fact.
        if not _HOST.fullmatch(host) or not 0 < number < 1 << 16:
            return _NOT_FOLLOWED
        self.told = host, number
        return _OK

    def _role(self) -> bytes:
        standing = self.standing()
        host, port = self.told or (standing.host, standing.port)
        state = b"connected" if standing.is_up else b"connect"
        return b"*5\r\n%b%b:%d\r\n%b:%d\r\n" % (
            _bulk(b"slave"),
            _bulk(host.encode()),
            port,
            _bulk(state),
            standing.offset,
        )

    def _info(self) -> str:
        standing = self.standing()
        host, port = self.told or (standing.host, standing.port)
        is_up = standing.is_up or self.told is not None
        facts = {
            "redis_mode": "standalone",
            "run_id": self.run_id,
            "role": "slave",
            "master_host": host,
            "master_port": port,
            "master_link_status": "up" if is_up else "down",
            "slave_read_repl_offset": standing.offset,
            "slave_repl_offset": standing.offset,
            "slave_priority": 0,
            "slave_read_only": 1,
            "replica_announced": 0,
            "connected_slaves": 0,
        }
        return "".join(f"{name}:{value}\r\n" for name, value in facts.items())


@dataclass(slots=True)
class Endpoint:
    """Listens where we announce that we do."""

    announced: Announced
    listeners: list[trio.SocketListener]
    run_id: str = field(default_factory=lambda: secrets.token_hex(20))
    _connections: int = 0

    async def run(self, standing: Callable[[], Standing]) -> None:
        """Answer whoever comes, until it is cancelled."""

        async def serve(stream: trio.SocketStream) -> None:
            await self._serve(stream, Posture(standing, self.run_id))

        await trio.serve_listeners(serve, self.listeners)

    def close(self) -> None:
        """Listen no more."""
        for listener in self.listeners:
            listener.socket.close()

    async def _serve(self, stream: trio.SocketStream, posture: Posture) -> None:
        async with stream:
            if self._connections >= MOST_CONNECTIONS:
                return
            self._connections += 1
            try:
                await _converse(stream, posture)
            except (ProtocolError, trio.BrokenResourceError) as error:
                _log.debug("somebody at the announced port: %s", error)
            except trio.TooSlowError:
                _log.debug("somebody at the announced port was silent for too long")
            finally:
                self._connections -= 1


async def _converse(stream: trio.abc.Stream, posture: Posture) -> None:
    """Answer one command after another, until there is no more or it takes too long."""
    buffer = b""
    while True:
        with trio.fail_after(IDLE_TIMEOUT):
            data = await stream.receive_some(_RECEIVE)
        if not data:
            return
        buffer += data
        while (command := first_command(buffer)) is not None:
            words, end = command
            buffer = buffer[end:]
            with trio.fail_after(IDLE_TIMEOUT):
                await stream.send_all(posture.answer(words))
        if len(buffer) > _MOST_BYTES:
            raise ProtocolError("a command is too long")


async def open_endpoint(host: str, port: int) -> Endpoint:
    """Listen at an address; UsageError if that cannot be.

    An address of another machine is one that leads here, from where the primary is:
    then all of this machine's are listened at.
    """
    address = await _resolve(host, port)
    try:
        listeners = await trio.open_tcp_listeners(port, host=address)
    except OSError as error:
        if error.errno != errno.EADDRNOTAVAIL:
            raise _cannot_listen(host, port, error) from error
        try:
            listeners = await trio.open_tcp_listeners(port)
        except OSError as again:
            raise _cannot_listen("", port, again) from again
        _log.info(
            "%s is no address of this machine: listening on port %d at all it has",
            address,
            port,
        )
    return Endpoint(Announced(address, port), listeners)


async def _resolve(host: str, port: int) -> str:
    """Return the address of a host: Sentinel takes a name for nothing by default."""
    try:
        found = await trio.socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise UsageError(f"--announce: {host!r} is no host: {error}") from None
    return str(found[0][4][0])


def _cannot_listen(host: str, port: int, error: OSError) -> UsageError:
    where = format_address(host, port) if host else f"port {port}"
    reason = error.strerror or str(error)
    return UsageError(
        f"cannot listen on {where}, which --announce names: {reason}; end what listens "
        "there, or announce another port"
    )


def _answer_to_anybody(name: bytes, arguments: list[bytes]) -> bytes:
    """Return the reply to a command that is the same whoever asks."""
    match name:
        case b"SUBSCRIBE" if arguments:
            return b"".join(
                b"*3\r\n%b%b:%d\r\n" % (_bulk(b"subscribe"), _bulk(channel), number)
                for number, channel in enumerate(arguments, 1)
            )
        case b"HELLO" if arguments[:1] not in ([], [b"2"]):
            return b"-NOPROTO unsupported protocol version\r\n"
        case b"HELLO":
            return pack("server", "kvtape", "proto", 2, "role", "replica")
        case b"CLIENT" | b"CONFIG" if arguments:
            return _SUBCOMMANDS.get(arguments[0].upper(), _UNKNOWN)
    return _REPLIES.get(name, _UNKNOWN)


def _bulk(content: bytes) -> bytes:
    return b"$%d\r\n%b\r\n" % (len(content), content)
