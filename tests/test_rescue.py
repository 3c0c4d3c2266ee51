"""Some keys of a moment come into a server that goes on serving, and nothing else."""

from __future__ import annotations

import json
import re
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kvtape.cli.runner import run
from kvtape.errors import ServerError
from kvtape.progress import Advance, NoWatch
from kvtape.replication.resp import pack
from kvtape.restore.rescue import Rescue, RescueOptions
from kvtape.restore.state import FOLDER
from kvtape.server.url import ServerUrl
from kvtape.tape.glob import parse_glob
from kvtape.tape.point import ToOffset
from leavings import damage, is_loading, left_in
from meanwhile import meanwhile
from oracle import Fingerprint, compare, fingerprint, stable_fingerprint
from plain_client import Argument, PlainClient
from recording import THEN, Moment, Tape, rdb, tape_of, taping
from replicas import attach, wait_until
from servers import Server, StartServer, binary
from verbs import Outcome, ended, kvtape, program
from workload import Workload

pytestmark = pytest.mark.slow

LATER = 4_102_444_800_000
LONG_GONE = THEN + 5000

# Of the keys that every server of these tests is given, and of nothing else.
OWN = b"own:"

NASTY = (b"", b"\0", b"\r\n", b"*", b"[a]", b"\xff\xfe", "ключ".encode(), b"x" * 3000)


def program_of(name: str) -> Path:
    found = binary(name)
    assert found is not None
    return found


def rescue(repository: Path, name: str, target: Server, *arguments: object) -> Outcome:
    """Run the verb, with a scratch server of a name."""
    return kvtape(
        *("restore", "--repo", repository, "--into"),
        *(f"redis://127.0.0.1:{target.port}", "--scratch", program_of(name)),
        *arguments,
    )


def rescued(*arguments: Any) -> Any:  # noqa: ANN401
    """Run the verb to a good end, and return its document."""
    outcome = rescue(*arguments, "--json")
    assert outcome.status == 0, outcome.err
    return outcome.document()


def counts(document: Any) -> dict[str, int]:  # noqa: ANN401
    kinds = ("missing", "changed", "expiry", "same", "expired")
    return {kind: document[kind]["count"] for kind in kinds if document[kind]["count"]}


# All that there is.


def fill(plain: PlainClient) -> int:
    """Write a thousand keys of every type; return how many."""
    names = [b"key:%d" % number for number in range(1000 - len(NASTY))] + [*NASTY]
    knows_field_ttls = bool(plain.knows("HPEXPIREAT"))
    for number, name in enumerate(names):
        plain.ask("SELECT", number % 3 * 7)
        size = number % 40 + (600 if number % 100 == 0 else 1)
        plain.exchange(_writes(name, number, size))
        if number % 2:
            plain.ask("PEXPIREAT", name, LATER + number)
        if knows_field_ttls and number % 6 == 2:
            plain.ask("HPEXPIREAT", name, LATER + number, "FIELDS", 2, "f0", "f1")
    return len(names)


def _writes(name: bytes, number: int, size: int) -> Sequence[Sequence[Argument]]:
    elements = [b"%d" % (n - 7) if n % 2 else b"element %d" % n for n in range(size)]
    pairs = [word for n, value in enumerate(elements) for word in (f"f{n}", value)]
    scored = [word for n, value in enumerate(elements) for word in (n / 7, value)]
    match number % 6:
        case 0:
            return [("SET", name, b"%d" % number * size)]
        case 1:
            return [("RPUSH", name, *elements)]
        case 2:
            return [("HSET", name, *pairs, "f1", "last")]
        case 3:
            return [("SADD", name, *(elements if number % 4 else range(size)))]
        case 4:
            return [("ZADD", name, *scored)]
        case _:
            return [
                *(("XADD", name, f"{n + 1}-{n}", "f", n) for n in range(size)),
                ("XDEL", name, "1-0"),
                ("XGROUP", "CREATE", name, "group", "0"),
                (
                    "XREADGROUP",
                    "GROUP",
                    "group",
                    "me",
                    "COUNT",
                    2,
                    "STREAMS",
                    name,
                    ">",
                ),
            ]


