"""/metrics, /healthz and /readyz over HTTP, for whatever watches a fleet.

h11 speaks HTTP and trio moves the bytes: one request a connection, one task each,
nothing in threads. A client gets a few seconds and a few KiB, and at most so many are
served at once, so that whoever scans the port cannot hurt the recording. It listens on
127.0.0.1 unless told otherwise, since the metrics name servers and buckets.

Decided against: prometheus_client's own server. It is a thread for each connection
without a timeout, and would read what a recording does from another thread.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

import h11
import trio

from kvtape.errors import UsageError
from kvtape.server.url import format_address, parse_address

_log = logging.getLogger(__name__)

DEFAULT_HOST = "127.0.0.1"

_TIMEOUT = 10.0
_MOST_AT_ONCE = 32
_RECEIVE = 16 * 1024
_PLAIN = "text/plain; charset=utf-8"


@dataclass(frozen=True, slots=True)
class Page:
    """What is answered to a GET."""

    status: int
    content: bytes
    content_type: str = _PLAIN


Pages = dict[str, Callable[[], Page]]


async def listen(address: str) -> list[trio.SocketListener]:
    """Listen on [HOST:]PORT; UsageError if that cannot be had."""
    host, port = parse_address(address, DEFAULT_HOST)
    try:
        listeners = await trio.open_tcp_listeners(port, host=host)
    except OSError as error:
        reason = error.strerror or str(error)
        raise UsageError(
            f"cannot listen on {format_address(host, port)} (--metrics): {reason}"
        ) from None
    actual = listeners[0].socket.getsockname()[1]
    _log.info("serving /metrics on http://%s", format_address(host, actual))
    return listeners


async def serve_pages(listeners: list[trio.SocketListener], pages: Pages) -> None:
    """Answer requests until cancelled."""
    room = trio.CapacityLimiter(_MOST_AT_ONCE)

    async def answer(stream: trio.SocketStream) -> None:
        try:
            room.acquire_on_behalf_of_nowait(stream)
        except trio.WouldBlock:
            await trio.aclose_forcefully(stream)
            return
        try:
            with trio.move_on_after(_TIMEOUT):
                await _answer(stream, pages)
        finally:
            room.release_on_behalf_of(stream)
            await trio.aclose_forcefully(stream)

    await trio.serve_listeners(answer, listeners)


async def _answer(stream: trio.SocketStream, pages: Pages) -> None:
    connection = h11.Connection(h11.SERVER)
    is_head = False
    try:
        request = await _request(stream, connection)
        if request is None:
            return
        page, is_head = _page(request, pages), request.method == b"HEAD"
    except h11.RemoteProtocolError as error:
        page = Page(error.error_status_hint, b"this is no request that is known here\n")
    try:
        await _send(stream, connection, page, is_head=is_head)
    except (trio.BrokenResourceError, h11.LocalProtocolError) as error:
        _log.debug("a client of /metrics went away: %s", error)


async def _request(
    stream: trio.SocketStream, connection: h11.Connection
) -> h11.Request | None:
    """Return the request; None if the client hangs up before it is whole."""
    while True:
        event = connection.next_event()
        if isinstance(event, h11.Request):
            return event
        if event is not h11.NEED_DATA:
            return None
        try:
            connection.receive_data(bytes(await stream.receive_some(_RECEIVE)))
        except trio.BrokenResourceError:
            return None


def _page(request: h11.Request, pages: Pages) -> Page:
    if request.method not in (b"GET", b"HEAD"):
        return Page(405, b"only GET is known here\n")
    path = request.target.partition(b"?")[0].decode("ascii")
    found = pages.get(path)
    if found is None:
        return Page(404, f"there are {', '.join(sorted(pages))}\n".encode())
    try:
        return found()
    except Exception:  # noqa: BLE001 what is only shown must not end the recording
        _log.exception("cannot answer %s", path)
        return Page(500, b"a bug in kvtape: its log has more\n")


async def _send(
    stream: trio.SocketStream, connection: h11.Connection, page: Page, *, is_head: bool
) -> None:
    response = h11.Response(
        status_code=page.status,
        headers=[
            ("Content-Type", page.content_type),
            ("Content-Length", str(len(page.content))),
            ("Connection", "close"),
        ],
    )
    data = connection.send(response) or b""
    if not is_head:
        data += connection.send(h11.Data(data=page.content)) or b""
    data += connection.send(h11.EndOfMessage()) or b""
    await stream.send_all(data)
    await stream.send_eof()
    # Or what the client still sends would make the kernel take our answer back.
    while await stream.receive_some(_RECEIVE):
        pass
