"""What cannot work is refused with the reason, the right status, and no secret."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from meanwhile import meanwhile
from plain_client import PlainClient
from recording import Tape, taping
from replicas import wait_until
from servers import StartServer
from verbs import Outcome, ended, kvtape, program, wait_for_line

SECRET = "hunter2-marker"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Run in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def record(url: str, *more: object, **env: str) -> Outcome:
    return kvtape("record", url, "--repo", "repo", "--spool", "spool", *more, env=env)


def must_fail(outcome: Outcome, status: int, said: str) -> None:
    assert (outcome.status, outcome.out) == (status, "")
    assert said in " ".join(outcome.err.split())
    # One line that names the reason, and no traceback.
    assert outcome.err.splitlines()[-1].startswith("kvtape: ")
    assert "Traceback" not in outcome.err
    assert SECRET not in outcome.err


# Servers.


@contextmanager
def listener(answer: Callable[[socket.socket], object]) -> Iterator[int]:
    """Listen, and treat each connection so; yield the port."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.1)

        def serve(is_over: threading.Event) -> None:
            while not is_over.is_set():
                try:
                    connection, _ = server.accept()
                except TimeoutError:
                    continue
                with connection:
                    connection.settimeout(10)
                    answer(connection)

        with meanwhile(serve):
            yield server.getsockname()[1]


def as_http(connection: socket.socket) -> None:
    connection.recv(1000)
    connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")


def as_tls(connection: socket.socket) -> None:
    connection.recv(1000)
    connection.sendall(b"\x15\x03\x03\x00\x02\x02\x16")


def hang_up(connection: socket.socket) -> None:
    connection.recv(1000)


def babble(connection: socket.socket) -> None:
    connection.recv(1000)
    connection.sendall(b"hello, this is a mail server\r\n")
    connection.recv(1000)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (as_http, "the port speaks HTTP, not Redis"),
        (as_tls, "the port speaks TLS"),
        (hang_up, "closed the connection without a word"),
        (babble, "went away: Protocol error"),
    ],
)
@pytest.mark.parametrize("verb", ["record", "restore"])
def test_what_is_no_redis_is_told(
    folder: Path, answer: Callable[[socket.socket], object], said: str, verb: str
) -> None:
    with listener(answer) as port:
        url = f"redis://127.0.0.1:{port}"
        if verb == "record":
            must_fail(record(url), 8, said)
            # A wrong address leaves no trace of a repository.
            assert list(folder.iterdir()) == []
        else:
            Tape(folder / "repo").snapshot()
            must_fail(kvtape("restore", "--repo", "repo", "--into", url), 8, said)


def test_nobody_there_is_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    said = f"cannot connect to 127.0.0.1:{port}: Connection refused"
    must_fail(record(f"redis://127.0.0.1:{port}"), 8, said)
    said = "cannot connect to no-such-host.invalid:6379: "
    must_fail(record("redis://no-such-host.invalid"), 8, said)


@pytest.mark.parametrize("user", ["", "me"])
def test_a_wrong_password_is_told_and_shown_nowhere(
    folder: Path, start_server: StartServer, user: str
) -> None:
    server = start_server("redis-7.0", requirepass="right")
    host = f"127.0.0.1:{server.port}"
    (folder / "secret").write_text(f"{SECRET}\n")
    named = f"{user}@" if user else ""
    url = f"redis://{named}{host}"
    for outcome in (
        record(f"redis://{user}:{SECRET}@{host}", "-v"),
        record(url, "-v", KVTAPE_PASSWORD=SECRET),
        record(url, "-v", "--password-file", "secret"),
    ):
        must_fail(outcome, 8, "password is wrong")
    said = "it wants a password: give it in the URL, by --password-file or in KVTAPE_P"
    must_fail(record(f"redis://{host}"), 8, said)
    assert sorted(path.name for path in folder.iterdir()) == ["secret"]


def test_a_password_where_none_is_set_is_told(start_server: StartServer) -> None:
    server = start_server("redis-6.2")
    url = f"redis://127.0.0.1:{server.port}"
    said = "leave the password out"
    must_fail(record(url, KVTAPE_PASSWORD=SECRET), 8, said)


def test_a_server_that_quotes_the_password_is_not_quoted(folder: Path) -> None:
    def quote(connection: socket.socket) -> None:
        connection.recv(1000)
        reply = f"-ERR unknown command 'AUTH', with args beginning with: '{SECRET}'"
        connection.sendall(f"{reply} {SECRET}\r\n".encode())
        connection.recv(1000)

    with listener(quote) as port:
        outcome = record(f"redis://127.0.0.1:{port}", KVTAPE_PASSWORD=SECRET)
    must_fail(outcome, 8, "it does not know AUTH")


def test_who_may_not_replicate_is_told_how_to_be_allowed(
    start_server: StartServer,
) -> None:
    server = start_server("redis-7.0")
    with PlainClient(server.client()) as plain:
        plain.ask("ACL", "SETUSER", "me", "on", f">{SECRET}", "+@all", "-psync")
    url = f"redis://me@127.0.0.1:{server.port}"
    must_fail(record(url, KVTAPE_PASSWORD=SECRET), 8, "+psync +replconf")


def test_a_primary_that_counts_replicas_is_not_recorded_just_like_that(
    start_server: StartServer,
) -> None:
    server = start_server("redis-7.0", min_replicas_to_write="1")
    url = f"redis://127.0.0.1:{server.port}"
    must_fail(record(url), 2, "accept that by --ack hidden, --ack received")