@contextmanager
def writing(target: Server) -> Iterator[dict[str, int]]:
    """Write keys of one's own all the while, and know what was written last."""
    written: dict[str, int] = {}
    client = target.client()

    def write(is_over: threading.Event) -> None:
        number = 0
        while not is_over.is_set():
            number += 1
            client.set(f"own:live:{number % 50}", number)
            written[f"own:live:{number % 50}"] = number

    with meanwhile(write):
        wait_until(lambda: len(written) > 40)
        yield written


def others(state: Fingerprint) -> Fingerprint:
    """Return a state without what is not a rescue's to bring or to touch."""
    keys = {place: key for place, key in state.keys.items() if place[1][:4] != OWN}
    return replace(state, keys=keys, functions={})


def test_a_thousand_keys_come_as_they_were_while_others_are_written(
    server_name: str, start_server: StartServer, tmp_path: Path, temporary: Path
) -> None:
    source, target = start_server(server_name), start_server(server_name)
    repo = tmp_path / "repo"
    with PlainClient(source.client()) as plain, taping(source, repo) as tape:
        count = fill(plain)
        moment = Moment(*stable_fingerprint(source.client()))
        with Workload("127.0.0.1", source.port, 1, server_name) as work:
            work.step(100)
            plain.ask("FLUSHALL")
            work.step(100)
            tape.catch_up()
    target.client(db=7).rpush("own:list", "a", "b")
    point = ("--to-offset", moment.offset, "--key", "*")
    with writing(target) as written:
        document = rescued(repo, server_name, target, *point)
        assert counts(document) == {"missing": count}
        before = dict(written)
        wait_until(lambda: any(before[name] != written[name] for name in before))
    assert document["written"] == count
    state = fingerprint(target.client())
    assert compare(others(moment.state), others(state)) == []
    assert target.client(db=7).lrange("own:list", 0, -1) == [b"a", b"b"]
    found = target.client().mget(list(written))
    assert found == [b"%d" % number for number in written.values()]
    # Said again it finds that all is done.
    assert counts(rescued(repo, server_name, target, *point)) == {"same": count}
    assert document["scratch"]["server"].lower().startswith(server_name.split("-")[0])


@pytest.mark.parametrize("seed", [1, 2])
def test_whatever_a_workload_left_comes_as_it_was(
    server_name: str,
    seed: int,
    start_server: StartServer,
    tmp_path: Path,
    temporary: Path,
) -> None:
    source, target = start_server(server_name), start_server(server_name)
    with (
        Workload("127.0.0.1", source.port, seed, server_name) as work,
        taping(source, tmp_path / "repo") as tape,
    ):
        work.step(500)
        moment = Moment(*stable_fingerprint(source.client()))
        work.step(50)
        tape.catch_up()
    point = ("--to-offset", moment.offset, "--key", "*")
    document = rescued(tmp_path / "repo", server_name, target, *point)
    assert document["written"] > 100
    state = fingerprint(target.client())
    assert compare(others(moment.state), others(state)) == []


# What differs.


def taped(tmp_path: Path, name: str) -> Tape:
    """Return a tape of five keys of which one has expired since."""
    return tape_of(
        tmp_path / "repo",
        name,
        [
            ("SET", "k:missing", "1"),
            ("RPUSH", "k:changed", "a", "b"),
            ("SET", "k:expiry", "1", "PXAT", LATER),
            ("SADD", "k:same", *range(20), "x"),
            ("SET", "k:expired", "1", "PXAT", LONG_GONE),
            ("SET", "other", "1"),
            ("SELECT", 4),
            ("SET", "k:four", "4"),
        ],
    )


def given(target: Server) -> None:
    client = target.client()
    client.rpush("k:changed", "b", "a")
    client.set("k:expiry", "1", pxat=LATER + 1) if target.name != "redis-6.2" else (
        client.execute_command("SET", "k:expiry", "1", "EX", 1000)  # type: ignore[no-untyped-call]
    )
    client.sadd("k:same", *reversed(range(20)), "x")
    client.set("k:more", "not there then")


KINDS = {"missing": 2, "changed": 1, "expiry": 1, "same": 1, "expired": 1}


