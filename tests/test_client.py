"""A plain client of a server says what goes wrong as an error of the server's."""

from __future__ import annotations

import socket
import struct

import pytest
import trio

from kvtape.errors import ServerError
from kvtape.server.client import connect, peer_of
from kvtape.server.url import ServerUrl


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
