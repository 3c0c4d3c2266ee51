"""The command line keeps its contract: verbs, options, JSON, statuses, signals."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

from kvtape.cli.app import app
from plain_client import PlainClient
from recording import IDENTITIES, REPLID, THEN, Tape, rdb, tape_of
from replicas import wait_until
from servers import Server, StartServer
from tapes import command
from verbs import Outcome, ended, environment, kvtape, program, wait_for_line

COMMAND: Any = typer.main.get_command(app)
VERBS: dict[str, Any] = dict(COMMAND.commands)

START = 1000
SET = command("SET", "key", "value")
END = START + len(command("SELECT", 0) + SET)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Run in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def tape(folder: Path) -> Tape:
    """Return a recording of one SET, at `repo`."""
    return tape_of(folder / "repo", "redis-7.0")


# Help.


def test_every_verb_and_every_option_is_explained() -> None:
    top = kvtape("--help")
    assert top.status == 0
    assert {"record", "info", "restore"} <= VERBS.keys()
    for name, verb in VERBS.items():
        assert re.search(rf"^  {name}  +\w", top.out, re.MULTILINE)
        shown = kvtape(name, "--help")
        assert shown.status == 0
        assert max(map(len, shown.out.splitlines())) <= 80
        for parameter in verb.params:
            word = max(parameter.opts, key=len)
            word = word if word.startswith("-") else word.upper()
            # The option, what it takes, and then a sentence.
            assert re.search(rf"^  .*{word}\b[^\n]*\s+[A-Z]\w", shown.out, re.MULTILINE)
            assert "<str>" not in re.sub("(URL|KEY) <str>", "", shown.out)


def test_no_verb_is_help_and_a_mistake() -> None:
    outcome = kvtape()
    assert outcome.status == 2
    assert "Commands:" in outcome.out + outcome.err


def test_the_version_is_that_of_the_package() -> None:
    outcome = kvtape("--version")
    assert (outcome.status, outcome.err) == (0, "")
    assert re.fullmatch(r"kvtape \d+\.\d+\S*\n", outcome.out)


# Mistakes.


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("nosuch", "No such command 'nosuch'"),
        ("info", "Missing option '--repo' (env var: 'KVTAPE_REPO')"),
        ("info --repo repo --nosuch", "No such option"),
        ("info --repo repo --source nosuch", "no source 'nosuch', but the sources"),
        ("restore --repo repo", "say where to restore"),
        ("restore --repo repo --data-dir a --serve 1", "only one of --data-dir, --ser"),
        ("restore --repo repo --data-dir a --into x", "only one of --data-dir, --ser"),
        ("restore --repo repo --to-offset 1 --to-latest --dry-run", "only one of"),
        ("restore --repo repo --to-offset 1 --to-time now --dry-run", "only one of"),
        ("restore --repo repo --to-offset one --dry-run", "is no offset"),
        ("restore --repo repo --to-offset -1 --dry-run", "is no offset"),
        ("restore --repo repo --to-time 3am --dry-run", "is no time"),
        ("restore --repo repo --to-time 2026-05-01T03:00:00 --dry-run", "has no zone"),
        ("restore --repo repo --announce h:1 --data-dir a", "--announce goes with"),
        ("restore --repo repo --into redis://h --announce 1", "needs both: HOST:PORT"),
        ("restore --repo repo --into redis://h --announce h:0", "needs both"),
        ("restore --repo repo --serve nowhere", "is no address"),
        ("restore --repo repo --into localhost:6379", "give the server as a URL"),
        ("restore --repo repo --layout flat --data-dir a", "'flat' is not one of"),
        ("restore --repo repo --data-dir a --password-file nosuch", "cannot read the"),
        ("record --repo repo", "URL, or record several by [sources"),
        (
            "record redis://h --repo repo --snapshot-from redis://i --snapshot-file f",
            "give one of them",
        ),
        (
            "record redis://h --repo repo --snapshot-from redis+sentinel://i/x",
            "Sentinel",
        ),
        ("record redis://h --repo repo --ack loud", "'loud' is not one of"),
        ("record redis://h --repo repo --announce 7000", "lacks a host or a port"),
        ("record redis://h --repo repo --announce h:0", "lacks a host or a port"),
        ("record redis://h --repo repo --announce h:x", "is no address"),
        ("record redis://h --repo repo --segment-size 0", "must be more than nothing"),
        ("record redis://h --repo repo --flush-interval 0s", "--flush-interval must"),
        ("record redis://h --repo repo --upload-interval 0", "--upload-interval must"),
        ("record redis://h --repo repo --segment-size x", "is no size"),
        ("record redis://h --repo repo --spool-limit 0", "must be more than nothing"),
        ("record redis://h --repo repo --stop-timeout x", "is no duration"),
        ("record redis://h --repo repo --full-resyncs-per-hour 0", "resyncs-per-hour"),
    ],
)
@pytest.mark.usefixtures("tape")
def test_a_mistake_is_told_and_the_status_is_2(arguments: str, said: str) -> None:
    outcome = kvtape(*arguments.split())
    assert (outcome.status, outcome.out) == (2, "")
    assert said in " ".join(outcome.err.split())
    assert not Path("a").exists()


def test_a_bug_is_shown_and_the_status_is_1(tape: Tape) -> None:
    sabotage = (
        "import kvtape.cli.info as verb; from kvtape.__main__ import main; "
        "verb.open_repository = None; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", sabotage, "info", "--repo", "repo"],
        capture_output=True,
        text=True,
        check=False,
        env=environment({"KVTAPE_PASSWORD": "hunter2"}),
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert "Traceback" in done.stderr
    assert "TypeError: 'NoneType'" in done.stderr
    assert "hunter2" not in done.stderr


# info.


def two_histories(repository: Path) -> tuple[Tape, Tape]:
    """Return a history with a gap in it, and one that a full resync began."""
    redis = IDENTITIES["redis-7.0"]
    first = Tape(repository, server=redis).snapshot(rdb((0, "a", "1", None)))
    first.commands(("SET", "key", "value"))
    first.gap(first.end + 500, "the backlog did not reach back")
    first.snapshot()
    first.commands(("SET", "key", "later"))
    first.gap(None, "the primary knows another history: it was restarted")
    second = Tape(
        repository,
        server=redis,
        replid="f" * 40,
        start=START + 10,
        time=THEN + 200_000,
        reason="full-resync",
    )
    second.snapshot()
    second.commands(("SET", "key", "new"), ("SET", "key", "newest"))
    return first, second


def moment(second: float) -> str:
    """Return a time after THEN, as it is shown."""
    return (
        f"2023-11-14T22:{13 + (20 + int(second)) // 60:02}:{(20 + second) % 60:06.3f}Z"
    )


def test_info_is_one_document_of_the_promised_fields(folder: Path) -> None:
    first, second = two_histories(folder / "repo")
    outcome = kvtape("info", "--repo", "repo", "--json")
    assert (outcome.status, outcome.err) == (0, "")
    assert len(outcome.out.splitlines()) == 1
    found = outcome.document()
    middle = START + len(SET)
    assert found == {
        "source": "source",
        "histories": [
            {
                "replid": REPLID,
                "parent": None,
                "parent_offset": None,
                "reason": "first",
                "created": moment(0),
                "address": None,
            },
            {
                "replid": "f" * 40,
                "parent": None,
                "parent_offset": None,
                "reason": "full-resync",
                "created": moment(200),
                "address": None,
            },
        ],
        "restorable": [
            {
                "replid": REPLID,
                "start_offset": START,
                "end_offset": middle,
                "start_time": moment(0),
                "end_time": moment(1),
            },
            {
                "replid": REPLID,
                "start_offset": middle + 500,
                "end_offset": first.end,
                "start_time": moment(61),
                "end_time": moment(62),
            },
            {
                "replid": "f" * 40,
                "start_offset": START + 10,
                "end_offset": second.end,
                "start_time": moment(200),
                "end_time": moment(202),
            },
        ],
        "snapshots": [
            {
                "replid": replid,
                "offset": offset,
                "time": moment(at),
                "bytes": size,
                "stored_bytes": stored["stored_bytes"],
                "server": "Redis 7.0.15",
            }
            for (replid, offset, at, size), stored in zip(
                [
                    (REPLID, START, 0, 25),
                    (REPLID, middle + 500, 61, 18),
                    ("f" * 40, START + 10, 200, 18),
                ],
                found["snapshots"],
                strict=True,
            )
        ],
        "gaps": [
            {
                "replid": REPLID,
                "start_offset": middle,
                "end_offset": middle + 500,
                "start_time": moment(1),
                "end_time": moment(61),
                "reason": "the backlog did not reach back",
            },
            {
                "replid": REPLID,
                "start_offset": first.end,
                "end_offset": None,
                "start_time": moment(62),
                "end_time": moment(122),
                "reason": "the primary knows another history: it was restarted",
            },
        ],
        "orphaned": [
            {
                "replid": None,
                "start_offset": None,
                "end_offset": None,
                "continued_as": "f" * 40,
            }
        ],
        "stored_bytes": sum(first.folder.list().values()),
        "problems": [],
    }


def test_info_is_readable_at_80_columns(folder: Path) -> None:
    first, second = two_histories(folder / "repo")
    outcome = kvtape("info", "--repo", "repo")
    assert (outcome.status, outcome.err) == (0, "")
    assert max(map(len, outcome.out.splitlines())) <= 80
    for part in (
        f"history {REPLID}",
        f"restorable  {START} to {START + len(SET)}\n",
        f"{moment(200)} to {moment(202)}\n",
        f"snapshot    {START + 10}, 18 B, Redis 7.0.15\n",
        f"gap         {first.end} to a full resync\n",
        "the backlog did not reach back\n",
    ):
        assert part in outcome.out
    assert str(second.end) in outcome.out


def test_a_failover_is_shown_and_restored_across(folder: Path) -> None:
    tape = Tape(folder / "repo").snapshot()
    tape.commands(("SET", "key", "before"))
    forked = tape.end
    tape.fork("f" * 40)
    tape.commands(("SET", "key", "after"))
    outcome = kvtape("info", "--repo", "repo")
    assert max(map(len, outcome.out.splitlines())) <= 80
    assert f"  parent {REPLID}\n  shared up to {forked}\n" in outcome.out
    _, history = kvtape("info", "--repo", "repo", "--json").document()["histories"]
    assert history == {
        "replid": "f" * 40,
        "parent": REPLID,
        "parent_offset": forked,
        "reason": "failover",
        "created": moment(1),
        "address": None,
    }
    outcome = kvtape("restore", "--repo", "repo", "--data-dir", "x", "--json")
    found = outcome.document()
    assert (found["replid"], found["offset"]) == ("f" * 40, tape.end)
    assert (found["snapshot_offset"], found["segments"]) == (START, 2)
    assert (
        (folder / "x" / "appendonly.aof")
        .read_bytes()
        .endswith(command("SET", "key", "before") + command("SET", "key", "after"))
    )


def test_info_of_nothing_says_so(folder: Path) -> None:
    tape = Tape(folder / "repo")
    outcome = kvtape("info", "--repo", "repo")
    assert outcome.status == 0
    assert "nothing can be restored yet: no snapshot is complete" in outcome.out
    tape.snapshot()
    [path] = (folder / "repo").rglob("manifest.json")
    path.write_text("{")
    outcome = kvtape("info", "--repo", "repo")
    assert outcome.status == 0
    assert "problem: snapshots/" in outcome.out
    assert kvtape("info", "--repo", "repo", "--json").document()["problems"]


# restore.


RESULT = {
    "replid": REPLID,
    "offset": END,
    "time": "2023-11-14T22:13:22.000Z",
    "snapshot_offset": START,
    "segments": 1,
    "stream_bytes": END - START,
    "commands": 2,
    "data_dir": None,
    "ttl": "keep",
    "ttl_shift_ms": None,
    "skipped": 0,
    "skipped_offsets": [],
    "notes": [],
}


@pytest.mark.usefixtures("tape")
def test_a_restore_is_told_in_one_document(folder: Path) -> None:
    outcome = kvtape("restore", "--repo", "repo", "--data-dir", "restored", "--json")
    assert (outcome.status, outcome.err) == (0, "")
    assert outcome.document() == RESULT | {"data_dir": str(folder / "restored")}
    assert (folder / "restored" / "redis.conf").exists()


@pytest.mark.usefixtures("tape")
def test_a_restore_says_how_to_start_a_server(
    folder: Path, start_server: StartServer
) -> None:
    outcome = kvtape("restore", "--repo", "repo", "--data-dir", "my data")
    assert (outcome.status, outcome.err) == (0, "")
    assert max(map(len, outcome.out.splitlines()[:-1])) <= 80 or len(str(folder)) > 60
    line = outcome.out.splitlines()[-1]
    assert line == f"  redis-server '{folder}/my data/redis.conf'"
    server = start_server("redis-7.0", config_file=folder / "my data" / "redis.conf")
    assert server.client().get("key") == b"value"


@pytest.mark.usefixtures("tape")
def test_a_dry_run_tells_the_same_and_touches_nothing(
    folder: Path, start_server: StartServer
) -> None:
    target = start_server("redis-7.0")
    for where in (
        (),
        ("--data-dir", "restored"),
        ("--serve", "0"),
        ("--into", f"redis://127.0.0.1:{target.port}"),
    ):
        outcome = kvtape("restore", "--repo", "repo", *where, "--dry-run", "--json")
        assert (outcome.status, outcome.err) == (0, "")
        assert outcome.document() == RESULT
    assert [path.name for path in folder.iterdir()] == ["repo"]
    with PlainClient(target.client()) as plain:
        assert plain.info("replication")["role"] == "master"
        assert plain.info("stats")["sync_full"] == "0"
    # But it says what would go wrong.
    target.client().set("key", 1)
    outcome = kvtape("restore", "--repo", "repo", *where, "--dry-run")
    assert outcome.status == 9
    (folder / "restored").mkdir()
    (folder / "restored" / "precious").touch()
    outcome = kvtape("restore", "--repo", "repo", "--data-dir", "restored", "--dry-run")
    assert outcome.status == 9


def test_a_point_within_a_transaction_is_noted(folder: Path) -> None:
    tape = Tape(folder / "repo").snapshot()
    tape.segment([(THEN + 1, SET + command("MULTI") + SET + SET + command("EXEC"))])
    inside = START + 2 * len(SET)
    arguments = ("restore", "--repo", "repo", "--to-offset", inside, "--dry-run")
    outcome = kvtape(*arguments)
    assert outcome.status == 0
    note = (
        f"note: offset {inside} is within a command or transaction: rounded down to "
        f"{START + len(SET)}, the end of the last complete one\n"
    )
    assert outcome.err == note
    found = kvtape(*arguments, "--json").document()
    assert found["offset"] == START + len(SET)
    assert found["notes"] == [note.removeprefix("note: ").rstrip()]


@pytest.mark.parametrize(
    ("point", "said"),
    [
        ("--to-offset 999", "before the first snapshot; the first .* is 1010"),
        ("--to-offset 9999", "after the last recorded byte; the last .* is {second}"),
        ("--to-offset 0123:999", "before the first snapshot; the first .* 0123:1000"),
        ("--to-offset {gap}", "can of others: name the one you mean, {replid}:{gap}"),
        (
            "--to-offset 0123:1300",
            r"is in a gap \(the backlog did not reach back\); the nearest .* are "
            "0123:{middle} and 0123:{gap}",
        ),
        ("--to-offset 4444:1000", "no history begins with 4444; there are: {replid}"),
        (
            "--to-time 2020-01-01T00:00:00Z",
            "before the first snapshot; .*22:13:20.000Z",
        ),
        ("--to-time 2023-11-14T22:14:00Z", "is in a gap; .*:13:21.000Z and .*:14:21.0"),
        ("--to-time now", "after the last recorded byte; .*22:16:42.000Z"),
    ],
)
def test_a_point_that_cannot_be_restored_names_the_nearest(
    folder: Path, point: str, said: str
) -> None:
    first, second = two_histories(folder / "repo")
    names = {
        "replid": REPLID,
        "gap": START + len(SET) + 500,
        "middle": START + len(SET),
        "first": first.end,
        "second": second.end,
    }
    arguments = point.format(**names).split()
    outcome = kvtape("restore", "--repo", "repo", *arguments, "--data-dir", "x")
    assert (outcome.status, outcome.out) == (3, "")
    assert re.search(said.format(**names), outcome.err)
    assert not (folder / "x").exists()


@pytest.mark.parametrize(
    ("point", "history", "second"),
    [
        ("--to-latest", "f", 2),
        ("", "f", 2),
        ("--to-offset {end}", "f", 2),
        ("--to-offset 0123:{gap}", "0", 0),
        ("--to-offset ffff:1010", "f", 0),
        ("--to-time 2023-11-14T22:16:41.5Z", "f", 1),
        ("--to-time 2023-11-14T23:16:41.5+01:00", "f", 1),
        ("--to-time 2023-11-14T22:13:21Z", "0", 1),
        ("--to-time 2023-11-14T22:14:22Z", "0", 1),
    ],
)
def test_any_way_to_name_a_moment_leads_there(
    folder: Path, point: str, history: str, second: int
) -> None:
    _, last = two_histories(folder / "repo")
    gap = START + len(SET) + 500
    arguments = point.format(gap=gap, end=last.end).split()
    outcome = kvtape("restore", "--repo", "repo", *arguments, "--dry-run", "--json")
    assert outcome.status == 0, outcome.err
    found = outcome.document()
    assert found["replid"][0] == history
    assert found["commands"] == second


@pytest.mark.usefixtures("tape")
def test_into_a_server_is_told_as_into_a_folder(start_server: StartServer) -> None:
    target = start_server("redis-7.0", requirepass="hunter2", masterauth="hunter2")
    Path("secret").write_text("hunter2\r\n")
    url = f"redis://127.0.0.1:{target.port}"
    outcome = kvtape(
        *("restore", "--repo", "repo", "--into", url, "--json"),
        *("--password-file", "secret"),
    )
    assert (outcome.status, outcome.err) == (0, "")
    assert outcome.document() == RESULT
    assert target.client(password="hunter2").get("key") == b"value"
    # Now it holds something.
    outcome = kvtape(
        *("restore", "--repo", "repo", "--into", url),
        env={"KVTAPE_PASSWORD": "hunter2"},
    )
    assert (outcome.status, outcome.out) == (9, "")
    assert "the target holds 1 keys" in outcome.err


@pytest.mark.usefixtures("tape")
def test_a_folder_that_holds_something_is_status_9() -> None:
    assert kvtape("restore", "--repo", "repo", "--data-dir", "repo").status == 9


def test_damage_is_status_4_and_leaves_nothing(tape: Tape, folder: Path) -> None:
    [path] = (folder / "repo").rglob("*.seg")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    outcome = kvtape("restore", "--repo", "repo", "--data-dir", "x")
    assert (outcome.status, outcome.out) == (4, "")
    assert f"{path} is damaged" in outcome.err
    assert [path.name for path in folder.iterdir()] == ["repo"]


# Output.


@pytest.mark.usefixtures("tape")
def test_who_reads_no_further_is_no_error() -> None:
    done = subprocess.run(
        f"{sys.executable} -m kvtape info --repo repo | head -c 1",
        shell=True,
        executable="/bin/bash",
        capture_output=True,
        check=False,
        env=environment(),
    )
    assert (done.returncode, done.stderr) == (0, b"")
    with (
        program("info", "--repo", "repo", "--json") as process,
    ):
        assert process.stdout is not None
        process.stdout.close()
        assert process.wait(timeout=20) == 0


def run_on_terminal(*arguments: object) -> tuple[str, int]:
    """Run a verb with a terminal of 80 columns for stdout and stderr."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "kvtape", *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        stdout=theirs,
        stderr=theirs,
        env=environment({"TERM": "xterm"}),
    )
    os.close(theirs)
    shown = b""
    while select.select([ours], [], [], 30)[0]:
        try:
            shown += os.read(ours, 65536)
        except OSError:
            break  # nobody has it open any more
    os.close(ours)
    return shown.decode(), process.wait()