def test_a_dry_run_tells_the_differences_and_changes_nothing(
    server_name: str, start_server: StartServer, tmp_path: Path, temporary: Path
) -> None:
    repo = taped(tmp_path, server_name).repository
    target = start_server(server_name)
    given(target)
    before = fingerprint(target.client())
    document = rescued(repo, server_name, target, "--key", "k:*", "--dry-run")
    assert counts(document) == KINDS
    assert document["missing"]["keys"] == [
        {"db": 0, "key": "k:missing"},
        {"db": 4, "key": "k:four"},
    ]
    for kind in ("changed", "expiry", "same", "expired"):
        assert document[kind]["keys"] == [{"db": 0, "key": f"k:{kind}"}]
    assert (document["dry_run"], document["written"]) == (True, 0)
    assert compare(before, fingerprint(target.client())) == []
    outcome = rescue(repo, server_name, target, "--key", "k:*", "--dry-run")
    assert outcome.status == 0
    for line in (
        "would write 4 keys as of offset",
        "         2  not there             k:missing k:four (db 4)",
        "         1  of another value      k:changed",
        "         1  of another expiry     k:expiry",
        "         1  as they were          k:same",
        "         1  their time has passed k:expired",
    ):
        assert line in outcome.out
    assert all(len(line) <= 80 for line in outcome.out.splitlines())
    assert re.search(r"loading the moment with (Redis|Valkey) \S+ \(named", outcome.err)


def test_a_dry_run_of_an_undo_lists_what_came_later_on_the_same_keys(
    start_server: StartServer, tmp_path: Path, temporary: Path
) -> None:
    tape = tape_of(tmp_path / "repo", "redis-7.0", [("SET", "n", 1), ("SET", "m", 1)])
    deleted = tape.end + len(pack("SELECT", 0))
    tape.commands(("SELECT", 0), ("DEL", "n"), ("INCR", "n"), ("INCR", "m"))
    target = start_server("redis-7.0")
    arguments = (tape.repository, "redis-7.0", target, "--key", "*")
    for skip in (("--skip-offset", deleted), ("--skip-command", "DEL")):
        outcome = rescue(*arguments, *skip, "--dry-run")
        assert outcome.status == 0, outcome.err
        lines = outcome.out.splitlines()
        at = lines.index("as if never run: 1 command")
        assert lines[at + 1].endswith(" DEL n")
        assert lines[at + 2] == "later on the same keys, and maybe not the same now: 1"
        assert lines[at + 3].endswith(" INCR n")
        document = rescued(*arguments, *skip, "--dry-run")
        assert (document["skipped"], document["skipped_offsets"]) == (1, [deleted])
        assert document["touched"]["commands"] == 1
        [later] = document["touched"]["first"]
        assert later["command"] == ["INCR", "n"]
    assert target.client().dbsize() == 0
    document = rescued(*arguments, "--skip-command", "DEL")
    assert "touched" not in document
    assert target.client().get("n") == b"2"


def test_what_differs_is_only_overwritten_if_one_says_so(
    server_name: str, start_server: StartServer, tmp_path: Path, temporary: Path
) -> None:
    repo = taped(tmp_path, server_name).repository
    target = start_server(server_name)
    given(target)
    before = fingerprint(target.client())
    outcome = rescue(repo, server_name, target, "--key", "k:*")
    assert outcome.status == 9
    assert "has 2 of the keys otherwise than they were, such as 'k:changed'" in (
        outcome.err
    )
    assert "--replace" in outcome.err
    assert "nothing was written" in outcome.err
    assert compare(before, fingerprint(target.client())) == []
    document = rescued(repo, server_name, target, "--key", "k:*", "--replace")
    assert (counts(document), document["written"]) == (KINDS, 4)
    client = target.client()
    assert client.lrange("k:changed", 0, -1) == [b"a", b"b"]
    left = client.pttl("k:expiry")
    assert left > 10**11
    assert client.get("k:more") == b"not there then"
    assert client.mget("k:expired", "other") == [None, None]
    assert target.client(db=4).get("k:four") == b"4"
    again = rescued(repo, server_name, target, "--key", "k:*")
    assert counts(again) == {"same": 5, "expired": 1}


def test_keys_can_be_put_beside_those_that_are_there(
    start_server: StartServer, tmp_path: Path, temporary: Path
) -> None:
    repo = taped(tmp_path, "redis-7.0").repository
    target = start_server("redis-7.0")
    given(target)
    beside = ("--key", "k:*", "--rename-prefix", "k:=saved:k:", "--db", "0")
    document = rescued(repo, "redis-7.0", target, *beside)
    assert counts(document) == {"missing": 4, "expired": 1}
    client = target.client()
    assert client.lrange("saved:k:changed", 0, -1) == [b"a", b"b"]
    assert client.lrange("k:changed", 0, -1) == [b"b", b"a"]
    assert client.pexpiretime("saved:k:expiry") == LATER
    assert target.client(db=4).dbsize() == 0
    # None of them keeps a name that nobody thought of.
    outcome = rescue(
        *(repo, "redis-7.0", target, "--key", "*", "--rename-prefix", "k:=x:")
    )
    assert outcome.status == 2
    assert "the key 'other' does not begin with 'k:'" in outcome.err
    assert client.exists("x:missing") == 0


