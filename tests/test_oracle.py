"""The oracle sees no difference between a server and its copy, and every real one.

The truth about what may differ comes from real replicas of the same release, and from
the files those leave behind; that nothing else is excused is shown by changing one
thing at a time.
"""

from __future__ import annotations

import itertools
import shlex
from dataclasses import replace
from typing import Final

import pytest
import redis

from fingerprints import (
    Group,
    Hash,
    Key,
    Pending,
    Release,
    Stream,
)
from operations import FieldTtls
from oracle import (
    EXPIRED,
    Difference,
    Fingerprint,
    Verdict,
    compare,
    fingerprint,
    judge,
    stable_fingerprint,
    wait_for_offset,
)
from plain_client import PlainClient
from replicas import attach, wait_until
from servers import Server, StartServer
from workload import Workload

# Redis loses what is done to a field after its expiry, and a replica's clock decides
# that anew: a race that a replica may lose by a millisecond.
FIELD_TTLS: Final[dict[str, FieldTtls]] = {"redis-8.0": "long"}


def info(client: redis.Redis, section: str, name: str) -> str:
    with PlainClient(client) as plain:
        return plain.info(section)[name]


def work_on(server: Server, seed: int) -> Workload:
    field_ttls = FIELD_TTLS.get(server.name, "short")
    return Workload("127.0.0.1", server.port, seed, server.name, field_ttls=field_ttls)


def step_until_keys_expire(work: Workload, client: redis.Redis) -> None:
    """Write while expiries pass, since each changes what the next write meets."""
    goal = int(info(client, "stats", "expired_keys")) + 20

    def have_expired() -> bool:
        work.step(60)
        return int(info(client, "stats", "expired_keys")) >= goal

    wait_until(have_expired)


def judge_copy(primary: Server, replica: Server) -> Verdict:
    offset, expected = stable_fingerprint(primary.client())
    wait_for_offset(replica.client(), offset)
    return judge(expected, fingerprint(replica.client()))


def assert_same(verdict: Verdict, expected_keys: int) -> None:
    assert not verdict.differences, "\n".join(map(str, verdict.differences))
    expired = [found for found in verdict.explained if found.reason == EXPIRED]
    assert len(expired) <= expected_keys / 5


@pytest.mark.slow
def test_a_replica_equals_its_primary_at_every_pause(
    server_name: str, start_server: StartServer
) -> None:
    primary, replica = start_server(server_name), start_server(server_name)
    client = primary.client()
    with work_on(primary, 1) as early:
        early.step(600)
    attach(replica, primary)
    for seed in (2, 3):
        with work_on(primary, seed) as work:
            for _ in range(2):
                step_until_keys_expire(work, client)
                assert_same(judge_copy(primary, replica), client.dbsize() + 500)
            work.evictions()
            work.large_value(1_000_000 * seed)
            assert_same(judge_copy(primary, replica), 500)
    assert int(info(client, "stats", "evicted_keys")) >= 40
    assert info(client, "stats", "sync_full") == "1"


@pytest.mark.slow
def test_a_copy_loaded_from_its_own_files_equals_the_primary(
    server_name: str, start_server: StartServer
) -> None:
    primary = start_server(server_name)
    replica = start_server(server_name, appendonly="yes")
    with work_on(primary, 7) as work:
        work.step(600)
        attach(replica, primary)
        # What is written from here on goes to the file after its base.
        wait_until(lambda: has_begun_its_file(replica.client()))
        step_until_keys_expire(work, primary.client())
    offset, expected = stable_fingerprint(primary.client())
    wait_for_offset(replica.client(), offset)
    replica.restart()
    # Redis 6.2 writes RESTORE to its file with the relative expiry that it was given.
    tolerance = 20_000 if server_name == "redis-6.2" else None
    verdict = judge(expected, fingerprint(replica.client()), tolerance_ms=tolerance)
    assert_same(verdict, len(expected.keys))