@pytest.mark.usefixtures("tape")
def test_on_a_terminal_there_are_bars_and_indented_json() -> None:
    shown, status = run_on_terminal(
        "restore", "--repo", "repo", "--data-dir", "x", "--json"
    )
    assert status == 0
    assert "restoring" in shown
    assert "━" in shown
    assert '\r\n  "offset": ' in shown


# Signals.


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.usefixtures("tape")
def test_serving_ends_by_a_signal_and_its_status_is_0(
    start_server: StartServer, number: signal.Signals
) -> None:
    target, second = start_server("redis-7.0"), start_server("redis-7.0")
    arguments = ("restore", "--repo", "repo", "--serve", "127.0.0.1:0", "--json")
    with program(*arguments) as process:
        assert process.stdout is not None
        # It is told before it ends, since until then nobody would know.
        assert json.loads(process.stdout.readline()) == RESULT
        line = wait_for_line(process, "say REPLICAOF 127.0.0.1")
        port = line.split("REPLICAOF 127.0.0.1 ")[1].split()[0]
        for server in (target, second):
            with PlainClient(server.client()) as plain:
                plain.ask("REPLICAOF", "127.0.0.1", port)
            wait_for_line(process, f"127.0.0.1:{server.port} has everything up to")
            assert server.client().get("key") == b"value"
        process.send_signal(number)
        outcome = ended(process)
    assert (outcome.status, outcome.out) == (0, "")