def test_only_the_databases_and_patterns_that_were_asked_for_come(
    start_server: StartServer, tmp_path: Path, temporary: Path
) -> None:
    repo = taped(tmp_path, "valkey-9.1").repository
    target = start_server("valkey-9.1")
    chosen = ("--key", "k:f*", "--key", "oth[e]r")
    document = rescued(repo, "valkey-9.1", target, *chosen, "--db", "4")
    assert document["missing"] == {"count": 1, "keys": [{"db": 4, "key": "k:four"}]}
    document = rescued(repo, "valkey-9.1", target, *chosen)
    assert counts(document) == {"missing": 1, "same": 1}
    assert target.client().keys("*") == [b"other"]
    # Nothing is a good answer, too.
    assert counts(rescued(repo, "valkey-9.1", target, "--key", "none")) == {}


@pytest.mark.parametrize("server_name", ["redis-8.0", "valkey-9.1"], indirect=True)
def test_fields_whose_time_has_passed_are_no_difference(
    server_name: str, start_server: StartServer, tmp_path: Path, temporary: Path
) -> None:
    tape = tape_of(
        tmp_path / "repo",
        server_name,
        [
            ("HSET", "hash", "gone", 1, "stays", 2, "later", 3),
            ("HPEXPIREAT", "hash", LONG_GONE, "FIELDS", 1, "gone"),
            ("HPEXPIREAT", "hash", LATER, "FIELDS", 1, "later"),
            ("HSET", "empty", "gone", 1),
            ("HPEXPIREAT", "empty", LONG_GONE, "FIELDS", 1, "gone"),
        ],
    )
    target = start_server(server_name)
    document = rescued(tape.repository, server_name, target, "--key", "*")
    assert counts(document) == {"missing": 1, "expired": 1}
    client = target.client()
    assert client.hgetall("hash") == {b"stays": b"2", b"later": b"3"}
    assert client.hpexpiretime("hash", "stays", "later") == [-1, LATER]
    document = rescued(tape.repository, server_name, target, "--key", "*")
    assert counts(document) == {"same": 1, "expired": 1}


def test_what_has_expired_since_can_come_with_what_it_had_left(
    server_name: str, start_server: StartServer, tmp_path: Path, temporary: Path
) -> None:
    hour = 3_600_000
    tape = tape_of(
        tmp_path / "repo",
        server_name,
        [("SET", "stream", 1, "PXAT", THEN + hour), ("SET", "stays", 1)],
        rdb((0, "snapshot", "10", THEN + hour)),
    )
    target = start_server(server_name)
    chosen = (tape.repository, server_name, target, "--key", "*")
    assert counts(rescued(*chosen)) == {"missing": 1, "expired": 2}
    shifted = rescued(*chosen, "--ttl", "shift")
    assert counts(shifted) == {"missing": 2, "same": 1}
    for name in ("stream", "snapshot"):
        assert hour - 60_000 < target.client().pttl(name) <= hour
    dropped = rescued(*chosen, "--ttl", "drop", "--replace")
    assert counts(dropped) == {"expiry": 2, "same": 1}
    assert target.client().pttl("snapshot") == -1


# Other releases.


def test_a_newer_server_loads_it_and_an_older_one_takes_what_it_can(
    start_server: StartServer, tmp_path: Path, temporary: Path
) -> None:
    repo = taped(tmp_path, "redis-7.0").repository
    target = start_server("redis-7.0")
    some = ("--key", "k:missing", "--key", "k:changed", "--key", "k:four")
    document = rescued(repo, "valkey-9.1", target, *some)
    assert document["written"] == 3
    assert target.client().lrange("k:changed", 0, -1) == [b"a", b"b"]
    outcome = rescue(repo, "valkey-9.1", target, "--key", "*")
    assert outcome.status == 8
    assert re.search(
        r"the target is Redis 7\.0\.\d+ and cannot take the set 'k:same' as Valkey "
        r"9\.1\.\d+ keeps it \(RDB version 11\): rescue into Redis 7\.2 or later, or "
        r"Valkey, or name an older server .*--scratch; nothing was written",
        outcome.err,
    )
    assert target.client().exists("other") == 0