def has_begun_its_file(client: redis.Redis) -> bool:
    with PlainClient(client) as plain:
        state = plain.info("persistence")
    names = ("aof_rewrite_in_progress", "aof_rewrite_scheduled")
    return all(state[name] == "0" for name in names)


# What is there, what changes, and what the oracle has to say about it.
CHANGES: Final = (
    ("SET k abc", "SET k abd", "is b'abd' instead of b'abc'"),
    ("SET k abc", "APPEND k '\0'", "is b'abc\\x00' instead of b'abc'"),
    ("SET k abc", "SETRANGE k 100 x", "different from byte 3 on"),
    ("SET k abc", "DEL k", "a string that is missing"),
    ("SET other abc", "SET k abc", "a string that should not exist"),
    ("SET k abc", "DEL k ; RPUSH k abc", "a list instead of a string"),
    ("SET k a", "EXPIRE k 100", "instead of None ms"),
    ("SET k a EX 100", "PERSIST k", "expires at None instead of"),
    ("SET k a PXAT 5000000000000", "PEXPIREAT k 5000000000100", "00100 instead of"),
    ("RPUSH k a b c d", "LSET k 1 c ; LSET k 2 b", "element 1 is b'c' instead of b'b'"),
    ("RPUSH k a a", "LPOP k", "has 1 elements instead of 2"),
    ("SADD k a b", "SREM k a", "member b'a' is missing"),
    ("SADD k a b", "SADD k ''", "member b'' should not exist"),
    ("ZADD k 0.1 a 1 b", "ZADD k 0.10000000000000002 a", "score of b'a' is"),
    ("ZADD k 1 a inf b", "ZREM k b", "score of b'b' is missing"),
    ("HSET k f v g v", "HDEL k f", "field b'f' is missing"),
    ("HSET k f v", "HSET k f w", "field b'f' is b'w' instead of b'v'"),
    ("HSET k f v", "HSET k g v", "field b'g' should not exist"),
    ("XADD k 1-1 f v", "XADD k 1-2 f v ; XDEL k 1-2", "last_id is b'1-2'"),
    ("XADD k 1-1 f v", "DEL k ; XADD k 1-1 f w", "entry b'1-1' is (b'f', b'w')"),
    ("XADD k 1-1 f v", "XADD k 1-2 f v", "entry b'1-2' should not exist"),
    ("XADD k 1-1 f v ; XADD k 1-2 f v", "XDEL k 1-1", "entry b'1-1' is missing"),
    ("XADD k 1-1 f v", "XSETID k 1-5", "last_id is b'1-5' instead of b'1-1'"),
    ("XGROUP CREATE k g 0 MKSTREAM", "XGROUP DESTROY k g", "group b'g' is missing"),
    ("XGROUP CREATE k g 0 MKSTREAM", "XGROUP SETID k g 7", "last_delivered is b'7-0'"),
    (
        "XGROUP CREATE k g 0 MKSTREAM",
        "XGROUP CREATECONSUMER k g c",
        "consumer b'c' should not exist",
    ),
)
GROUP: Final = "XADD k 1-1 f v ; XGROUP CREATE k g 0 ; XREADGROUP GROUP g c STREAMS k >"
GROUP_CHANGES: Final = (
    (GROUP, "XACK k g 1-1", "pending entry b'1-1' is missing"),
    (GROUP, "XCLAIM k g d 0 1-1", "Pending(consumer=b'd'"),
    (GROUP, "XCLAIM k g c 0 1-1 RETRYCOUNT 9 JUSTID", "deliveries=9"),
    (GROUP, "XCLAIM k g c 0 1-1 TIME 1000 JUSTID", "delivered=1000"),
    (GROUP, "XGROUP DELCONSUMER k g c", "consumer b'c' is missing"),
    (
        f"{GROUP} ; XADD k 1-2 f v",
        "XREADGROUP GROUP g c STREAMS k >",
        "pending entry b'1-2' should not exist",
    ),
)
LIBRARY: Final = "FUNCTION LOAD REPLACE '#!lua name={}\n{}'"
CODE: Final = 'redis.register_function("f", function() return {} end)'
# Each on the servers that have the command.
OPTIONAL_CHANGES: Final = {
    "FCALL": (
        (
            "XADD k 5 f v",
            "XSETID k 5 ENTRIESADDED 9 MAXDELETEDID 0",
            "entries_added is 9",
        ),
        (
            "XADD k 5 f v",
            "XSETID k 5 ENTRIESADDED 1 MAXDELETEDID 4",
            "max_deleted_id is",
        ),
        (
            LIBRARY.format("a", CODE.format(1)),
            LIBRARY.format("a", CODE.format(2)),
            "function library b'a' is",
        ),
        (
            LIBRARY.format("a", CODE.format(1)),
            "FUNCTION DELETE a",
            "function library b'a' is missing",
        ),
        ("SET k a PXAT 5000000000000", "PEXPIREAT k 5000000000001", "00001 instead of"),
    ),
    "HEXPIRE": (
        ("HSET k f v g v", "HEXPIRE k 100 FIELDS 1 f", "field b'f' expires at"),
        (
            "HSET k f v ; HPEXPIREAT k 5000000000000 FIELDS 1 f",
            "HPEXPIREAT k 5000000000001 FIELDS 1 f",
            "field b'f' expires at 5000000000001 instead of",
        ),
        (
            "HSET k f v ; HEXPIRE k 100 FIELDS 1 f",
            "HPERSIST k FIELDS 1 f",
            "field b'f' expires at None instead of",
        ),
    ),
}


