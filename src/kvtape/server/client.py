"""An ordinary client: one command, one reply.

It asks servers who they are, and drives the target of a restore. It is small because it
needs no more: no pool, no retry. Whoever calls it knows what a failure means at that
moment.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from itertools import islice
from typing import Final

import hiredis
import trio

from kvtape.errors import ServerError, cause_of
from kvtape.replication.refusal import (
    closed_without_a_word,
    not_a_server,
    refused,
)
from kvtape.replication.resp import pack
from kvtape.server.tls import (
    TlsStream,
    WrongNameError,
    build_context,
    encrypt,
    name_mismatch,
)
from kvtape.server.url import ServerUrl

CONNECT_TIMEOUT = 10.0

# A server that loads, forks or runs a script may be silent for long; one that is silent
# for a minute is not one to go on with.
REPLY_TIMEOUT = 60.0

# What is sent may take longer, at this many bytes a second.
_SLOWEST = 1024 * 1024

_RECEIVE = 64 * 1024

# hiredis moves the rest of its buffer to the front after each reply past the first KiB,
# which takes longer than all else where replies are as short as +QUEUED.
_PIECE = 1024

# What hiredis says if there is no whole reply. By default it says False, as which a
# reply of 0 counts.
_NOTHING: Final = object()

# What is not answered, where no single command is waited for.
_UNNAMED = ("what was sent",)

_NOT_LOGGED_IN = "NOAUTH"


# What connect() returns; both have a socket.
Stream = trio.SocketStream | TlsStream


# One word of a command.
Word = str | bytes | int


class ReplyError(ServerError):
    """The server answered with an error: the reply."""

    def __init__(self, message: str, reply: str) -> None:
        super().__init__(message)
        self.reply = reply


class Client:
    """A connection to a server. Errors are ServerError, or ReplyError for its own."""

    def __init__(self, stream: Stream, url: ServerUrl) -> None:
        self.url = url
        self._stream = stream
        self._reader = hiredis.Reader(notEnoughData=_NOTHING)
        self._unfed = memoryview(b"")
        self._has_heard = False

    @property
    def local_host(self) -> str:
        """The address of this machine that the server sees."""
        host: str = self._stream.socket.getsockname()[0]
        return host

    async def call(self, *words: Word, within: float = REPLY_TIMEOUT) -> object:
        """Send a command and return the reply: bytes, int, None or a list of these."""
        await self.send(words)
        return await self.reply(words, within=within)

    async def send(self, *commands: Sequence[Word]) -> None:
        """Send commands at once; each owes one reply(), in this order.

        What they are answered must be shorter than what the two systems hold for us,
        or they must be few: the server reads on only when it can answer.
        """
        if not commands:
            return
        data = b"".join(pack(*words) for words in commands)
        await self._send(data, commands[0])

    async def send_packed(self, data: bytes | memoryview) -> None:
        """Send commands that are packed already; each owes one of replies()."""
        await self._send(data, _UNNAMED)

    async def reply(
        self, words: Sequence[Word], *, within: float = REPLY_TIMEOUT
    ) -> object:
        """Return the reply to a command that was sent; ReplyError if it is an error.

        within is how long (s) the server may be silent; a long reply may take longer.
        """
        reply = await self._hear_out(words, within)
        if isinstance(reply, hiredis.ReplyError):
            raise self._answered(words, reply)
        return reply

    async def replies(self, count: int) -> list[object]:
        """Return so many replies to what was sent; hiredis.ReplyError is one, too.

        Of those that are there already, each costs a tenth of what reply() takes.
        """
        replies: list[object] = []
        await self.add_replies(replies, count)
        return replies

    async def add_replies(self, replies: list[object], count: int) -> None:
        """Add the same to some until they are so many.

        It may be cancelled, and those that came are there.
        """
        while not self.add_received(replies, count):
            replies.append(await self._hear_out(_UNNAMED, REPLY_TIMEOUT))

    def add_received(self, replies: list[object], count: int) -> bool:
        """Add those that have come already; return whether they are so many."""
        while True:
            replies += islice(iter(self._reader.gets, _NOTHING), count - len(replies))
            if len(replies) >= count:
                return True
            if not self._feed():
                return False

    def _feed(self) -> bool:
        """Feed the reader a piece of what has come; return whether there was any."""
        if not self._unfed:
            return False
        self._reader.feed(bytes(self._unfed[:_PIECE]))
        self._unfed = self._unfed[_PIECE:]
        return True

    async def _hear_out(self, words: Sequence[Word], within: float) -> object:
        async with self._patience(words, within) as scope:

            def hear() -> None:
                scope.deadline = trio.current_time() + within

            return await self.receive(hear)

    @asynccontextmanager
    async def _patience(
        self, words: Sequence[Word], within: float
    ) -> AsyncIterator[trio.CancelScope]:
        try:
            with trio.fail_after(within) as scope:
                yield scope
        except trio.TooSlowError:
            raise ServerError(
                f"{self.url.address} did not answer {words[0]!s} for {within:.0f} s"
            ) from None

    def _answered(
        self, words: Sequence[Word], reply: hiredis.ReplyError
    ) -> ServerError:
        if str(reply).startswith(_NOT_LOGGED_IN):
            # Not the refusal of one command: nothing at all is allowed.
            return refused(str(reply), str(words[0]))
        return ReplyError(
            f"{self.url.address} answered {words[0]!s} with: {reply}", str(reply)
        )

    async def _send(self, data: bytes | memoryview, words: Sequence[Word]) -> None:
        async with self._patience(words, REPLY_TIMEOUT + len(data) / _SLOWEST):
            try:
                await self._stream.send_all(data)
            except trio.BrokenResourceError as error:
                raise self._broken(error) from error

    async def receive(self, hear: Callable[[], None] = lambda: None) -> object:
        """Return what the server says next, as after SUBSCRIBE, however long it takes.

        It may be cancelled, and nothing is lost. hear is called whenever some of it has
        come.
        """
        try:
            return await self._receive(hear)
        except (trio.BrokenResourceError, hiredis.ProtocolError) as error:
            raise self._broken(error) from error

    def _broken(self, error: Exception) -> ServerError:
        if not self._has_heard and isinstance(error, trio.BrokenResourceError):
            return closed_without_a_word()
        return ServerError(f"{self.url.address} went away: {error}")

    async def _receive(self, hear: Callable[[], None]) -> object:
        while (reply := self._reader.gets()) is _NOTHING:
            if self._feed():
                continue
            data = bytes(await self._stream.receive_some(_RECEIVE))
            if not data and not self._has_heard:
                raise closed_without_a_word()
            if not data:
                raise ServerError(f"{self.url.address} closed the connection")
            if not self._has_heard and (error := not_a_server(data)):
                raise error
            self._has_heard = True
            hear()
            self._unfed = memoryview(data)
        return reply

    async def authenticate(self) -> None:
        """Log in, if the URL has a password."""
        if self.url.password is None:
            return
        names = () if self.url.username is None else (self.url.username,)
        try:
            await self.call("AUTH", *names, self.url.password)
        except ReplyError as error:
            reply = str(error).partition(": ")[2]
            raise refused(reply, "AUTH", self.url.password) from None


async def connect(url: ServerUrl) -> Stream:
    """Open a connection to a server, with TLS if its URL says so.

    ServerError if there is none, UsageError if its certificates cannot be used.
    """
    try:
        return await _connect(url)
    except WrongNameError as error:
        name = url.host if url.tls is None else url.tls.server_name or url.host
        raise name_mismatch(url.address, name, await _names(url)) from error


def peer_of(stream: Stream, url: ServerUrl) -> tuple[str, int]:
    """Return the address at the other end; ServerError if it has reset the link."""
    try:
        host, port = stream.socket.getpeername()[:2]
    except OSError as error:
        # An OSError is taken for one of the spool, above.
        raise ServerError(f"{url.address} went away: {error.strerror}") from error
    return host, port


async def _connect(url: ServerUrl) -> Stream:
    if url.tls is None:
        return await _open(url)
    # First, since it is what somebody who sets this up can mend at once.
    context = await trio.to_thread.run_sync(build_context, url.tls)
    stream = await _open(url)
    try:
        with trio.fail_after(CONNECT_TIMEOUT):
            return await encrypt(stream, context, url.tls, url.host, url.address)
    except trio.TooSlowError:
        await trio.aclose_forcefully(stream)
        raise ServerError(
            f"{url.address} did not answer the TLS handshake for "
            f"{CONNECT_TIMEOUT:.0f} s: the port may speak no TLS"
        ) from None
    except BaseException:
        await trio.aclose_forcefully(stream)
        raise


async def _open(url: ServerUrl) -> trio.SocketStream:
    try:
        with trio.fail_after(CONNECT_TIMEOUT):
            if url.socket is not None:
                return await trio.open_unix_socket(str(url.socket))
            return await trio.open_tcp_stream(url.host, url.port)
    except OSError as error:
        # Trio tried each address that the host has, and says of each what went wrong:
        # "Error connecting to ('127.0.0.1', 1): Connection refused".
        cause = cause_of(error.__cause__ or error)
        said = cause.strerror if isinstance(cause, OSError) else None
        reason = (said or str(error)).rpartition(": ")[2]
        raise ServerError(f"cannot connect to {url.address}: {reason}") from error
    except UnicodeError as error:
        raise ServerError(f"{url.host!r} is no host name: {error}") from None
    except trio.TooSlowError:
        raise ServerError(
            f"cannot connect to {url.address}: no answer for {CONNECT_TIMEOUT:.0f} s"
        ) from None


async def _names(url: ServerUrl) -> list[str]:
    """Return the names of a certificate that is trusted, but of none that is ours."""
    if url.tls is None:
        return []
    anyone = replace(url, tls=replace(url.tls, checks_name=False))
    try:
        stream = await _connect(anyone)
    except ServerError:
        return []
    async with stream:
        return stream.names if isinstance(stream, TlsStream) else []


@asynccontextmanager
async def open_client(url: ServerUrl) -> AsyncIterator[Client]:
    """Connect and log in; the connection is closed afterwards."""
    stream = await connect(url)
    async with stream:
        client = Client(stream, url)
        await client.authenticate()
        yield client
