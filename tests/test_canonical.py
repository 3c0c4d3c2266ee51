"""Equal values have one form, whatever encoding a server keeps them in."""

from __future__ import annotations

import struct
import time
from collections.abc import Iterator, Sequence

import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st

from kvtape.restore.fit import loads
from kvtape.tape.documents import Server as Identity
from kvtape.tape.rdb import Key, RdbError
from kvtape.tape.rdb.canonical import Canonical, canonical
from kvtape.tape.rdb.packs import intset, listpack, ziplist
from kvtape.tape.rdb.payload import (
    Payload,
    make_payload,
    needed_version,
    read_payload,
)
from plain_client import Argument, PlainClient, as_bytes, as_list, as_pairs
from servers import SERVERS, Server, StartServer
from workload import Workload

WRONG = "listpack|ziplist|intset"

NOW = 1_800_000_000_000

DATABASES = (0, 1, 3, 9, 15)

# So that what is small is not packed, or packed in other pieces.
LOOSE = {
    "list-max-ziplist-size": "2",
    "hash-max-ziplist-entries": "1",
    "zset-max-ziplist-entries": "1",
    "set-max-intset-entries": "1",
    "stream-node-max-entries": "2",
}


def form(payload: Payload, *, is_lean: bool = False) -> Canonical | None:
    now = int(time.time() * 1000)
    return canonical(payload.type, payload.value, at=now, is_lean=is_lean)


def dumps(server: Server, db: int) -> Iterator[tuple[bytes, Payload]]:
    client = server.client(db=db)
    for name in client.scan_iter(count=1000):
        dumped = client.dump(name)
        if dumped is not None:
            yield name, read_payload(dumped)


def dump_of(client: redis.Redis, name: str | bytes) -> Payload:
    dumped = client.dump(name)
    assert isinstance(dumped, bytes)
    return read_payload(dumped)


def key_of(payload: Payload) -> Key:
    return Key(0, b"", payload.type, payload.value, len(payload.value))


def test_every_value_is_known_and_the_same_in_another_encoding(
    server_name: str, start_server: StartServer
) -> None:
    source, loose = start_server(server_name), start_server(server_name)
    for option, value in LOOSE.items():
        loose.client().config_set(option, value)
    with Workload("127.0.0.1", source.port, 7, server_name, field_ttls="long") as work:
        work.step(1500)
    persist(source)
    changed, kinds = 0, set()
    for db in DATABASES:
        client = loose.client(db=db)
        for name, payload in dumps(source, db):
            found = form(payload)
            assert found is not None
            assert found.is_known
            rewrite(source, loose, db, name)
            again = dump_of(client, name)
            assert form(again) == found, (name, payload.type, again.type)
            changed += again.type != payload.type
            kinds.add(client.type(name))
    assert kinds == {b"string", b"list", b"set", b"zset", b"hash", b"stream"}
    assert changed > 20


def persist(server: Server) -> None:
    """Have no key expire meanwhile."""
    for db in DATABASES:
        client = server.client(db=db)
        for name in client.scan_iter(count=1000):
            client.persist(name)


def rewrite(source: Server, target: Server, db: int, name: bytes) -> None:
    """Copy a key by ordinary commands where that gives another encoding."""
    with (
        PlainClient(source.client()) as reader,
        PlainClient(target.client()) as writer,
    ):
        for client in (reader, writer):
            client.ask("SELECT", db)
        match reader.ask("TYPE", name):
            case b"list":
                found = as_list(reader.ask("LRANGE", name, 0, -1))
                writer.ask("RPUSH", name, *map(as_bytes, found))
            case b"set":
                found = as_list(reader.ask("SMEMBERS", name))
                writer.ask("SADD", name, *sorted(map(as_bytes, found)))
            case b"zset":
                pairs = as_pairs(reader.ask("ZRANGE", name, 0, -1, "WITHSCORES"))
                scored = [as_bytes(word) for pair in pairs for word in reversed(pair)]
                writer.ask("ZADD", name, *scored)
            case _:
                writer.ask("RESTORE", name, 0, as_bytes(reader.ask("DUMP", name)))


@pytest.fixture(scope="module")
def six() -> Iterator[dict[str, Server]]:
    """Return all servers, each with a few hundred keys."""
    servers = {name: Server(name) for name in SERVERS}
    for name, server in servers.items():
        with Workload("127.0.0.1", server.port, 5, name, field_ttls="long") as work:
            work.step(600)
    yield servers
    for server in servers.values():
        server.close()


