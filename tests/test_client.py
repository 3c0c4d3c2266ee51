"""A plain client of a server says what goes wrong as an error of the server's."""

from __future__ import annotations

import socket
import struct

import hiredis
import pytest
import trio

from kvtape.errors import ServerError
from kvtape.replication.resp import pack
from kvtape.server.client import connect, open_client, peer_of
from kvtape.server.url import ServerUrl
from servers import StartServer


async def test_a_link_that_is_reset_at_once_is_no_error_of_the_disk() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        url = ServerUrl(*listening.getsockname())
        stream = await connect(url)
        assert peer_of(stream, url) == (url.host, url.port)
        accepted, _ = listening.accept()
        # Closing it so is a reset.
        linger = struct.pack("ii", 1, 0)
        accepted.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        accepted.close()
        with pytest.raises(trio.BrokenResourceError):
            await stream.receive_some()
        with pytest.raises(ServerError, match="went away: Transport endpoint"):
            peer_of(stream, url)
        await stream.aclose()


async def test_replies_to_many_commands_come_in_their_order(
    start_server: StartServer,
) -> None:
    server = start_server("valkey-8.1")
    async with open_client(ServerUrl("127.0.0.1", server.port)) as client:
        await client.send_packed(b"".join(pack("ECHO", n) for n in range(1000)))
        assert await client.replies(1) == [b"0"]
        assert await client.replies(0) == []
        assert await client.replies(998) == [b"%d" % n for n in range(1, 999)]
        # What was not taken is the next one's, who may ask in the other way.
        await client.send(("INCR", "n"), ("GET", "n", "too many"), ("ECHO", "x" * 9000))
        assert await client.reply(("ECHO", 999)) == b"999"
        one, error, long = await client.replies(3)
        assert (one, long) == (1, b"x" * 9000)
        assert isinstance(error, hiredis.ReplyError)
        assert await client.call("GET", "n") == b"1"