def do(plain: PlainClient, line: str) -> None:
    for words in itertools.groupby(shlex.split(line), lambda word: word == ";"):
        if not words[0]:
            plain.ask(*words[1])


def test_every_single_change_is_found(
    server_name: str, start_server: StartServer
) -> None:
    client = start_server(server_name).client()
    with PlainClient(client) as plain:
        changes = [*CHANGES, *GROUP_CHANGES]
        for command in plain.knows(*OPTIONAL_CHANGES):
            changes += OPTIONAL_CHANGES[command]
        for before, change, message in changes:
            plain.ask("FLUSHALL")
            plain.ask("SELECT", 9)
            do(plain, before)
            expected = fingerprint(client)
            assert compare(expected, fingerprint(client)) == []
            do(plain, change)
            found = [
                str(difference) for difference in compare(expected, fingerprint(client))
            ]
            assert any(message in line for line in found), (before, change, found)


def test_a_key_in_another_database_is_missing_in_its_own(
    server_name: str, start_server: StartServer
) -> None:
    client = start_server(server_name).client()
    client.set(b"k\0\r\n", b"v")
    expected = fingerprint(client)
    client.move(b"k\0\r\n", 7)
    assert compare(expected, fingerprint(client)) == [
        Difference(0, b"k\0\r\n", "a string that is missing"),
        Difference(7, b"k\0\r\n", "a string that should not exist"),
    ]


REDIS_7: Final = Release("redis", (7, 0, 15))
REDIS_8: Final = Release("redis", (8, 0, 2))
KEY: Final = (0, b"k")


def reading(
    key: Key | None, *, start: int = 1000, end: int = 1010, release: Release = REDIS_8
) -> Fingerprint:
    keys = {} if key is None else {KEY: key}
    return Fingerprint(release, True, start, end, keys, {})


def string(expiry: int | None, value: bytes = b"v") -> Key:
    return Key("string", value, expiry)


def hash_of(**expiries: int | None) -> Key:
    values = {name.encode(): b"v" for name in expiries}
    moments = {name.encode(): at for name, at in expiries.items() if at is not None}
    return Key("hash", Hash(values, moments), None)


def outcome(
    expected: Key | None,
    actual: Key | None,
    *,
    release: Release = REDIS_8,
    later: int = 1000,
) -> str:
    """Return "same", "explained" or "different" for a copy read `later` ms later."""
    copy = reading(actual, start=1000 + later, end=1010 + later, release=release)
    verdict = judge(reading(expected, release=release), copy)
    if verdict.differences:
        return "different"
    return "explained" if verdict.explained else "same"