def test_fields_with_ttls_are_refused_by_a_server_that_has_none(
    start_server: StartServer, tmp_path: Path, temporary: Path
) -> None:
    tape = tape_of(
        tmp_path / "repo",
        "valkey-9.1",
        [("HSET", "h", "f", 1), ("HPEXPIREAT", "h", LATER, "FIELDS", 1, "f")],
    )
    for name in ("redis-7.0", "valkey-8.1", "redis-8.0"):
        target = start_server(name)
        outcome = rescue(tape.repository, "valkey-9.1", target, "--key", "h")
        assert outcome.status == 8
        assert "cannot take the hash 'h'" in outcome.err
        assert "rescue into Valkey 9.0 or later" in outcome.err
        assert target.client().exists("h") == 0


@pytest.mark.parametrize(
    ("recorded_name", "scratch_name", "fits"),
    [
        ("valkey-9.1", "redis-8.0", "Valkey 9.0 or later"),
        ("redis-8.0", "valkey-9.1", "Redis 7.4 or later"),
        ("redis-7.0", "redis-6.2", "Redis 7.0 or later, or Valkey"),
    ],
)
def test_an_unfit_scratch_server_is_refused_with_what_would_fit(
    start_server: StartServer,
    tmp_path: Path,
    temporary: Path,
    recorded_name: str,
    scratch_name: str,
    fits: str,
) -> None:
    magic, version = {
        "valkey-9.1": (b"VALKEY", 80),
        "redis-8.0": (b"REDIS", 12),
        "redis-7.0": (b"REDIS", 10),
    }[recorded_name]
    content = rdb(magic=magic, version=version)
    tape = tape_of(tmp_path / "repo", recorded_name, content=content)
    target = start_server(recorded_name)
    outcome = rescue(tape.repository, scratch_name, target, "--key", "*")
    assert outcome.status == 8
    assert "cannot load RDB version" in outcome.err
    assert f"(--scratch PROGRAM) {fits}" in outcome.err
    assert target.client().dbsize() == 0


# Targets that are none.


def test_a_node_of_a_cluster_and_a_replica_are_refused(
    server_name: str, start_server: StartServer, tmp_path: Path, temporary: Path
) -> None:
    repo = taped(tmp_path, server_name).repository
    node = start_server(server_name, cluster_enabled="yes")
    outcome = rescue(repo, server_name, node, "--key", "*")
    assert outcome.status == 8
    assert "the target is a node of a cluster" in outcome.err
    primary, replica = start_server(server_name), start_server(server_name)
    attach(replica, primary)
    outcome = rescue(repo, server_name, replica, "--key", "*")
    assert outcome.status == 8
    assert f"no writes: give its primary, 127.0.0.1:{primary.port}" in outcome.err
    assert primary.client().dbsize() == 0


@pytest.mark.parametrize(
    ("arguments", "status", "why"),
    [
        (["--key", "k:[a"], 2, "no pattern of keys"),
        (["--key", "*", "--rename-prefix", "k:"], 2, "give OLD=NEW"),
        (["--key", "*", "--announce", "a:1"], 2, "--announce goes with --into without"),
        (["--replace"], 2, "go with --key"),
        (["--db", "1"], 2, "go with --key"),
        (["--key", "*", "--to-offset", "7"], 3, "the first that can be"),
        (["--key", "*", "--scratch", "no-such-program"], 8, "no program no-such-p"),
    ],
)
def test_what_is_asked_wrongly_is_told_in_a_sentence(
    start_server: StartServer,
    tmp_path: Path,
    temporary: Path,
    arguments: list[str],
    status: int,
    why: str,
) -> None:
    repo = taped(tmp_path, "redis-7.0").repository
    target = start_server("redis-7.0")
    into = f"redis://127.0.0.1:{target.port}"
    outcome = kvtape("restore", "--repo", repo, "--into", into, *arguments)
    assert outcome.status == status
    assert why in outcome.err
    assert outcome.err.count("\n") == 1
    assert target.client().dbsize() == 0