@pytest.mark.slow
def test_a_server_takes_the_payloads_that_the_table_says_from_every_other(
    six: dict[str, Server], start_server: StartServer
) -> None:
    answers: list[bool] = []
    for target_name in SERVERS:
        target = start_server(target_name)
        with PlainClient(target.client()) as plain_client:
            info = plain_client.info("server")
            identity = Identity("redis", info["redis_version"])
            if "valkey_version" in info:
                identity = Identity("valkey", info["valkey_version"])
            for source_name, source in six.items():
                is_lean = "redis-6.2" in (source_name, target_name)
                for name, payload in dumps(source, 0):
                    made = make_payload(key_of(payload), payload.version)
                    [reply] = plain_client.exchange(
                        [("RESTORE", name, 0, made, "REPLACE")]
                    )
                    needed = needed_version(payload.type, payload.version)
                    pair = (source_name, target_name, payload.type, reply)
                    magic = "VALKEY" if payload.version >= 80 else "REDIS"
                    assert (reply == b"OK") == loads(identity, needed, magic), pair
                    answers.append(reply == b"OK")
                    if reply == b"OK":
                        there = plain_client.ask("DUMP", name)
                        assert isinstance(there, bytes)
                        copy = form(read_payload(there), is_lean=is_lean)
                        assert copy == form(payload, is_lean=is_lean), pair
    assert min(answers.count(True), answers.count(False)) > 100


CHANGES: list[tuple[Sequence[Argument], Sequence[Argument]]] = [
    (("SET", "k", "a"), ("SET", "k", "b")),
    (("SET", "k", "1"), ("SET", "k", "01")),
    (("RPUSH", "k", "a", "b"), ("LMOVE", "k", "k", "LEFT", "RIGHT")),
    (("SADD", "k", 1, 2), ("SADD", "k", 3)),
    (("HSET", "k", "f", "v"), ("HSET", "k", "f", "w")),
    (("ZADD", "k", 1, "m"), ("ZADD", "k", 1.5, "m")),
    (("XADD", "k", "1-1", "f", "v"), ("XADD", "k", "1-2", "f", "v")),
    (("XADD", "k", "1-1", "f", "v"), ("XGROUP", "CREATE", "k", "g", "0")),
    (("XADD", "k", "1-1", "f", "v"), ("XDEL", "k", "1-1")),
]


def test_a_value_that_is_another_has_another_form(
    server_name: str, start_server: StartServer
) -> None:
    server = start_server(server_name)
    with PlainClient(server.client()) as plain:
        for first, second in CHANGES:
            plain.exchange([("FLUSHALL",), first])
            before = form(dump_of(server.client(), "k"))
            plain.ask(*second)
            assert form(dump_of(server.client(), "k")) != before, second


def test_long_words_are_the_same_packed_and_not(
    server_name: str, start_server: StartServer
) -> None:
    client = start_server(server_name).client()
    # About where the length behind an entry takes a byte more.
    ranges = ((60, 66), (120, 130), (4090, 4100), (16375, 16390))
    lengths = [length for start, end in ranges for length in range(start, end)]
    words = [word for length in lengths for word in (f"f{length}", "x" * length)]
    client.hset("loose", items=words)
    client.config_set("hash-max-ziplist-value", "20000")
    client.hset("packed", items=words)
    loose, packed = dump_of(client, "loose"), dump_of(client, "packed")
    assert loose.type != packed.type
    assert form(loose) == form(packed)


def test_who_reads_a_stream_is_part_of_it(
    server_name: str, start_server: StartServer
) -> None:
    client = start_server(server_name).client()
    client.xadd("k", {"f": "v"}, "1-1")
    client.xgroup_create("k", "g", "0")
    forms = [form(dump_of(client, "k"))]
    client.xreadgroup("g", "consumer", {"k": ">"})
    forms.append(form(dump_of(client, "k")))
    client.xclaim("k", "g", "other", 0, ["1-1"])
    forms.append(form(dump_of(client, "k")))
    client.xack("k", "g", "1-1")
    forms.append(form(dump_of(client, "k")))
    assert len({each.digest for each in forms if each is not None}) == len(forms)


@pytest.mark.parametrize("server_name", ["redis-8.0", "valkey-9.1"], indirect=True)
@pytest.mark.parametrize("count", [3, 600])
def test_fields_are_left_out_once_their_time_has_passed(
    server_name: str, count: int, start_server: StartServer
) -> None:
    client = start_server(server_name).client()
    for number in range(count):
        client.hset("k", f"field:{number}", number)
    client.hpexpireat("k", NOW, "field:1")
    client.hpexpireat("k", NOW + 5000, "field:2")
    dumped = dump_of(client, "k")
    forms = [
        canonical(dumped.type, dumped.value, at=at)
        for at in (NOW - 1, NOW, NOW + 4999, NOW + 5000)
    ]
    assert forms[0] != forms[1] == forms[2] != forms[3]
    client.hdel("k", "field:1", "field:2")
    rest = dump_of(client, "k")
    assert canonical(rest.type, rest.value, at=0) == forms[3]


