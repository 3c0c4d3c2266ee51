"""The real servers are what their names say, and the tests can start and end them."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from servers import Server, ServerError, StartServer, binary

PROJECT = Path(__file__).resolve().parent.parent


def is_there(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_server_is_of_the_release_in_its_name(
    server_name: str, start_server: StartServer
) -> None:
    server = start_server(server_name)
    info = server.client().info("server")
    family, release = server_name.split("-")
    assert info[f"{family}_version"].startswith(f"{release}.")
    assert ("valkey_version" in info) == (family == "valkey")
    assert info["process_id"] == server.pid
    assert info["tcp_port"] == server.port


def test_a_server_takes_a_write_and_its_process_is_gone_after_stop(
    server_name: str, start_server: StartServer
) -> None:
    server = start_server(server_name)
    pid, folder = server.pid, server.folder
    client = server.client()
    assert client.set("key", "value")
    assert client.get("key") == b"value"
    server.stop()
    assert not is_there(pid)
    assert "User requested shutdown" in server.log()
    server.close()
    assert not folder.exists()


def test_a_restarted_server_keeps_its_port_and_its_folder(
    server_name: str, start_server: StartServer
) -> None:
    server = start_server(server_name, appendonly="yes", appendfsync="always")
    port, pid, client = server.port, server.pid, server.client()
    client.set("key", "value")
    server.kill()
    assert not is_there(pid)
    server.start()
    assert server.port == port
    assert server.pid != pid
    assert client.get("key") == b"value"


def test_a_server_starts_from_a_config_file_that_names_another_port_and_folder(
    server_name: str, start_server: StartServer, tmp_path: Path
) -> None:
    written = start_server(server_name, folder=tmp_path, dbfilename="written.rdb")
    written.client().set("key", "value")
    written.client().save()
    written.close()
    config_file = tmp_path / "redis.conf"
    config_file.write_text(
        f'port 6379\ndir "{tmp_path}"\ndbfilename written.rdb\nappendonly no\n'
    )
    server = start_server(server_name, config_file=config_file)
    assert server.client().get("key") == b"value"
    assert server.folder == tmp_path
    server.close()
    assert sorted(tmp_path.iterdir()) == [config_file, tmp_path / "written.rdb"]


def test_options_of_several_words_reach_every_server(
    server_name: str, start_server: StartServer
) -> None:
    server = start_server(
        server_name,
        client_output_buffer_limit="replica 1mb 512kb 7",
        save="900 1",
        requirepass="secret",
    )
    client = server.client(password="secret")
    limits = client.config_get("client-output-buffer-limit")
    assert "1048576 524288 7" in str(limits["client-output-buffer-limit"])
    assert client.config_get("save") == {"save": "900 1"}


def test_a_client_leaves_no_error_in_the_statistics_of_its_server(
    server_name: str, start_server: StartServer
) -> None:
    client = start_server(server_name).client()
    assert client.ping()
    assert client.info("errorstats") == {}


def test_a_server_that_does_not_start_says_why(
    server_name: str, start_server: StartServer
) -> None:
    with pytest.raises(ServerError, match=r"ended at once(?s:.*)appendfsync"):
        start_server(server_name, appendfsync="sometimes")


def test_a_server_takes_another_port_when_one_is_taken(
    server_name: str, start_server: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        taken: int = listener.getsockname()[1]
        free = start_server(server_name)
        free.close()
        ports = iter([taken, free.port])
        monkeypatch.setattr("random.choice", lambda _: next(ports))
        assert start_server(server_name).port == free.port


def test_a_server_that_nobody_got_is_missing() -> None:
    assert binary("redis-1.0") is None
    with pytest.raises(ServerError, match="is missing: run tools/servers"):
        Server("redis-1.0")


def run_without_servers(project: Path, test: str, **variables: str) -> tuple[int, str]:
    """Run one test in a copy of this test suite that has no servers."""
    (project / "tests").mkdir()
    shutil.copy(PROJECT / "pyproject.toml", project)
    for name in ("conftest.py", "servers.py"):
        shutil.copy(PROJECT / "tests" / name, project / "tests")
    (project / "tests" / "test_it.py").write_text(f"import pytest\n{test}")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider"],
        cwd=project,
        env={"PATH": os.defpath, **variables},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stdout


@pytest.mark.slow
def test_a_missing_server_skips_its_tests_at_home(tmp_path: Path) -> None:
    status, output = run_without_servers(tmp_path, "def test_it(server_name): pass")
    assert status == 0
    assert "6 skipped" in output
    assert "redis-7.0 is missing: run tools/servers" in output
    assert "real servers used: none" in output


@pytest.mark.slow
def test_a_missing_server_fails_its_tests_in_ci(tmp_path: Path) -> None:
    status, output = run_without_servers(
        tmp_path, "def test_it(server_name): pass", CI="true"
    )
    assert status == 1
    assert "redis-7.0 is missing: run tools/servers" in output
    assert "6 errors" in output


@pytest.mark.slow
def test_a_run_in_ci_that_used_no_server_fails(tmp_path: Path) -> None:
    status, output = run_without_servers(tmp_path, "def test_it(): pass", CI="true")
    assert status == 1
    assert "1 passed" in output
    assert "this run does not count: valkey-8.1 was never started" in output


@pytest.mark.slow
def test_a_run_in_ci_that_skipped_a_test_of_a_server_says_so(tmp_path: Path) -> None:
    marks = "@pytest.mark.server\n@pytest.mark.skip\n"
    status, output = run_without_servers(
        tmp_path, marks + "def test_it(): pass", CI="true"
    )
    assert status == 1
    assert "this run does not count: tests/test_it.py::test_it was skipped" in output