@pytest.mark.usefixtures("tape")
def test_an_interrupted_restore_is_status_130(start_server: StartServer) -> None:
    target = start_server("redis-7.0")
    with program(
        *("restore", "--repo", "repo", "--into", f"redis://127.0.0.1:{target.port}"),
        *("--announce", "192.0.2.1:1234"),
    ) as process:
        with PlainClient(target.client()) as plain:
            wait_until(lambda: plain.info("replication")["role"] == "slave")
        process.send_signal(signal.SIGINT)
        outcome = ended(process)
    assert (outcome.status, outcome.out) == (130, "")
    assert "the target" in outcome.err
    assert "Traceback" not in outcome.err


def test_recording_ends_by_a_signal_with_everything_stored(
    folder: Path, start_server: StartServer
) -> None:
    server = start_server("redis-7.0")
    url = f"redis://127.0.0.1:{server.port}"
    where = ("--repo", "repo", "--spool", "spool")
    arguments = ("record", url, *where, "--ack", "received")
    offset = 0
    for number in (signal.SIGTERM, signal.SIGINT):
        with program(*arguments, "--upload-interval", "1h") as process:
            wait_until(lambda: is_online(server))
            with PlainClient(server.client()) as plain:
                plain.exchange([("INCR", "counter")] * 1000)
                offset = int(plain.info("replication")["master_repl_offset"])
            # It promises what it has received by then, and no more.
            wait_until(lambda: acknowledged(server) >= offset)  # noqa: B023
            process.send_signal(number)
            outcome = ended(process)
        assert (outcome.status, outcome.out) == (0, "")
        assert "Traceback" not in outcome.err
        found = kvtape("info", "--repo", "repo", "--json").document()
        assert found["restorable"][0]["end_offset"] >= offset
        assert len(found["restorable"]) == 1
        assert not list((folder / "spool" / "queue").rglob("*.*"))
    restored = kvtape("restore", "--repo", "repo", "--data-dir", "x")
    assert restored.status == 0
    copy = start_server("redis-7.0", config_file=folder / "x" / "redis.conf")
    assert copy.client().get("counter") == b"2000"


