"""Many sources in one process: each fails alone, and what ends one is told loudly."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import trio
import trio.lowlevel

from kvtape.errors import IdentityError
from kvtape.record import backoff
from kvtape.record.fleet import Fleet
from kvtape.server.url import ServerUrl
from kvtape.storage.repository import open_repository
from kvtape.watch.fleet import WatchedFleet
from replicas import wait_until
from servers import StartServer
from verbs import Outcome, kvtape
from watching import options_for


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(backoff, "_FIRST", 0.002)
    monkeypatch.setattr(backoff, "_LONGEST", 0.02)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)


@asynccontextmanager
async def running(fleet: Fleet) -> AsyncIterator[None]:
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fleet.run)
            yield
            fleet.stop()


async def until_stored(fleet: Fleet, source: str) -> None:
    [recording] = [one for one in fleet.recordings if one.journal.source == source]
    while not recording.journal.stored:  # noqa: ASYNC110
        await trio.sleep(0.002)


@pytest.mark.parametrize("server_name", ["valkey-9.1"], indirect=True)
async def test_a_server_that_is_down_at_the_start_is_recorded_when_it_is_up(
    tmp_path: Path,
    server_name: str,
    start_server: StartServer,
    caplog: pytest.LogCaptureFixture,
) -> None:
    shop, users = start_server(server_name), start_server(server_name)
    await trio.to_thread.run_sync(users.stop)
    one = options_for(shop, tmp_path / "one")
    other = replace(options_for(users, tmp_path / "other"), source="users")
    fleet = Fleet([one, other])
    async with running(fleet):
        await until_stored(fleet, "shop")
        await fleet.recordings[1].has_begun.wait()
        assert "cannot connect" in str(fleet.recordings[1].trouble)
        await trio.to_thread.run_sync(users.start)
        await until_stored(fleet, "users")
        assert fleet.recordings[1].trouble is None
    # Said once, however often it was tried.
    said = [one for one in caplog.messages if "Connection refused; starting" in one]
    loud = [one for one in caplog.records if one.getMessage() in said]
    assert len([one for one in loud if one.levelname == "ERROR"]) == 1


@pytest.mark.parametrize("server_name", ["redis-7.0"], indirect=True)
async def test_a_source_with_another_servers_bytes_stops_and_the_others_go_on(
    tmp_path: Path, server_name: str, start_server: StartServer
) -> None:
    shop, users = start_server(server_name), start_server(server_name)
    one = options_for(shop, tmp_path / "one")
    async with running(Fleet([one])) as _:
        await trio.lowlevel.checkpoint()
    # The spool of shop is for another source.
    other = replace(options_for(users, tmp_path / "other"), source="users")
    first = Fleet([replace(other, source="somebody")])
    async with running(first):
        await until_stored(first, "somebody")
    fleet = Fleet([one, other])
    with pytest.RaisesGroup(IdentityError):
        async with running(fleet):
            await until_stored(fleet, "shop")
            while fleet.recordings[1].error is None:  # noqa: ASYNC110
                await trio.sleep(0.002)
            with shop.client() as client:
                client.set("key", "value")
                offset = client.info("replication")["master_repl_offset"]
            journal = fleet.recordings[0].journal
            while offset not in journal.stored.values():  # noqa: ASYNC110
                await trio.sleep(0.002)


@pytest.mark.parametrize("server_name", ["valkey-8.1"], indirect=True)
async def test_who_is_asked_also_tells_of_sources_that_cannot_be_asked(
    tmp_path: Path, server_name: str, start_server: StartServer
) -> None:
    server = start_server(server_name)
    one = replace(options_for(server, tmp_path), spool=tmp_path / "spools" / "shop")
    nobody = replace(
        one,
        url=ServerUrl("127.0.0.1", 1),
        source="gone",
        spool=tmp_path / "spools" / "gone",
    )
    lookout = WatchedFleet([one, nobody])
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lookout.fleet.run)
            await until_stored(lookout.fleet, "shop")
            await lookout.fleet.recordings[1].has_begun.wait()

            def asked(*arguments: str) -> Outcome:
                return kvtape("status", "--spool", tmp_path / "spools", *arguments)

            text = await trio.to_thread.run_sync(asked)
            limited = await trio.to_thread.run_sync(asked, "--max-lag", "1h")
            shop = await trio.to_thread.run_sync(
                asked, "--max-lag", "1h", "--source", "shop"
            )
            lookout.fleet.stop()
    assert "source shop: streaming" in text.out
    assert "source gone: waiting (RED)" in text.out
    assert (limited.status, shop.status) == (5, 0)
    assert "source gone: not recording: cannot connect to 127.0.0.1:1" in limited.err


@pytest.mark.parametrize("server_name", ["valkey-8.1"], indirect=True)
async def test_a_source_of_the_file_that_no_agent_records_is_told(
    tmp_path: Path, server_name: str, start_server: StartServer
) -> None:
    server = start_server(server_name)
    (tmp_path / "kvtape.toml").write_text(
        f'repo = "{tmp_path / "repo"}"\n[record]\nspool = "{tmp_path / "spools"}"\n'
        '[sources.shop]\nurl = "redis://h"\n[sources.users]\nurl = "redis://h"\n'
    )
    one = replace(options_for(server, tmp_path), spool=tmp_path / "spools" / "shop")
    lookout = WatchedFleet([one])
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lookout.fleet.run)
            await until_stored(lookout.fleet, "shop")
            found = await trio.to_thread.run_sync(kvtape, "status", "--max-lag", "1h")
            lookout.fleet.stop()
    assert "source shop: streaming" in found.out
    assert found.status == 5
    assert "source users: not recording: no agent tells of it" in found.err


async def test_a_source_has_one_name_in_the_log_and_the_metrics(
    tmp_path: Path, start_server: StartServer
) -> None:
    server = start_server("valkey-8.1")
    fleet = Fleet([replace(options_for(server, tmp_path), source=None)])
    [recording] = fleet.recordings
    before = recording.journal.source
    async with running(fleet):
        await until_stored(fleet, before)
    assert recording.journal.source == before == f"127.0.0.1-{server.port}"


# The command line.


def configure(folder: Path, text: str) -> None:
    (folder / "kvtape.toml").write_text(text)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[sources.a]\nnosuch = 1\nurl = 'redis://h'", "nosuch in [sources.a]"),
        ("[sources.a]\nack = 'hidden'", "[sources.a] has no url"),
        ("[sources.a]\nurl = 'h:1'", "give the server as a URL"),
        ("[sources.a]\nurl = 'redis://h'\nack = 'loud'", "'loud' is not one of"),
        ("[sources.a]\nurl = 'redis://h'\nmetrics = '1'", "metrics in [sources.a]"),
        ("[sources.'a/b']\nurl = 'redis://h'", "a source's name is made of"),
        ("[sources]\na = 1", "a in [sources], which is no table"),
        ("sources = 1", "sources as a value"),
        ("[record]\nurl = 'redis://h'\n[sources.a]\nurl = 'redis://h'", "move the url"),
    ],
)
def test_a_mistake_in_a_source_is_told_before_any_is_recorded(
    tmp_path: Path, text: str, said: str
) -> None:
    top = "" if text.startswith("sources") else "repo = 'repo'\n"
    configure(tmp_path, top + text)
    outcome = kvtape("record", *([] if top else ["--repo", "repo"]))
    assert outcome.status == 2
    assert said in " ".join(outcome.err.split())
    assert not (tmp_path / "repo").exists()


def test_a_source_that_no_table_names_is_refused(tmp_path: Path) -> None:
    configure(tmp_path, "repo = 'repo'\n[sources.a]\nurl = 'redis://h'")
    outcome = kvtape("record", "--source", "b")
    assert outcome.status == 2
    assert "no source b, but a" in outcome.err


@pytest.mark.slow
@pytest.mark.parametrize("server_name", ["redis-6.2"], indirect=True)
def test_sources_of_a_file_are_recorded_with_passwords_of_their_own(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    server_name: str,
    start_server: StartServer,
    started: list[subprocess.Popen[str]],
) -> None:
    shop = start_server(server_name, requirepass="of-shop")
    users = start_server(server_name, requirepass="of-users")
    (tmp_path / "secret").write_text("of-users\n")
    configure(
        tmp_path,
        f"""
        repo = "repo"
        [record]
        spool = "spool"
        upload-interval = "50ms"
        log-format = "json"
        [sources.the-shop]
        url = "redis://127.0.0.1:{shop.port}"
        [sources.users]
        url = "redis://127.0.0.1:{users.port}"
        password-file = "secret"
        repo = "other"
        """,
    )
    monkeypatch.setenv("KVTAPE_PASSWORD_THE_SHOP", "of-shop")
    process = subprocess.Popen(
        [sys.executable, "-m", "kvtape", "record"],
        stderr=subprocess.PIPE,
        text=True,
    )
    started.append(process)

    def recorded() -> list[dict[str, object]]:
        outcome = kvtape("status", "--json")
        lines = outcome.out.splitlines()
        return [json.loads(line) for line in lines if outcome.status == 0]

    wait_until(
        lambda: (
            [one["source"] for one in recorded() if one["stored_offset"] is not None]
            == ["the-shop", "users"]
        )
    )
    assert [
        one["source"]
        for one in map(
            json.loads, kvtape("status", "--json", "--source", "users").out.splitlines()
        )
    ] == ["users"]
    process.send_signal(signal.SIGTERM)
    _, log = process.communicate(timeout=20)
    assert process.returncode == 0
    assert list(open_repository("repo").sources()) == ["the-shop"]
    assert list(open_repository("other").sources()) == ["users"]
    lines = [json.loads(line) for line in log.splitlines()]
    assert {"time", "level", "source", "event", "message"} <= set.intersection(
        *map(set, lines)
    )
    stopped = {line["source"]: line for line in lines if line["event"] == "stopped"}
    assert stopped.keys() == {"the-shop", "users"}
    assert "of-shop" not in log
    assert "of-users" not in log


@pytest.mark.slow
@pytest.mark.parametrize("server_name", ["redis-7.0"], indirect=True)
def test_a_stop_within_the_first_snapshot_says_that_nothing_can_be_restored(
    tmp_path: Path,
    server_name: str,
    start_server: StartServer,
    started: list[subprocess.Popen[str]],
) -> None:
    server = start_server(server_name, rdb_key_save_delay="1000000")
    with server.client() as client:
        for number in range(1000):
            client.set(f"key{number}", "x" * 1000)
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "kvtape", "record", "--repo", "repo"),
            f"redis://127.0.0.1:{server.port}",
        ],
        stderr=subprocess.PIPE,
        text=True,
    )
    started.append(process)
    assert process.stderr is not None
    for line in process.stderr:
        if "full resync" in line:
            break
    process.send_signal(signal.SIGTERM)
    _, log = process.communicate(timeout=20)
    assert process.returncode == 0
    assert "nothing can be restored yet" in log
    assert tmp_path.exists()
