"""What differs between two moments is what two servers restored to them differ in."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fingerprints import Fingerprint
from kvtape.cli.runner import run
from kvtape.restore.into import IntoOptions, restore_into
from kvtape.restore.job import open_job
from kvtape.server.url import ServerUrl
from kvtape.tape.point import ToOffset
from leavings import damage, is_loading, left_in
from oracle import fingerprint
from recording import IDENTITIES, THEN, Recorded, Tape, rdb, recorded, tape_of, taping
from replicas import wait_until
from servers import Server, StartServer, binary
from verbs import Outcome, ended, kvtape, program
from workload import Workload

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("temporary")]

LATER = 4_102_444_800_000


def diff(repository: Path, name: str, *arguments: object) -> Outcome:
    program = binary(name)
    assert program is not None
    return kvtape("diff", "--repo", repository, "--scratch", program, *arguments)


def documents(*arguments: Any) -> list[dict[str, Any]]:  # noqa: ANN401
    outcome = diff(*arguments, "--json")
    assert outcome.status == 0, outcome.err
    return [json.loads(line) for line in outcome.out.splitlines()]


# A workload.


def restored(repository: Path, offset: int, target: Server) -> Fingerprint:
    """Restore a moment into a server, and read it."""
    target.client().flushall()
    job = open_job(str(repository), None, ToOffset(offset))
    run(lambda: restore_into(job, IntoOptions(ServerUrl("127.0.0.1", target.port))))
    return fingerprint(target.client())


def brute_force(was: Fingerprint, now: Fingerprint) -> Iterator[tuple[object, ...]]:
    """Yield what differs between what two servers hold."""
    for place in was.keys.keys() | now.keys.keys():
        before, after = was.keys.get(place), now.keys.get(place)
        if before == after:
            continue
        if before is None or after is None:
            yield (*place, "removed" if after is None else "added", None, None)
        else:
            kind = (before.kind, before.value) != (after.kind, after.value)
            # Of 6.2 an expiry is read to 1 ms, and known to 50 (docs/correctness.md).
            leeway = 50 if was.release.before_7 else 0
            expiry = not expire_together(before.expiry, after.expiry, leeway)
            if kind or expiry:
                yield (*place, "changed", kind, expiry)


def expire_together(one: int | None, other: int | None, leeway: int) -> bool:
    if one is None or other is None:
        return one is other
    return abs(one - other) <= leeway


def found(document: dict[str, Any]) -> tuple[object, ...]:
    key = document["key"]
    name = key.encode() if isinstance(key, str) else None
    change = (document.get("value"), document.get("expiry"))
    return (document["db"], name, document["change"], *change)


@pytest.mark.parametrize("seed", [1, 2])
def test_it_is_what_two_restored_servers_differ_in(
    server_name: str, seed: int, start_server: StartServer, tmp_path: Path
) -> None:
    source, target = start_server(server_name), start_server(server_name)
    offsets = []
    with (
        taping(source, tmp_path / "repo") as tape,
        Workload("127.0.0.1", source.port, seed, server_name) as work,
    ):
        for _ in range(3):
            work.step(250)
            for db in (0, 1, 3, 9, 15):
                settle(source, db)
            offsets.append(tape.catch_up())
    states = [restored(tmp_path / "repo", offset, target) for offset in offsets]
    for first, last in ((0, 1), (1, 2), (0, 2), (2, 0)):
        told = documents(
            *(tmp_path / "repo", server_name, "--keys"),
            *("--from-offset", offsets[first], "--to-offset", offsets[last]),
        )
        expected = set(brute_force(states[first], states[last]))
        assert {found(each) for each in told if isinstance(each["key"], str)} == {
            each for each in expected if is_text(each[1])
        }
        assert len(told) == len(expected) > 20


def is_text(name: object) -> bool:
    assert isinstance(name, bytes)
    try:
        name.decode()
    except UnicodeDecodeError:
        return False
    return True


def settle(server: Server, db: int) -> None:
    """Have nothing expire before it is compared: persist it, or make it much later."""
    client = server.client(db=db)
    for number, name in enumerate(client.scan_iter(count=1000)):
        if client.pttl(name) >= 0:
            if number % 2:
                client.persist(name)
            else:
                client.pexpireat(name, LATER + 1000 * number)
        if client.type(name) == b"hash" and server.name in ("redis-8.0", "valkey-9.1"):
            client.hpersist(name, *client.hkeys(name))


# By hand.


@pytest.fixture
def shop(tmp_path: Path) -> tuple[Path, int, int]:
    """Return a repository, and two offsets in it."""
    tape = tape_of(
        tmp_path / "repo",
        "redis-7.0",
        [
            ("MSET", "user:1:a", 1, "user:1:b", 1, "user:2:a", 1, "cart:1", 1, "x", 1),
            ("RPUSH", "list", "a", "b"),
            ("SADD", "set", "a", "b"),
            ("SET", "due", 1, "PXAT", THEN + 30_000),
        ],
    )
    first = tape.end
    tape.commands(
        ("SET", "user:1:a", 2),
        ("DEL", "user:1:b", "cart:1"),
        ("MSET", "user:3:a", 1, "cart:2", 1),
        ("PEXPIREAT", "x", LATER),
        ("DEL", "list", "set"),
        ("RPUSH", "list", "a", "b"),
        ("SADD", "set", "b", "a"),
        ("SELECT", 3),
        ("SET", "user:1:a", 1, "PXAT", LATER),
    )
    return tape.repository, first, tape.end


def test_each_key_is_told_with_what_became_of_it(shop: tuple[Path, int, int]) -> None:
    repository, first, last = shop
    arguments = (repository, "redis-7.0", "--from-offset", first, "--keys")
    outcome = diff(*arguments)
    assert outcome.status == 0
    assert outcome.out.splitlines() == [
        "- db0 cart:1",
        "+ db0 cart:2",
        "~ db0 user:1:a  (value)",
        "- db0 user:1:b",
        "+ db0 user:3:a",
        "~ db0 x  (expiry)",
        "+ db3 user:1:a",
    ]
    assert f"note: from offset {first} of 0123" in outcome.err
    assert f"note: to offset {last} of 0123" in outcome.err
    assert "8 keys" in outcome.err
    assert documents(*arguments, "--key", "[xl]*", "--key", "cart:1") == [
        {"db": 0, "key": "cart:1", "change": "removed"},
        {"db": 0, "key": "x", "change": "changed", "value": False, "expiry": True},
    ]
    assert documents(*arguments, "--db", "3", "--limit", "1") == [
        {"db": 3, "key": "user:1:a", "change": "added"}
    ]


def test_they_are_counted_by_prefix(shop: tuple[Path, int, int]) -> None:
    repository, first, last = shop
    range_ = ("--from-offset", first, "--to-offset", last)
    outcome = diff(repository, "redis-7.0", *range_)
    assert outcome.out.splitlines() == [
        "     added    removed    changed  prefix",
        "         2          1          1  user",
        "         1          1          0  cart",
        "         0          0          1  x",
    ]
    told = documents(repository, "redis-7.0", *range_, "--depth", "2", "--limit", "1")
    assert told == [{"prefix": "user:1", "added": 1, "removed": 1, "changed": 1}]


def test_from_a_moment_to_itself_nothing_differs(shop: tuple[Path, int, int]) -> None:
    repository, first, _ = shop
    same = ("--from-offset", first, "--to-offset", first, "--keys")
    assert diff(repository, "redis-7.0", *same).out == ""


def test_the_other_way_round_it_is_the_opposite(shop: tuple[Path, int, int]) -> None:
    repository, first, last = shop
    range_ = ("--from-offset", last, "--to-offset", first)
    [user, *_] = documents(repository, "redis-7.0", *range_)
    assert user == {"prefix": "user", "added": 1, "removed": 2, "changed": 1}


def test_what_had_expired_by_a_moment_was_not_there(
    server_name: str, tmp_path: Path
) -> None:
    tape = Tape(tmp_path / "repo", server=IDENTITIES[server_name])
    tape.snapshot(rdb((0, "due", "1", THEN + 30_000), (0, "later", "1", THEN + 90_000)))
    tape.commands(("SELECT", 0), ("SET", "key", 1))
    first = tape.end
    tape.time = THEN + 60_000
    tape.commands(("SET", "key", 2))
    told = documents(tape.repository, server_name, "--from-offset", first, "--keys")
    assert told == [
        {"db": 0, "key": "due", "change": "removed"},
        {"db": 0, "key": "key", "change": "changed", "value": True, "expiry": False},
    ]


@pytest.mark.parametrize("server_name", ["redis-8.0", "valkey-9.1"], indirect=True)
def test_so_it_is_with_the_fields_of_a_hash(server_name: str, tmp_path: Path) -> None:
    tape = tape_of(
        tmp_path / "repo",
        server_name,
        [
            ("HSET", "hash", "due", 1, "stays", 1),
            ("HPEXPIREAT", "hash", THEN + 30_000, "FIELDS", 1, "due"),
            ("HSET", "other", "due", 1, "stays", 1),
            ("HPEXPIREAT", "other", THEN + 90_000, "FIELDS", 1, "due"),
        ],
    )
    first = tape.end
    tape.time = THEN + 60_000
    tape.commands(("SET", "key", 2))
    told = documents(tape.repository, server_name, "--from-offset", first, "--keys")
    assert told == [
        {"db": 0, "key": "hash", "change": "changed", "value": True, "expiry": False},
        {"db": 0, "key": "key", "change": "added"},
    ]


@pytest.fixture
def recording(server_name: str, tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    """Return the recording of each of the six servers."""
    folder = tmp_path_factory.getbasetemp() / f"recorded-{server_name}"
    return recorded(server_name, folder)


def test_the_best_server_at_hand_is_taken(
    recording: Recorded, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = binary(recording.name)
    assert program is not None
    points = ("--from-offset", recording.middle.offset, "--key", "large:*")
    path = {"PATH": f"{program.parent}:/usr/bin:/bin"}
    outcome = kvtape("diff", "--repo", recording.repository, *points, env=path)
    assert outcome.status == 0, outcome.err
    assert outcome.out.splitlines()[1:] == ["         1          0          0  large"]
    assert "it is the release that was recorded" in outcome.err


def test_moments_of_different_snapshots_are_told(
    server_name: str, tmp_path: Path
) -> None:
    tape = Tape(tmp_path / "repo", server=IDENTITIES[server_name])
    tape.snapshot(rdb((0, "a", "1", LATER), (0, "b", "1", LATER)))
    tape.commands(("SELECT", 0), ("SET", "key", 1))
    first = tape.end
    # As a resync finds them: of 6.2, expiries are some ms off.
    tape.snapshot(rdb((0, "a", "1", LATER + 50), (0, "b", "1", LATER + 51)))
    outcome = diff(tape.repository, server_name, "--from-offset", first - 1, "--keys")
    assert "the two moments begin with different snapshots" in outcome.err
    shown = outcome.out.splitlines()
    assert "~ db0 b  (expiry)" in shown
    assert ("~ db0 a  (expiry)" in shown) == (server_name != "redis-6.2")


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGTERM, 130), (signal.SIGKILL, -signal.SIGKILL)]
)
def test_one_that_is_interrupted_leaves_nothing(
    tmp_path: Path, temporary: Path, number: signal.Signals, status: int
) -> None:
    tape = tape_of(tmp_path / "repo", "redis-7.0")
    for _ in range(20):
        tape.commands(*(("SET", f"k:{n}", bytes(2000)) for n in range(3000)))
    with program(
        *("diff", "--repo", tape.repository, "--from-offset", 1000),
        *("--scratch", binary("redis-7.0")),
        env={"TMPDIR": str(temporary)},
    ) as process:
        wait_until(lambda: is_loading(temporary))
        process.send_signal(number)
        outcome = ended(process)
    assert (outcome.status, outcome.out) == (status, "")
    wait_until(lambda: left_in(temporary) == [])


def test_what_is_damaged_is_named(tmp_path: Path) -> None:
    tape = tape_of(tmp_path / "repo", "redis-7.0")
    name = tape.commands(("SET", "b", "x" * 1000))
    damage(Path(tape.folder.url, name.path))
    outcome = diff(tape.repository, "redis-7.0", "--from-offset", 1000)
    assert outcome.status == 4
    assert f"{name.path} is damaged" in outcome.err


@pytest.mark.parametrize(
    ("arguments", "status", "why"),
    [
        ([], 2, "say from which moment: --from-offset N or --from-time TIME"),
        (["--from-offset", "1", "--from-time", "now-1m"], 2, "give only one of --from"),
        (["--from-offset", "1"], 3, "before the first snapshot"),
        (["--from-offset", "1000", "--key", "["], 2, "no pattern of keys"),
        (
            ["--from-offset", "1000", "--scratch", "none-such"],
            8,
            "no program none-such",
        ),
    ],
)
def test_what_is_asked_wrongly_is_told_in_a_sentence(
    shop: tuple[Path, int, int], arguments: list[str], status: int, why: str
) -> None:
    outcome = kvtape("diff", "--repo", shop[0], *arguments)
    assert outcome.status == status
    assert why in outcome.err
    assert outcome.err.count("\n") == 1