def is_online(server: Server) -> bool:
    with PlainClient(server.client()) as plain:
        return "state=online" in plain.info("replication").get("slave0", "")


def acknowledged(server: Server) -> int:
    with PlainClient(server.client()) as plain:
        replica = dict(
            field.split("=") for field in plain.info("replication")["slave0"].split(",")
        )
        return int(replica["offset"])


def test_recording_until_an_offset_ends_when_that_is_stored(
    start_server: StartServer,
) -> None:
    server = start_server("valkey-9.1", repl_ping_replica_period="1")
    url = f"valkey://127.0.0.1:{server.port}"
    outcome = kvtape(
        *("record", url, "--repo", "repo", "--spool", "spool", "--until-offset", 10)
    )
    assert (outcome.status, outcome.out) == (0, "")
    assert f"recording 127.0.0.1:{server.port} as source 127.0.0.1-" in outcome.err
    found = kvtape("info", "--repo", "repo", "--json").document()
    assert found["restorable"][-1]["end_offset"] >= 10
    assert found["source"] == f"127.0.0.1-{server.port}"


def break_repository(repository: Path) -> None:
    """Make whatever is written into a repository fail."""
    for path in repository.iterdir():
        if path.is_dir():
            path.rename(repository.with_name("away"))
            path.write_text("in the way")


