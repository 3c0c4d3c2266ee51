"""An ordinary client: one command, one reply.

It asks servers who they are, and drives the target of a restore. It is small because it
needs no more: no pool, no pipeline, no retry. Whoever calls it knows what a failure
means at that moment.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import hiredis
import trio

from kvtape.errors import ServerError, cause_of
from kvtape.replication.refusal import (
    closed_without_a_word,
    not_a_server,
    refused,
)
from kvtape.replication.resp import pack
from kvtape.server.url import ServerUrl

CONNECT_TIMEOUT = 10.0

# A server that loads, forks or runs a script may be silent for long; one that is silent
# for a minute is not one to go on with.
REPLY_TIMEOUT = 60.0

_RECEIVE = 64 * 1024

_NOT_LOGGED_IN = "NOAUTH"


class ReplyError(ServerError):
    """The server answered with an error."""


class Client:
    """A connection to a server. Errors are ServerError, or ReplyError for its own."""

    def __init__(self, stream: trio.SocketStream, url: ServerUrl) -> None:
        self.url = url
        self._stream = stream
        self._reader = hiredis.Reader()
        self._has_heard = False

    @property
    def local_host(self) -> str:
        """The address of this machine that the server sees."""
        host: str = self._stream.socket.getsockname()[0]
        return host

    async def call(self, *words: str | bytes | int) -> object:
        """Send a command and return the reply: bytes, int, None or a list of these."""
        try:
            with trio.fail_after(REPLY_TIMEOUT):
                await self._stream.send_all(pack(*words))
                reply = await self._receive()
        except (trio.BrokenResourceError, hiredis.ProtocolError) as error:
            raise ServerError(f"{self.url.address} went away: {error}") from error
        except trio.TooSlowError:
            raise ServerError(
                f"{self.url.address} did not answer {words[0]!s} for "
                f"{REPLY_TIMEOUT:.0f} s"
            ) from None
        if isinstance(reply, hiredis.ReplyError):
            if str(reply).startswith(_NOT_LOGGED_IN):
                # Not the refusal of one command: nothing at all is allowed.
                raise refused(str(reply), str(words[0]))
            raise ReplyError(f"{self.url.address} answered {words[0]!s} with: {reply}")
        return reply

    async def _receive(self) -> object:
        while (reply := self._reader.gets()) is False:
            data = bytes(await self._stream.receive_some(_RECEIVE))
            if not data and not self._has_heard:
                raise closed_without_a_word()
            if not data:
                raise ServerError(f"{self.url.address} closed the connection")
            if not self._has_heard and (error := not_a_server(data)):
                raise error
            self._has_heard = True
            self._reader.feed(data)
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


async def connect(url: ServerUrl) -> trio.SocketStream:
    """Open a connection to a server; ServerError if there is none."""
    try:
        with trio.fail_after(CONNECT_TIMEOUT):
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


@asynccontextmanager
async def open_client(url: ServerUrl) -> AsyncIterator[Client]:
    """Connect and log in; the connection is closed afterwards."""
    stream = await connect(url)
    async with stream:
        client = Client(stream, url)
        await client.authenticate()
        yield client
