"""A folder is restored that a server loads by itself, or there is no folder."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Final

import pytest

from fingerprints import server_time
from kvtape.errors import DestinationError, Error, PointError, RepositoryError
from kvtape.errors import VerificationError as Damaged
from kvtape.progress import Advance, NoWatch
from kvtape.restore.data_dir import (
    Layout,
    layout_for,
    restore_data_dir,
    start_command,
)
from kvtape.restore.job import Job, open_job
from kvtape.tape.documents import Server as Identity
from kvtape.tape.point import ToLatest, ToOffset
from oracle import compare, fingerprint
from plain_client import PlainClient
from recording import THEN, Recorded, Tape, rdb, recorded, tape_of, taping
from replicas import attach, wait_until
from servers import Server, ServerError, StartServer
from small_disk import small_disk
from tapes import command

NOISE: Final = random.Random(5).randbytes(900_000)


@pytest.fixture
def recording(server_name: str, tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    """Return the recording of each of the six servers."""
    folder = tmp_path_factory.getbasetemp() / f"recorded-{server_name}"
    return recorded(server_name, folder)


def restore(job: Job, target: Path) -> None:
    restore_data_dir(job, target, layout_for(job.plan.snapshot.manifest))


def started(start_server: StartServer, name: str, folder: Path) -> Server:
    """Start a server by what the restore says to start it by."""
    return start_server(name, config_file=folder / "redis.conf")


def files_of(folder: Path) -> set[str]:
    return {
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file()
    }


# What a server makes of it.


def test_a_server_on_the_folder_is_what_the_primary_was(
    recording: Recorded, start_server: StartServer, tmp_path: Path
) -> None:
    for moment in (recording.middle, recording.end):
        target = tmp_path / str(moment.offset)
        job = recording.job(ToOffset(moment.offset))
        result = restore_data_dir(job, target, layout_for(job.plan.snapshot.manifest))
        assert (result.offset, result.replid) == (moment.offset, recording.replid)
        server = started(start_server, recording.name, target)
        assert compare(moment.state, fingerprint(server.client())) == []
        with PlainClient(server.client()) as plain:
            for key in ("counter", "pending"):
                assert plain.ask("GET", key) == b"11"
                assert plain.ask("PTTL", key) == -1
        server.stop()


def test_the_layout_is_that_of_the_recorded_server(
    recording: Recorded, tmp_path: Path
) -> None:
    job = recording.job()
    restore(job, tmp_path / "restored")
    several = {
        "appendonlydir/appendonly.aof.1.base.rdb",
        "appendonlydir/appendonly.aof.1.incr.aof",
        "appendonlydir/appendonly.aof.manifest",
    }
    expected = {"appendonly.aof"} if recording.name == "redis-6.2" else several
    assert files_of(tmp_path / "restored") == expected | {"redis.conf"}
    family = recording.name.partition("-")[0]
    assert start_command(job.plan.snapshot.manifest, tmp_path / "restored") == (
        f"{family}-server {tmp_path}/restored/redis.conf"
    )


@pytest.mark.parametrize("layout", ["single", "multi-part"])
def test_either_layout_loads_where_it_can(
    server_name: str, start_server: StartServer, tmp_path: Path, layout: Layout
) -> None:
    if server_name == "redis-6.2" and layout == "multi-part":
        return  # it is what Redis 7 brought
    tape = tape_of(tmp_path / "repo", server_name)
    restore_data_dir(tape.job(), tmp_path / "restored", layout)
    server = started(start_server, server_name, tmp_path / "restored")
    assert server.client().get("key") == b"value"
    # What is written to it now is there after a restart.
    server.client().set("more", "1")
    server.stop()
    server.start()
    assert server.client().mget("key", "more") == [b"value", b"1"]


def test_where_the_version_is_unknown_the_snapshot_tells_the_layout(
    tmp_path: Path,
) -> None:
    for version, layout in ((9, "single"), (10, "multi-part")):
        tape = Tape(tmp_path / layout).snapshot(rdb(version=version))
        assert layout_for(tape.job().plan.snapshot.manifest) == layout


def test_any_name_of_a_folder_will_do(
    start_server: StartServer, tmp_path: Path
) -> None:
    target = tmp_path / "a \"b\" 'c' \\d ä # $e"
    tape = tape_of(tmp_path / "repo", "redis-7.0")
    restore(tape.job(), target)
    server = started(start_server, "redis-7.0", target)
    assert server.client().get("key") == b"value"
    server.client().config_rewrite()
    server.stop()
    server.start()
    assert server.client().get("key") == b"value"


def test_the_databases_are_as_many_as_there_were(
    start_server: StartServer, tmp_path: Path
) -> None:
    for known in (20, None):
        tape = Tape(tmp_path / f"repo{known}", server=Identity(databases=known))
        tape.snapshot(rdb((3, "key", "value", None)))
        tape.commands(("SELECT", 19), ("SET", "key", "nineteen"))
        restore(tape.job(), tmp_path / f"restored{known}")
        server = started(start_server, "redis-6.2", tmp_path / f"restored{known}")
        assert server.client(db=19).get("key") == b"nineteen"
        assert server.client(db=3).get("key") == b"value"


# What time does to keys.


def test_a_key_is_what_it_was_also_after_its_time(
    server_name: str, start_server: StartServer, tmp_path: Path
) -> None:
    long_gone = THEN + 5000
    snapshot = rdb(
        (0, "pending", "10", long_gone),
        (0, "renamed", "10", long_gone),
        (0, "gone", "1", long_gone),
    )
    tape = tape_of(
        tmp_path / "repo",
        server_name,
        [
            ("INCR", "pending"),
            ("PERSIST", "pending"),
            ("APPEND", "renamed", "1"),
            ("RENAME", "renamed", "kept"),
            ("PEXPIREAT", "kept", 4_000_000_000_000),
            ("SET", "counter", 10, "PX", 1500),
            ("INCR", "counter"),
            ("PERSIST", "counter"),
            ("SET", "absolute", 10, "PXAT", long_gone),
            ("INCR", "absolute"),
            ("EXPIREAT", "absolute", 4_000_000_000),
        ],
        snapshot,
    )
    restore(tape.job(), tmp_path / "restored")
    server = started(start_server, server_name, tmp_path / "restored")
    with PlainClient(server.client()) as plain:
        names = ("pending", "kept", "counter", "absolute", "gone", "renamed")
        values = plain.ask("MGET", *names)
        assert values == [b"11", b"101", b"11", b"11", None, None]
        assert [plain.ask("PTTL", key) for key in ("pending", "counter")] == [-1, -1]


def test_what_expired_in_an_hour_expires_in_that_hour(
    server_name: str, start_server: StartServer, tmp_path: Path
) -> None:
    # Received long ago, and long from now until they expire.
    far = 20 * 365 * 86_400_000
    tape = tape_of(
        tmp_path / "repo",
        server_name,
        [
            ("SET", "a", 1, "PX", far),
            ("SETEX", "b", far // 1000, 1),
            ("SET", "c", 1),
            ("EXPIRE", "c", far // 1000),
            ("SET", "d", 1, "EX", 10),
            ("SET", "e", 1, "PXAT", THEN + far),
        ],
    )
    received = THEN + 1000
    restore(tape.job(), tmp_path / "restored")
    server = started(start_server, server_name, tmp_path / "restored")
    with PlainClient(server.client()) as plain:
        assert plain.ask("GET", "d") is None
        now = server_time(plain)
        for nth, key in ((1, "a"), (2, "b"), (4, "c"), (None, "e")):
            left = plain.ask("PTTL", key)
            assert isinstance(left, int)
            when = THEN + far if nth is None else received + 1000 * nth + far
            assert abs(now + left - when) < 500, key


def test_a_recording_of_a_replica_knows_its_database(
    server_name: str, start_server: StartServer, tmp_path: Path
) -> None:
    primary, replica = start_server(server_name), start_server(server_name)
    with PlainClient(primary.client()) as plain:
        plain.exchange([("SELECT", 9), ("SET", "key", 1)])
        attach(replica, primary)
        plain.exchange([("INCR", "key")])
        with PlainClient(replica.client()) as other:
            other.ask("SELECT", 9)
            wait_until(lambda: other.ask("GET", "key") == b"2")
        with taping(replica, tmp_path / "repo") as tape:
            plain.exchange([("INCR", "key"), ("SET", "more", 1)])
            with PlainClient(replica.client()) as other:
                other.ask("SELECT", 9)
                wait_until(lambda: other.ask("EXISTS", "more") == 1)
            tape.catch_up()
    job = open_job(str(tmp_path / "repo"), None, ToLatest())
    assert job.plan.snapshot.manifest.db == 9
    restore(job, tmp_path / "restored")
    server = started(start_server, server_name, tmp_path / "restored")
    assert server.client(db=9).mget("key", "more") == [b"3", b"1"]
    assert server.client(db=0).dbsize() == 0


def test_within_a_transaction_the_state_before_it_is_restored(
    server_name: str, start_server: StartServer, tmp_path: Path
) -> None:
    tape = Tape(tmp_path / "repo").snapshot()
    before = command("SELECT", 0) + command("SET", "key", "old")
    within = command("MULTI") + command("SET", "key", "new") + command("SET", "b", 1)
    tape.segment([(THEN + 1, before + within + command("EXEC"))])
    boundary = 1000 + len(before)
    for offset in (boundary + 20, boundary + len(within)):
        job = tape.job(ToOffset(offset))
        [note] = job.notes
        assert "within a command or transaction: rounded down to" in note
        target = tmp_path / str(offset)
        restore(job, target)
        server = started(start_server, server_name, target)
        assert server.client().mget("key", "b") == [b"old", None]
        server.close()


# Where to.


@pytest.fixture
def job(tmp_path: Path) -> Job:
    """Return a small restore."""
    tape = Tape(tmp_path / "repo").snapshot(rdb((0, "key", "old", None)))
    tape.commands(("SELECT", 0), ("SET", "key", "value"))
    tape.commands(("SET", "noise", NOISE))
    return tape.job()


def test_a_folder_that_is_there_and_empty_is_used(job: Job, tmp_path: Path) -> None:
    target = tmp_path / "some" / "where"
    target.mkdir(parents=True)
    restore(job, target)
    assert "redis.conf" in files_of(target)
    assert [path.name for path in target.parent.iterdir()] == ["where"]


def test_a_folder_whose_parents_are_not_there_is_made(job: Job, tmp_path: Path) -> None:
    restore(job, tmp_path / "a" / "b" / "c")
    assert "redis.conf" in files_of(tmp_path / "a" / "b" / "c")


def test_a_relative_folder_is_that_of_the_current_one(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = restore_data_dir(job, Path("restored"), "single")
    assert result.data_dir == str(tmp_path / "restored")
    configuration = (tmp_path / "restored" / "redis.conf").read_text()
    assert f'dir "{tmp_path}/restored"' in configuration


def test_a_server_that_would_ignore_the_folder_refuses_to_start_on_it(
    job: Job, tmp_path: Path, start_server: StartServer
) -> None:
    restore_data_dir(job, tmp_path / "restored", "multi-part")
    with pytest.raises(ServerError, match="Bad directive"):
        started(start_server, "redis-6.2", tmp_path / "restored")


def test_what_is_there_is_never_touched(job: Job, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir()
    (target / "dump.rdb").write_bytes(b"precious")
    with pytest.raises(DestinationError, match="is not empty"):
        restore(job, target)
    with pytest.raises(DestinationError, match="is not empty"):
        restore(job, target / "dump.rdb")
    assert (target / "dump.rdb").read_bytes() == b"precious"


@pytest.mark.parametrize("is_file", [False, True])
def test_what_is_in_the_way_of_building_is_named_and_left_alone(
    job: Job, tmp_path: Path, *, is_file: bool
) -> None:
    partial = tmp_path / "target.partial"
    precious = partial if is_file else partial / "precious"
    precious.parent.mkdir(exist_ok=True)
    precious.write_text("precious")
    with pytest.raises(DestinationError, match=r"target\.partial is in the way"):
        restore(job, tmp_path / "target")
    assert precious.read_text() == "precious"
    assert not (tmp_path / "target").exists()


# Interruptions.


class Interrupting(NoWatch):
    """Does something at the nth step of a restore."""

    def __init__(self, nth: int, act: Callable[[], object]) -> None:
        self._left = nth
        self._act = act

    def stage(self, name: str, length: int) -> Advance:
        """Count the steps, over all stages."""

        def advance(_count: int) -> None:
            self._left -= 1
            if self._left == 0:
                self._act()

        return advance


def interrupt() -> None:
    raise KeyboardInterrupt


def test_an_interrupted_restore_leaves_nothing(job: Job, tmp_path: Path) -> None:
    for nth in (1, 2, 3):
        with pytest.raises(KeyboardInterrupt):
            restore(replace(job, watch=Interrupting(nth, interrupt)), tmp_path / "x")
        assert [path.name for path in tmp_path.iterdir()] == ["repo"]


def test_of_a_killed_restore_nothing_stands_where_it_was_to_be(
    job: Job, start_server: StartServer, tmp_path: Path
) -> None:
    script = """