@pytest.mark.parametrize("signals", [1, 2])
def test_what_cannot_be_stored_in_time_is_kept_and_told(
    folder: Path, start_server: StartServer, signals: int
) -> None:
    server = start_server("redis-7.0")
    url = f"redis://127.0.0.1:{server.port}"
    timeout = "300ms" if signals == 1 else "60s"
    with program(
        *("record", url, "--repo", "repo", "--spool", "spool"),
        *("--stop-timeout", timeout, "--upload-interval", "1h", "--ack", "received"),
    ) as process:
        wait_for_line(process, "the snapshot at")
        wait_until(
            lambda: bool(list(folder.glob("repo/*/snapshots/*/*/manifest.json")))
        )
        break_repository(folder / "repo")
        server.client().set("key", "value")
        with PlainClient(server.client()) as plain:
            offset = int(plain.info("replication")["master_repl_offset"])
            wait_until(
                lambda: f"offset={offset}," in plain.info("replication")["slave0"]
            )
        process.send_signal(signal.SIGTERM)
        if signals == 2:
            wait_for_line(process, "cannot write")
            process.send_signal(signal.SIGTERM)
        outcome = ended(process)
    if signals == 1:
        assert outcome.status == 7
        assert "not everything could be stored within 0.3 s" in outcome.err
        assert f"kept in the spool {folder}/spool" in " ".join(outcome.err.split())
    else:
        assert outcome.status == 130
    # The next start stores it.
    for path in (folder / "repo").iterdir():
        if path.is_file() and path.suffix != ".json":
            path.unlink()
            (folder / "away").rename(path)
    again = kvtape(
        *("record", url, "--repo", "repo", "--spool", "spool"),
        *("--until-offset", offset, "--upload-interval", "100ms"),
    )
    assert again.status == 0
    found = kvtape("info", "--repo", "repo", "--json").document()
    assert found["restorable"][0]["end_offset"] >= offset
    assert len(found["restorable"]) == 1