def test_a_rescue_needs_a_server_to_go_to(tmp_path: Path) -> None:
    repo = taped(tmp_path, "redis-7.0").repository
    for where in (["--data-dir", tmp_path / "new"], ["--serve", "0"], ["--dry-run"]):
        outcome = kvtape("restore", "--repo", repo, "--key", "*", *where)
        assert outcome.status == 2
        assert "--key goes with --into" in outcome.err


def test_a_target_that_is_not_there_is_told_before_the_long_work(
    tmp_path: Path, temporary: Path
) -> None:
    repo = taped(tmp_path, "redis-7.0").repository
    outcome = kvtape(
        *("restore", "--repo", repo, "--key", "*", "--into", "redis://127.0.0.1:1")
    )
    assert outcome.status == 8
    assert "cannot connect to 127.0.0.1:1" in outcome.err
    assert "loading" not in outcome.err


def test_a_value_that_is_too_large_for_one_word_is_refused_first(
    start_server: StartServer, tmp_path: Path, temporary: Path
) -> None:
    tape = tape_of(
        tmp_path / "repo",
        "redis-7.0",
        [("SET", "small", 1), ("SET", "large", bytes(1_100_000))],
    )
    target = start_server("redis-7.0", proto_max_bulk_len="1mb")
    outcome = rescue(tape.repository, "redis-7.0", target, "--key", "*")
    assert outcome.status == 8
    assert (
        "the string 'large' is of 1.0 MiB, and the target takes no more than 1.0"
        in (outcome.err)
    )
    assert target.client().dbsize() == 0


@pytest.mark.parametrize("kind", ["segment", "snapshot"])
def test_damage_is_named_and_nothing_is_written(
    start_server: StartServer, tmp_path: Path, temporary: Path, kind: str
) -> None:
    tape = tape_of(tmp_path / "repo", "redis-7.0")
    name = tape.commands(("SET", "b", "x" * 1000))
    [snapshot] = tape.folder.catalogue().snapshots
    path = name.path if kind == "segment" else snapshot.name.rdb
    damage(Path(tape.folder.url, path))
    target = start_server("redis-7.0")
    outcome = rescue(tape.repository, "redis-7.0", target, "--key", "*")
    assert outcome.status == 4
    assert f"{path} is damaged" in outcome.err
    assert target.client().dbsize() == 0


# What fails half-way.


class Rescuing(NoWatch):
    """Does something when the keys begin to be written."""

    def __init__(self, act: Callable[[], object]) -> None:
        self._act = act

    def stage(self, name: str, length: int) -> Advance:
        """Do it."""
        if name == "rescuing":
            self._act()
        return lambda _: None


def many(tmp_path: Path, count: int = 300) -> Tape:
    commands: Iterable[Sequence[str | bytes | int]] = (
        ("SET", f"key:{number:03}", bytes(1000)) for number in range(count)
    )
    return tape_of(tmp_path / "repo", "redis-7.0", commands)


def half_way(tape: Tape, target: Server, act: Callable[[], object]) -> Rescue:
    """Return a rescue that something happens to when it begins to write."""
    options = RescueOptions(
        ServerUrl("127.0.0.1", target.port),
        (parse_glob(b"*"),),
        scratch=str(program_of("redis-7.0")),
        replace=True,
    )
    return Rescue(replace(tape.job(), watch=Rescuing(act)), options)


def test_a_key_that_came_meanwhile_is_kept_and_the_others_are_told(
    start_server: StartServer, tmp_path: Path, temporary: Path
) -> None:
    target, tape = start_server("redis-7.0"), many(tmp_path)
    client = target.client()
    work = half_way(tape, target, lambda: client.set("key:007", "mine"))
    work.options = replace(work.options, replace=False)
    with pytest.raises(
        ServerError, match=r"BUSYKEY.*, for 'key:007'; .*of 300 keys were written: say"
    ):
        run(work.run)
    assert client.get("key:007") == b"mine"
    done = {name for _, name in work.done}
    assert done == set(client.keys("key:*")) - {b"key:007"}
    assert len(done) >= 1
    assert work.unanswered == []