# Password files.


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "the password file secret is empty"),
        (b"\r\n", "the password file secret is empty"),
        (b"\xff\xfe", "the password file secret is no text"),
        (None, "cannot read the password file secret: No such file"),
    ],
)
def test_a_password_file_that_holds_none_is_named(
    folder: Path, content: bytes | None, said: str
) -> None:
    if content is not None:
        (folder / "secret").write_bytes(content)
    must_fail(record("redis://h", "--password-file", "secret"), 2, said)


@pytest.mark.parametrize("way", ["file", "environment"])
def test_a_password_is_in_no_process_list_log_or_file(
    folder: Path, start_server: StartServer, way: str
) -> None:
    server = start_server("redis-7.0", requirepass=SECRET)
    (folder / "secret").write_text(SECRET)
    url = f"redis://127.0.0.1:{server.port}"
    by_file = ("--password-file", "secret") if way == "file" else ()
    env = {} if way == "file" else {"KVTAPE_PASSWORD": SECRET}
    arguments = ("record", url, "--repo", "repo", "--spool", "spool", "-v", *by_file)
    with program(*arguments, env=env) as process:
        line = wait_for_line(process, "the snapshot at")
        assert SECRET not in line
        shown = Path(f"/proc/{process.pid}/cmdline").read_bytes()
        assert b"record" in shown
        assert SECRET.encode() not in shown
        process.terminate()
        outcome = ended(process)
    assert outcome.status == 0
    assert SECRET not in outcome.out + outcome.err
    written = [path for path in folder.rglob("*") if path.is_file()]
    assert len(written) > 5
    for path in written:
        assert path.name == "secret" or SECRET.encode() not in path.read_bytes()


# Repositories and spools.


def test_a_folder_of_something_else_is_status_6(
    folder: Path, start_server: StartServer
) -> None:
    (folder / "repo").mkdir()
    (folder / "repo" / "thesis.txt").touch()
    server = start_server("redis-7.0")
    said = "is no kvtape repository: it has no kvtape.json"
    must_fail(record(f"redis://127.0.0.1:{server.port}"), 6, said)
    must_fail(kvtape("info", "--repo", "repo"), 6, said)
    must_fail(kvtape("restore", "--repo", "repo", "--dry-run"), 6, said)
    assert [path.name for path in (folder / "repo").iterdir()] == ["thesis.txt"]


def test_a_repository_of_a_later_kvtape_is_status_6(folder: Path) -> None:
    Tape(folder / "repo").snapshot()
    (folder / "repo" / "kvtape.json").write_text(
        '{"format": 2, "id": "x", "created": 1}'
    )
    must_fail(kvtape("info", "--repo", "repo"), 6, "use a newer kvtape")


def test_no_repository_is_status_7() -> None:
    said = "there is no repository at"
    must_fail(kvtape("info", "--repo", "nowhere"), 7, said)
    must_fail(kvtape("restore", "--repo", "nowhere", "--dry-run"), 7, said)
    said = "nowhere://x is no place to store"
    must_fail(kvtape("info", "--repo", "nowhere://x"), 7, said)
    must_fail(kvtape("info", "--repo", ""), 2, "path or URL is empty")


def test_a_repository_that_cannot_be_written_is_status_7(
    folder: Path, start_server: StartServer
) -> None:
    (folder / "repo").touch()
    server = start_server("redis-7.0")
    must_fail(record(f"redis://127.0.0.1:{server.port}"), 7, f"{folder}/repo")


def test_a_spool_that_cannot_be_written_is_status_7(
    folder: Path, start_server: StartServer
) -> None:
    (folder / "spool").touch()
    server = start_server("redis-7.0")
    must_fail(
        record(f"redis://127.0.0.1:{server.port}"), 7, "cannot write to the spool"
    )


def test_a_second_agent_on_a_spool_is_status_7(
    folder: Path, start_server: StartServer
) -> None:
    server = start_server("redis-7.0")
    with taping(server, folder / "repo"):
        outcome = kvtape(
            *("record", f"redis://127.0.0.1:{server.port}", "--repo", "repo"),
            *("--source", "source", "--spool", "repo-spool"),
        )
    must_fail(outcome, 7, "another kvtape records with the spool")


def test_anothers_spool_is_status_6(folder: Path, start_server: StartServer) -> None:
    server = start_server("redis-7.0")
    with taping(server, folder / "repo"):
        pass
    outcome = kvtape(
        *("record", f"redis://127.0.0.1:{server.port}", "--repo", "other"),
        *("--spool", "repo-spool"),
    )
    must_fail(outcome, 6, "give this recording another --spool")


def test_another_address_is_not_taken_for_the_same_source(
    folder: Path, start_server: StartServer
) -> None:
    server, other = start_server("redis-7.0"), start_server("redis-7.0")
    with taping(server, folder / "repo"):
        pass
    outcome = record(f"redis://127.0.0.1:{other.port}")
    must_fail(outcome, 6, "say --adopt if its recording goes on under this source")
    outcome = record(f"redis://127.0.0.1:{server.port}", "--source", "../x")
    must_fail(outcome, 2, "cannot be a source's name")


# Logs.


def test_a_link_that_breaks_is_logged_with_the_time_and_without_the_password(
    folder: Path, start_server: StartServer
) -> None:
    server = start_server("redis-7.0", requirepass=SECRET)
    url = f"redis://:{SECRET}@127.0.0.1:{server.port}"
    with program(
        *("record", url, "--repo", "repo", "--spool", "spool", "--stop-timeout", "5s")
    ) as process:
        wait_for_line(process, "the snapshot at")
        server.kill()
        line = wait_for_line(process, "connecting again in")
        assert line[:4].isdigit()
        assert " WARNING " in line
        wait_until(lambda: process.poll() is None)
        process.terminate()
        outcome = ended(process)
    assert outcome.status == 0
    assert SECRET not in line + outcome.err