def test_recording_shows_on_a_terminal_what_it_does(start_server: StartServer) -> None:
    server = start_server("redis-7.0", repl_ping_replica_period="1")
    shown, status = run_on_terminal(
        *("record", f"redis://127.0.0.1:{server.port}", "--repo", "repo"),
        *("--spool", "spool", "--until-offset", 30),
    )
    assert status == 0
    assert "streaming: offset" in shown


def outcome_of(*arguments: object) -> Outcome:
    with program(*arguments) as process:
        return ended(process)


@pytest.mark.parametrize(
    ("verb", "status"),
    [
        ("audit --count-by key --repo repo", 0),
        ("history key --repo repo", 0),
        ("restore --dry-run --repo repo", 0),
        ("audit --repo none", 7),
    ],
)
def test_who_closes_stderr_gets_data_and_status(
    verb: str, status: int, folder: Path
) -> None:
    Tape(folder / "repo").snapshot().commands(("SET", "key", 1))
    done = [
        subprocess.run(
            ["sh", "-c", f'"{sys.executable}" -m kvtape {verb} {errors}'],
            cwd=folder,
            env=environment(),
            stdout=subprocess.PIPE,
            check=False,
        )
        for errors in ("2>&-", "2>/dev/null")
    ]
    assert [each.returncode for each in done] == [status] * 2
    assert done[0].stdout == done[1].stdout
    assert bool(done[0].stdout) == (status == 0)


def test_the_module_is_the_program(tape: Tape) -> None:
    as_module = outcome_of("info", "--repo", "repo")
    assert as_module == kvtape("info", "--repo", "repo")