import os, signal, sys
from dataclasses import replace
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from kvtape.restore.job import open_job
from kvtape.tape.point import ToLatest
from test_data_dir import Interrupting, restore
job = open_job(sys.argv[2], None, ToLatest())
kill = lambda: os.kill(os.getpid(), signal.SIGKILL)
restore(replace(job, watch=Interrupting(int(sys.argv[4]), kill)), Path(sys.argv[3]))
"""
    target = tmp_path / "target"
    for nth in (1, 3):
        arguments = [Path(__file__).parent, tmp_path / "repo", target, nth]
        done = subprocess.run(
            [sys.executable, "-c", script, *map(str, arguments)], check=False
        )
        assert done.returncode == -signal.SIGKILL
        assert not target.exists()
        assert (tmp_path / "target.partial").is_dir()
        # It is no folder to start a server on.
        assert not (tmp_path / "target.partial" / "redis.conf").exists()
    restore(job, target)
    assert not (tmp_path / "target.partial").exists()
    assert files_of(target) == {"appendonly.aof", "redis.conf"}
    server = started(start_server, "redis-6.2", target)
    assert server.client().get("key") == b"value"


def test_an_empty_folder_that_a_crash_left_is_not_in_the_way(
    job: Job, tmp_path: Path
) -> None:
    (tmp_path / "target.partial").mkdir()
    restore(job, tmp_path / "target")
    assert not (tmp_path / "target.partial").exists()


def test_what_another_restore_is_building_is_left_to_it(
    job: Job, tmp_path: Path
) -> None:
    refusals = []

    def begin_another() -> None:
        with pytest.raises(DestinationError, match="another restore is building"):
            restore(job, tmp_path / "target")
        refusals.append(1)

    restore(replace(job, watch=Interrupting(2, begin_another)), tmp_path / "target")
    assert refusals == [1]
    assert files_of(tmp_path / "target") == {"appendonly.aof", "redis.conf"}


# Disks.


def test_a_link_to_a_folder_is_followed(job: Job, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    result = restore_data_dir(job, tmp_path / "link", "single")
    assert result.data_dir == str(tmp_path / "real")
    assert "redis.conf" in files_of(tmp_path / "real")


def test_where_a_disk_is_mounted_a_folder_on_it_is_asked_for(
    job: Job, tmp_path: Path
) -> None:
    with small_disk(tmp_path / "disk") as disk:
        if os.path.ismount(disk):
            with pytest.raises(DestinationError, match="is where a disk is mounted"):
                restore(job, disk)
            assert list(disk.iterdir()) == []


def test_a_disk_that_is_too_small_is_told_before_it_is_full(
    tmp_path: Path,
) -> None:
    tape = Tape(tmp_path / "repo").snapshot()
    tape.commands(("SET", "a", NOISE), ("SET", "b", NOISE))
    with small_disk(tmp_path / "disk") as disk:
        with pytest.raises(RepositoryError, match=r"(has only|cannot write)"):
            restore(tape.job(), disk / "target")
        assert list(disk.iterdir()) == []


def test_a_disk_that_is_full_before_the_end_is_left_as_it_was(
    job: Job, tmp_path: Path
) -> None:
    with small_disk(tmp_path / "disk") as disk:
        if not os.path.ismount(disk):
            return  # it is a limit on the length of a file, which nothing here reaches

        def fill() -> None:
            (disk / "filler").write_bytes(b"x" * 500_000)

        filling = replace(job, watch=Interrupting(1, fill))
        with pytest.raises(RepositoryError, match=f"cannot write {disk}/target: No sp"):
            restore(filling, disk / "target")
        assert [path.name for path in disk.iterdir()] == ["filler"]


# Damage.


def damage(file: Path, how: str) -> None:
    content = bytearray(file.read_bytes())
    match how:
        case "deleted":
            file.unlink()
            return
        case "cut short":
            del content[-10:]
        case "emptied":
            content.clear()
        case _:
            content[len(content) * int(how) // 100] ^= 0x10
    file.write_bytes(content)


HOWS = ["deleted", "cut short", "emptied", "0", "5", "30", "50", "70", "99"]


@pytest.mark.parametrize("how", HOWS)
def test_of_what_is_damaged_nothing_is_restored_and_the_file_is_named(
    tmp_path: Path, how: str
) -> None:
    tape = Tape(tmp_path / "repo").snapshot(rdb((0, "key", "old", None)))
    for number in range(3):
        tape.commands(("SET", f"key:{number}", "v" * 100))
    point = ToOffset(tape.end)
    for path in tape.folder.list():
        if path.endswith(("source.json",)) or path.startswith("histories"):
            continue
        file = Path(tape.folder.url, path)
        copy = tmp_path / "copy"
        shutil.copy(file, copy)
        damage(file, how)
        with pytest.raises(Error) as caught:
            restore(tape.job(point), tmp_path / "target")
        if caught.type is Damaged:
            # A manifest that can be read is one with its RDB file.
            named = path.removesuffix("manifest.json")
            assert named in str(caught.value)
            assert "is damaged" in str(caught.value)
        else:
            # What is not there is a hole; of a snapshot, the file is named.
            assert caught.type is PointError
            assert path.startswith("snapshots") or how == "deleted"
            if path.startswith("snapshots") and "manifest" not in path:
                assert path in str(caught.value)
        left = {entry.name for entry in tmp_path.iterdir()}
        assert left == {"repo", "copy"}
        shutil.copy(copy, file)
    restore(tape.job(point), tmp_path / "target")
