"""A script can do what the command line does, with what `import kvtape` has."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import trio

import kvtape
from servers import Server, StartServer

pytestmark = pytest.mark.slow

POLL = 0.02


async def record(server: Server, folder: Path, words: list[tuple[str, ...]]) -> None:
    """Record a server while it is sent some commands, until they are durable."""
    agent = kvtape.Agent(
        kvtape.RecordOptions(
            kvtape.parse_url(f"redis://127.0.0.1:{server.port}"),
            str(folder / "repository"),
            "source",
            folder / "spool",
        )
    )
    with server.client() as client, trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(agent.run)
            while agent.session is None or not agent.session.is_online:  # noqa: ASYNC110
                await trio.sleep(POLL)
            for each in words:
                client.execute_command(*each)
            offset = client.info("replication")["master_repl_offset"]
            while agent.recorder.durable < offset:  # noqa: ASYNC110
                await trio.sleep(POLL)
            agent.stop()


@pytest.mark.parametrize("server_name", ["valkey-9.1"], indirect=True)
async def test_a_script_records_reads_and_restores(
    tmp_path: Path, server_name: str, start_server: StartServer
) -> None:
    source, target = start_server(server_name), start_server(server_name)
    await record(source, tmp_path, [("SET", "key", "value"), ("FLUSHALL",)])
    whole = kvtape.open_job(str(tmp_path / "repository"), None, kvtape.ToLatest())
    commands = list(kvtape.recorded_commands(whole.folder, whole.plan))
    flush = next(each for each in commands if each.name == b"FLUSHALL")
    before = kvtape.open_job(
        str(tmp_path / "repository"), "source", kvtape.ToOffset(flush.start)
    )
    layout = kvtape.layout_for(before.plan.snapshot.manifest)
    result = kvtape.restore_data_dir(before, tmp_path / "restored", layout)
    assert result.offset == flush.start
    assert result.data_dir == str(tmp_path / "restored")
    restored = start_server(
        server_name, config_file=tmp_path / "restored" / "redis.conf"
    )
    with restored.client() as client:
        assert client.get("key") == b"value"
    url = kvtape.parse_url(f"redis://127.0.0.1:{target.port}")
    await kvtape.restore_into(before, kvtape.IntoOptions(url))
    with target.client() as client:
        assert client.get("key") == b"value"
        assert client.info("replication")["role"] == "master"


@pytest.mark.parametrize("server_name", ["valkey-9.1"], indirect=True)
async def test_a_script_compares_two_moments_and_brings_a_key_back(
    tmp_path: Path, server_name: str, start_server: StartServer
) -> None:
    server = start_server(server_name)
    await record(server, tmp_path, [("SET", "a", "1"), ("SET", "b", "1"), ("DEL", "a")])
    repository = str(tmp_path / "repository")
    latest = kvtape.open_job(repository, None, kvtape.ToLatest())
    *_, deletion = kvtape.recorded_commands(latest.folder, latest.plan)
    before = kvtape.open_job(repository, None, kvtape.ToOffset(deletion.start))
    with kvtape.comparison() as compared:
        await compared.fill((before, latest), kvtape.DiffOptions())
        [lost] = compared.differences()
    assert (lost.key, lost.change) == (b"a", "removed")
    url = kvtape.parse_url(f"redis://127.0.0.1:{server.port}")
    globs = (kvtape.parse_glob(lost.key),)
    rescue = kvtape.Rescue(before, kvtape.RescueOptions(url, globs))
    await rescue.run()
    assert rescue.done == [(0, b"a")]
    with server.client() as client:
        assert client.mget("a", "b") == [b"1", b"1"]


def test_everything_named_is_there_and_documented() -> None:
    for name in kvtape.__all__:
        assert getattr(kvtape, name).__doc__, name


def test_every_name_comes_from_where_type_checkers_see_it() -> None:
    seen = {
        alias.name: node.module
        for node in ast.walk(ast.parse(Path(kvtape.__file__).read_text()))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("kvtape")
        for alias in node.names
    }
    places = kvtape._PLACES.items()
    assert {name: f"kvtape.{module}" for name, module in places} == seen
    assert kvtape.__all__ == sorted(seen)
    assert set(kvtape.__all__) <= set(dir(kvtape))


def test_a_misspelt_name_is_not_there() -> None:
    assert not hasattr(kvtape, "open_jobb")


def test_every_error_has_the_exit_status_of_the_contract() -> None:
    statuses = {
        "UsageError": 2,
        "PointError": 3,
        "VerificationError": 4,
        "IdentityError": 6,
        "RepositoryError": 7,
        "ServerError": 8,
        "DestinationError": 9,
    }
    assert {name: getattr(kvtape, name).exit_status for name in statuses} == statuses