def test_a_missing_key_is_explained_only_if_it_had_expired_when_the_copy_was_read() -> (
    None
):
    assert outcome(string(2010), None) == "explained"
    assert outcome(string(1005), None) == "explained"
    assert outcome(string(2011), None) == "different"
    assert outcome(string(None), None) == "different"


def test_an_expired_key_that_the_copy_still_shows_is_compared_as_any_other() -> None:
    assert outcome(string(1500), string(1500)) == "same"
    assert outcome(string(1500), string(1500, b"w")) == "different"
    assert outcome(string(1500), string(None)) == "different"


def test_a_surplus_key_is_explained_only_if_it_expired_while_the_primary_was_read() -> (
    None
):
    assert outcome(None, string(1005), later=-500) == "explained"
    assert outcome(None, string(999), later=-500) == "different"
    assert outcome(None, string(1011), later=-500) == "different"
    assert outcome(None, string(None)) == "different"


def test_a_field_is_explained_by_its_own_expiry_and_a_hash_by_its_last_field() -> None:
    assert outcome(hash_of(f=1500, g=None), hash_of(g=None)) == "explained"
    assert outcome(hash_of(f=2500, g=None), hash_of(g=None)) == "different"
    assert outcome(hash_of(f=1500, g=1600), None) == "explained"
    assert outcome(hash_of(f=1500, g=2600), None) == "different"
    assert outcome(hash_of(f=1500, g=None), None) == "different"
    assert outcome(hash_of(g=None), hash_of(f=900, g=None), later=-500) == "explained"
    assert outcome(hash_of(g=None), hash_of(f=None, g=None)) == "different"


def test_expiries_are_exact_but_on_the_release_that_streams_them_relative() -> None:
    redis_6 = Release("redis", (6, 2, 14))
    assert outcome(string(9000), string(9001)) == "different"
    assert outcome(string(9000), string(9050), release=redis_6) == "same"
    assert outcome(string(9000), string(9051), release=redis_6) == "different"


def stream_of(
    consumers: set[bytes], busy: set[bytes], entries_read: int | None = 1
) -> Key:
    pending = {
        b"1-%d" % at: Pending(name, 1, 5) for at, name in enumerate(sorted(busy))
    }
    group = Group(b"1-1", entries_read, pending, frozenset(consumers))
    return Key("stream", Stream((), b"1-1", b"0-0", 1, {b"g": group}), None)


def test_only_a_consumer_without_entries_may_be_missing_and_only_on_some_releases() -> (
    None
):
    both, one = stream_of({b"a", b"b"}, {b"a"}), stream_of({b"a"}, {b"a"})
    assert outcome(both, one, release=REDIS_8) == "explained"
    assert outcome(both, one, release=Release("valkey", (8, 1, 1))) == "explained"
    assert outcome(both, one, release=REDIS_7) == "different"
    assert outcome(one, both, release=REDIS_8) == "different"
    assert outcome(one, stream_of(set(), {b"a"}), release=REDIS_8) == "different"


def test_the_count_of_entries_read_is_excused_on_redis_7_0_alone() -> None:
    counted, uncounted = stream_of(set(), set(), 3), stream_of(set(), set(), None)
    assert outcome(counted, uncounted, release=REDIS_7) == "explained"
    assert outcome(counted, uncounted, release=REDIS_8) == "different"
    assert (
        outcome(counted, uncounted, release=Release("valkey", (8, 0, 1))) == "different"
    )


def test_what_old_releases_do_not_tell_is_not_compared_with_them() -> None:
    expected = reading(stream_of(set(), set()), release=Release("redis", (6, 2, 14)))
    told = reading(stream_of(set(), set(), 9))
    assert compare(expected, told) == []
    assert compare(replace(expected, release=REDIS_8), told) != []