def test_a_hash_is_gone_with_its_last_field() -> None:
    value = b"\x01\x01f\x01v" + struct.pack("<q", NOW)
    assert canonical(22, value, at=NOW - 1) is not None
    assert canonical(22, value, at=NOW) is None


@given(type_=st.integers(0, 255), value=st.binary(max_size=80), is_lean=st.booleans())
def test_garbage_is_compared_as_it_stands(
    type_: int, value: bytes, *, is_lean: bool
) -> None:
    found = canonical(type_, value, at=NOW, is_lean=is_lean)
    if found is not None and not found.is_known:
        assert canonical(type_, value, at=0) == found
        assert canonical(type_, value + b"x", at=NOW) != found


def test_what_is_cut_short_is_not_taken_for_the_whole(
    server_name: str, start_server: StartServer
) -> None:
    server = start_server(server_name)
    with Workload("127.0.0.1", server.port, 3, server_name, field_ttls="long") as work:
        work.step(200)
    for _, payload in dumps(server, 0):
        whole = form(payload)
        for end in range(0, len(payload.value), max(1, len(payload.value) // 20)):
            cut = Payload(payload.type, payload.value[:end], payload.version)
            assert form(cut) != whole


def test_a_score_of_minus_zero_is_zero_as_in_a_listpack() -> None:
    def member(score: float) -> Canonical | None:
        return canonical(5, b"\x01\x01m" + struct.pack("<d", score), at=NOW)

    assert member(-0.0) == member(0.0) != member(5e-324)


# Packed forms, by hand: what servers of the tests do not write by themselves.


def test_a_listpack_has_integers_of_every_width() -> None:
    entries = {
        b"\x7f": b"127",
        b"\xdf\xff": b"-1",
        b"\xf1\x00\x80": b"-32768",
        b"\xf2\xff\xff\x7f": b"8388607",
        b"\xf3\x00\x00\x00\x80": b"-2147483648",
        b"\xf4" + b"\xff" * 7 + b"\x7f": b"9223372036854775807",
        b"\x81a": b"a",
        b"\xe0\x41" + b"b" * 65: b"b" * 65,
        b"\xf0\x00\x10\x00\x00" + b"c" * 4096: b"c" * 4096,
    }
    body = b"".join(entry + bytes(1 if len(entry) < 128 else 2) for entry in entries)
    assert list(listpack(bytes(6) + body + b"\xff")) == list(entries.values())
    with pytest.raises(ValueError, match=WRONG):
        list(listpack(bytes(6) + b"\xf5"))


def test_a_ziplist_has_integers_of_every_width() -> None:
    entries = {
        b"\xf1": b"0",
        b"\xfd": b"12",
        b"\xfe\xff": b"-1",
        b"\xc0\x00\x80": b"-32768",
        b"\xf0\xff\xff\x7f": b"8388607",
        b"\xd0\x00\x00\x00\x80": b"-2147483648",
        b"\xe0" + b"\xff" * 7 + b"\x7f": b"9223372036854775807",
        b"\x01a": b"a",
        b"\x40\x41" + b"b" * 65: b"b" * 65,
        b"\x80\x00\x00\x10\x00" + b"c" * 4096: b"c" * 4096,
        b"\x02dd": b"dd",
    }
    # The length before is written long or short; its value does not matter.
    body = b"".join(
        (b"\xfe\x00\x00\x00\x00" if number % 2 else b"\x00") + entry
        for number, entry in enumerate(entries)
    )
    assert list(ziplist(bytes(10) + body + b"\xff")) == list(entries.values())
    with pytest.raises(ValueError, match=WRONG):
        list(ziplist(bytes(11) + b"\xff"))


def test_an_intset_is_as_long_as_it_says() -> None:
    head = struct.pack("<II", 2, 2)
    assert list(intset(head + b"\x01\x00\xff\xff")) == [b"1", b"-1"]
    with pytest.raises(ValueError, match=WRONG):
        list(intset(head + b"\x01\x00"))


def test_a_payload_that_is_damaged_is_told() -> None:
    whole = make_payload(Key(0, b"k", 0, b"\x01a", 2), 80)
    assert read_payload(whole) == Payload(0, b"\x01a", 9)
    for at in range(len(whole)):
        damaged = bytearray(whole)
        damaged[at] ^= 1
        with pytest.raises(RdbError):
            read_payload(bytes(damaged))
    with pytest.raises(RdbError):
        read_payload(whole[-10:])