@pytest.mark.parametrize(
    ("act", "why"),
    [
        (lambda client: client.config_set("maxmemory", 1), "OOM"),
        (lambda client: client.replicaof("127.0.0.1", 1), "READONLY"),
        (
            lambda client: client.acl_setuser("default", commands=["-restore"]),
            "NOPERM",
        ),
    ],
)
def test_what_the_target_refuses_half_way_is_told_and_can_be_said_again(
    start_server: StartServer,
    tmp_path: Path,
    temporary: Path,
    act: Callable[[Any], object],
    why: str,
) -> None:
    target, tape = start_server("redis-7.0"), many(tmp_path)
    client = target.client()
    work = half_way(tape, target, lambda: act(client))
    with pytest.raises(ServerError, match=rf"{why}.*0 of 300 keys were written: say"):
        run(work.run)
    client.config_set("maxmemory", 0)
    client.replicaof("NO", "ONE")
    client.acl_setuser("default", enabled=True, nopass=True, commands=["+@all"])
    document = rescued(tape.repository, "redis-7.0", target, "--key", "*")
    assert document["written"] == 300


def test_a_target_that_goes_away_half_way_leaves_it_known_what_is_done(
    start_server: StartServer, tmp_path: Path, temporary: Path
) -> None:
    target, tape = start_server("redis-7.0"), many(tmp_path)
    work = half_way(tape, target, target.kill)
    with pytest.raises(ServerError, match=r"(went away|closed).* keys were written"):
        run(work.run)
    assert work.done == []


def test_a_script_is_told_which_keys_were_written_before_it_failed(
    start_server: StartServer, tmp_path: Path, temporary: Path
) -> None:
    commands: list[Sequence[str | bytes | int]] = [
        ("SET", f"key:{number:03}", bytes(20_000)) for number in range(300)
    ]
    tape = tape_of(tmp_path / "repo", "redis-7.0", commands)
    target = start_server("redis-7.0")
    client = target.client()
    used = client.info("memory")["used_memory"]
    client.config_set("maxmemory", used + 3_000_000)
    outcome = rescue(tape.repository, "redis-7.0", target, "--key", "*", "--json")
    assert outcome.status == 8
    assert re.search(r"OOM .*; \d+ of 300 keys were written: say the same", outcome.err)
    document = json.loads(outcome.out)
    assert document["complete"] is False
    done = {entry["key"].encode() for entry in document["done"]}
    assert done == set(client.keys("*"))
    assert document["written"] == len(done) > 10
    outcome = rescue(tape.repository, "redis-7.0", target, "--key", "*")
    assert outcome.status == 8
    assert "as they were" in outcome.out or not outcome.out
    client.config_set("maxmemory", 0)
    outcome = rescue(tape.repository, "redis-7.0", target, "--key", "*")
    assert outcome.status == 0
    assert client.dbsize() == 300


# Nothing is left.


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("moment", ["restoring", "loading"])
def test_a_rescue_that_is_interrupted_leaves_nothing(
    start_server: StartServer,
    tmp_path: Path,
    temporary: Path,
    number: signal.Signals,
    moment: str,
) -> None:
    tape = tape_of(tmp_path / "repo", "redis-7.0")
    for _ in range(20):
        tape.commands(*(("SET", f"k:{n}", bytes(2000)) for n in range(3000)))
    target = start_server("redis-7.0")
    with program(
        *("restore", "--repo", tape.repository, "--key", "*"),
        *("--into", f"redis://127.0.0.1:{target.port}"),
        *("--scratch", program_of("redis-7.0")),
        env={"TMPDIR": str(temporary)},
    ) as process:
        wait_until(
            lambda: bool(
                is_loading(temporary)
                if moment == "loading"
                else list(temporary.glob(f"{FOLDER}*/moment.partial/*"))
            )
        )
        process.send_signal(number)
        outcome = ended(process)
    is_killed = number == signal.SIGKILL
    assert outcome.status == (-signal.SIGKILL if is_killed else 130), outcome.err
    if is_killed:  # then others have to see to it
        wait_until(lambda: left_in(temporary) == [])
    assert target.client().dbsize() == 0


def test_a_point_before_the_end_is_what_comes(
    start_server: StartServer, tmp_path: Path, temporary: Path
) -> None:
    tape = tape_of(tmp_path / "repo", "redis-7.0", [("SET", "key", "before")])
    end = tape.end
    tape.commands(("SET", "key", "after"))
    target = start_server("redis-7.0")
    work = Rescue(
        tape.job(ToOffset(end)),
        RescueOptions(
            ServerUrl("127.0.0.1", target.port),
            (parse_glob(b"key"),),
            scratch=str(program_of("redis-7.0")),
        ),
    )
    run(work.run)
    assert target.client().get("key") == b"before"
    assert work.done == [(0, b"key")]
