"""Fixtures, and the proof at the end that real servers were really used.

On a developer's machine a server that is missing skips its tests. In CI (the
environment variable CI is set) it fails them, and the whole run fails unless all six
servers were up at least once and no test marked `server` was skipped: a green run
must never mean that nothing real was tested.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from servers import SERVERS, STARTED, Server, StartServer, binary

if TYPE_CHECKING:
    from faulty_disk import FaultyDisk
    from kvtape.storage.spool import Spool
    from object_store import BadWay, Bucket

IN_CI = bool(os.environ.get("CI"))

skipped: set[str] = set()


def require(name: str) -> None:
    """Skip the test when a server is missing; in CI, fail it."""
    if binary(name) is None:
        reason = f"{name} is missing: run tools/servers"
        if IN_CI:
            pytest.fail(reason, pytrace=False)
        pytest.skip(reason)


@pytest.fixture(params=SERVERS)
def server_name(request: pytest.FixtureRequest) -> str:
    """Each of the six servers in turn.

    A test of something that only some servers can do names them, since it must not
    skip: `@pytest.mark.parametrize("server_name", ["redis-8.0"], indirect=True)`.
    """
    name: str = request.param
    require(name)
    return name


@pytest.fixture
def start_server() -> Iterator[StartServer]:
    """Start servers with this function; all are closed when the test ends."""
    started: list[Server] = []

    def start(
        name: str,
        *,
        config_file: Path | None = None,
        folder: Path | None = None,
        **config: str,
    ) -> Server:
        require(name)
        options = {option.replace("_", "-"): value for option, value in config.items()}
        server = Server(name, options, config_file=config_file, folder=folder)
        started.append(server)
        return server

    yield start
    for server in reversed(started):
        server.close()


@pytest.fixture
def temporary(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Return the folder for temporary ones; no moment may be left in it at the end.

    Its path is short, since a socket in it has room for a hundred bytes.
    """
    from leavings import left_in

    with tempfile.TemporaryDirectory(prefix="kvtape-") as name:
        folder = Path(name)
        monkeypatch.setattr("tempfile.tempdir", name)
        yield folder
        assert left_in(folder) == []


@pytest.fixture
def started() -> Iterator[list[subprocess.Popen[str]]]:
    """Return a list of programs, for those that are killed when the test ends."""
    processes: list[subprocess.Popen[str]] = []
    yield processes
    for process in processes:
        process.kill()
        process.communicate()


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    """Return an open spool."""
    from spools import opened

    spool = opened(tmp_path / "spool")
    yield spool
    spool.close()


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FaultyDisk:
    """Return the disk that holds tmp_path/disk."""
    from faulty_disk import FaultyDisk

    (tmp_path / "disk").mkdir()
    return FaultyDisk(tmp_path / "disk", monkeypatch)


@pytest.fixture(scope="session")
def s3_address() -> Iterator[str]:
    """Return where an S3 is, as host:port."""
    # It takes a second to import, which few runs need.
    from object_store import s3_server

    with s3_server() as address:
        yield address


@pytest.fixture
def bucket(s3_address: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    """Return a new bucket; what uses S3 in this process uses the server it is on."""
    from object_store import new_bucket

    with new_bucket(monkeypatch, s3_address) as bucket:
        yield bucket


@pytest.fixture
def way(
    bucket: Bucket, s3_address: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[BadWay]:
    """Return what stands between this process and the server of its bucket."""
    from s3fs import S3FileSystem

    from object_store import bad_way, use

    with bad_way(s3_address) as way:
        use(monkeypatch, way.front)
        yield way
    S3FileSystem.clear_instance_cache()


# First, so that `-m server` sees the mark.
@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that ask for a server."""
    for item in items:
        if {"server_name", "start_server"} & set(getattr(item, "fixturenames", ())):
            item.add_marker("server")


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Remember the `server` tests that were skipped; an expected failure was not."""
    if (
        report.skipped
        and "server" in report.keywords
        and not hasattr(report, "wasxfail")
    ):
        skipped.add(report.nodeid)


def shortfalls() -> list[str]:
    """List what a run lacks as a test against real servers."""
    lacks = [f"{name} was never started" for name in SERVERS if name not in STARTED]
    return lacks + [f"{test} was skipped" for test in sorted(skipped)]


# Where tests run in several processes, each tells the first one what it started.
@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:  # noqa: ANN401 - of an optional package
    """Take over which servers a process started."""
    STARTED.update(getattr(node, "workeroutput", {}).get("started", ()))


def pytest_sessionfinish(session: pytest.Session) -> None:
    """In CI, fail a run that passed without all the servers."""
    output = getattr(session.config, "workeroutput", None)
    if output is not None:
        output["started"] = sorted(STARTED)
        return
    passed = session.exitstatus == pytest.ExitCode.OK
    if IN_CI and passed and not session.config.option.collectonly and shortfalls():
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say which real servers were used, and in CI what is lacking."""
    used = [name for name in SERVERS if name in STARTED]
    terminalreporter.write_line(f"real servers used: {', '.join(used) or 'none'}")
    if IN_CI and not terminalreporter.config.option.collectonly:
        for lack in shortfalls():
            terminalreporter.write_line(f"this run does not count: {lack}", red=True)
