"""What real servers write is read whole, and is what an independent client sees."""

from __future__ import annotations

import random
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import anycrc
import pytest
import redis

from fingerprints import fingerprint
from kvtape.tape.rdb import (
    FIELD_EXPIRE_SLACK_MS,
    Aux,
    End,
    Header,
    Key,
    Library,
    RdbError,
    RdbReader,
    ResizeDb,
    SelectDb,
    SlotInfo,
    read_header,
)
from rdb_files import (
    HAVE_FIELD_EXPIRIES,
    LATER_MS,
    LIBRARY,
    LONG_LIBRARY,
    MAGIC_AND_VERSION,
    TYPES,
    ask,
    drain,
    fill,
    fill_compact,
    fill_small,
    in_pieces,
    keys_of,
    read,
    saved,
)
from replicas import wait_until
from servers import Server, StartServer

CRC = anycrc.Model("CRC64-REDIS")

NAMES = {
    b"string": {0},
    b"list": {14, 18},
    b"set": {2, 11, 20},
    b"zset": {5, 12, 17},
    b"hash": {4, 13, 16, 22, 24, 25},
    b"stream": {15, 19, 21},
}


def listed(server: Server) -> Iterator[tuple[redis.Redis, int, bytes]]:
    """List the keys as a client sees them, with a client in the right database."""
    for db in range(16):
        client = server.client(db=db)
        names: list[bytes] = list(client.scan_iter(count=1000))
        assert len(names) == client.dbsize()
        for name in names:
            yield client, db, name


TABLES = {2, 4, 22, 24}


def payload(key: Key, version: int) -> bytes:
    """Put together what DUMP prints (cluster.c:createDumpPayload)."""
    assert key.value is not None
    body = bytes([key.type]) + key.value + version.to_bytes(2, "little")
    checksum: int = CRC.calc(body)
    return body + checksum.to_bytes(8, "little")


def test_every_type_is_read_with_its_bytes_as_dump_has_them(
    server_name: str, start_server: StartServer
) -> None:
    server = start_server(server_name)
    fill(server.client(), server_name)
    data = saved(server)
    events = read([data])
    magic, version = MAGIC_AND_VERSION[server_name]
    assert events[0] == Header(magic, version)
    assert isinstance(events[-1], End)
    assert events[-1].checksum == int.from_bytes(data[-8:], "little")
    keys = keys_of(events)
    assert {key.type for key in keys.values()} == TYPES[server_name]
    seen = set()
    for client, db, name in listed(server):
        seen.add((db, name))
        key = keys[db, name]
        assert key.value is not None
        assert len(key.value) == key.value_size
        assert client.dump(name) == payload(key, version), name
    assert seen == set(keys)


@pytest.mark.parametrize("fill", [fill, fill_compact])
def test_what_is_read_can_be_restored_key_by_key(
    fill: Callable[[redis.Redis, str], None],
    server_name: str,
    start_server: StartServer,
) -> None:
    server = start_server(server_name)
    client = server.client()
    fill(client, server_name)
    before = fingerprint(client)
    keys = keys_of(read([saved(server)]))
    _, version = MAGIC_AND_VERSION[server_name]
    client.flushall()
    for key in keys.values():
        ask(
            server.client(db=key.db),
            *("RESTORE", key.key, key.expire_ms or 0, payload(key, version), "ABSTTL"),
        )
    after = fingerprint(client)
    assert after.keys == before.keys
    again = keys_of(read([saved(server)]))
    assert again.keys() == keys.keys()
    for place, key in keys.items():
        found = again[place]
        assert found.expire_ms == key.expire_ms
        # Loading forgets that fields once had an expiry, with what that left behind.
        if place != (0, b"persistent"):
            assert (found.type, found.value_size) == (key.type, key.value_size)
            # A table's order depends on how it grew.
            assert key.type in TABLES or found == key, place


def test_keys_types_and_expiries_are_those_that_a_client_sees(
    server_name: str, start_server: StartServer
) -> None:
    server = start_server(server_name)
    fill(server.client(), server_name)
    events = read(in_pieces(saved(server), 1000), values=False)
    keys = keys_of(events)
    seen = set()
    for client, db, name in listed(server):
        seen.add((db, name))
        key = keys[db, name]
        assert key.value is None
        assert key.type in NAMES[ask(client, "TYPE", name)]
        if server_name == "redis-6.2":
            left = ask(client, "PTTL", name)
            assert (left == -1) == (key.expire_ms is None)
        else:
            expiry = ask(client, "PEXPIRETIME", name)
            assert expiry == (-1 if key.expire_ms is None else key.expire_ms)
        assert (key.idle, key.frequency, key.metadata) == (None, None, None)
    assert seen == set(keys)
    assert keys[0, b"expires"].expire_ms == LATER_MS
    sizes = [event for event in events if isinstance(event, ResizeDb)]
    assert [event.db for event in events if isinstance(event, SelectDb)] == [0, 1, 15]
    assert [size.keys for size in sizes] == [len(seen) - 2, 1, 1]
    assert [size.expires for size in sizes] == [1, 0, 0]


def test_libraries_are_read(server_name: str, start_server: StartServer) -> None:
    server = start_server(server_name)
    fill(server.client(), server_name)
    events = read([saved(server)])
    libraries = {event.source for event in events if isinstance(event, Library)}
    expected = {LIBRARY.encode(), LONG_LIBRARY.encode()}
    assert libraries == (set() if server_name == "redis-6.2" else expected)


def earliest_field(client: redis.Redis, name: bytes) -> int | None:
    fields = ask(client, "HKEYS", name)
    expiries = ask(client, "HPEXPIRETIME", name, "FIELDS", len(fields), *fields)
    return min((expiry for expiry in expiries if expiry != -1), default=None)


def agree(key: Key, truth: int | None) -> bool:
    """Whether the expiry is right, by what a server promises for that type."""
    if key.type != 25:
        return key.field_expire_ms == truth
    if key.field_expire_ms is None or truth is None:
        return truth is None
    return key.field_expire_ms < truth + FIELD_EXPIRE_SLACK_MS


@pytest.mark.parametrize("server_name", sorted(HAVE_FIELD_EXPIRIES), indirect=True)
def test_the_earliest_expiry_of_a_field_is_known(
    server_name: str, start_server: StartServer
) -> None:
    server = start_server(server_name)
    fill(server.client(), server_name)
    dice = random.Random(11)
    for i in range(300):
        name, field = f"hash {i % 30}", f"field {i}"
        ask(server.client(), "HSET", name, field, i)
        expiry = LATER_MS + dice.randrange(0, 20_000, 1000)
        ask(server.client(), "HPEXPIREAT", name, expiry, "FIELDS", 1, field)
    keys = keys_of(read([saved(server)], values=False))
    truth = {
        (db, name): earliest_field(client, name)
        for client, db, name in listed(server)
        if ask(client, "TYPE", name) == b"hash"
    }
    assert [
        keys[place] for place in truth if not agree(keys[place], truth[place])
    ] == []
    assert keys[0, b"fields"].field_expire_ms == LATER_MS + 5000
    assert keys[0, b"table"].field_expire_ms == LATER_MS + 3000
    # Redis finds out later that no field expires.
    stale = {"redis-8.0": LATER_MS, "valkey-9.1": None}
    assert keys[0, b"persistent"].field_expire_ms == stale[server_name]
    others = [key for place, key in keys.items() if place not in truth]
    assert {key.field_expire_ms for key in others} == {None}


def test_the_split_of_a_real_rdb_never_shows(
    server_name: str, start_server: StartServer
) -> None:
    server = start_server(server_name)
    fill(server.client(), server_name)
    data = saved(server)
    whole = read([data])
    for size in (7, 4096, 65536):
        assert read(in_pieces(data, size)) == whole
    keys_only = read([data], values=False)
    assert read(in_pieces(data, 7), values=False) == keys_only


@pytest.mark.parametrize("values", [True, False])
def test_every_prefix_of_a_real_rdb_needs_data(
    values: bool, server_name: str, start_server: StartServer
) -> None:
    server = start_server(server_name)
    fill_compact(server.client(), server_name)
    data = saved(server)
    whole = read([data], values=values)
    assert {key.type for key in keys_of(whole).values()} == TYPES[server_name]
    assert read(in_pieces(data, 1), values=values) == whole
    counts = []
    for size in range(len(data)):
        reader = RdbReader(values=values)
        reader.receive_data(data[:size])
        events = list(drain(reader))
        assert events == whole[: len(events)]
        with pytest.raises(RdbError, match=f"cut short: it ends at byte {size}$"):
            reader.close()
        counts.append(len(events))
    assert counts == sorted(counts)
    assert sorted(set(counts)) == list(range(len(whole)))


def synchronised(server: Server) -> bytes:
    """Return the RDB that a full resync sends."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
        connection.sendall(b"SYNC\r\n")
        stream = connection.makefile("rb")
        line = b"\n"
        while line == b"\n":  # The server says that way that it is still there.
            line = stream.readline()
        assert line.startswith(b"$")
        return stream.read(int(line[1:]))


def test_the_first_fields_tell_where_the_snapshot_stands(
    server_name: str, start_server: StartServer
) -> None:
    server = start_server(server_name)
    client = server.client()
    fill_small(client, server_name)
    synchronised(server)  # From now on there is a backlog, and offsets count.
    ask(client, "SELECT", 9)
    ask(client, "SET", "nine", "9")
    data = synchronised(server)
    header, fields = read_header(data[:1024])
    assert (header.magic, header.version) == MAGIC_AND_VERSION[server_name]
    replication, release = client.info("replication"), client.info("server")
    assert fields[b"repl-id"] == replication["master_replid"].encode()
    assert int(fields[b"repl-offset"]) == replication["master_repl_offset"] > 0
    assert fields[b"repl-stream-db"].isdigit()
    assert int(fields[b"used-mem"]) > 100_000
    family = server_name.partition("-")[0]
    ours = fields[f"{family}-ver".encode()]
    assert ours == release[f"{family}_version"].encode()
    assert keys_of(read([data])).keys() >= {(9, b"nine"), (15, b"fifteen")}


def eviction_facts(server: Server, fact: str) -> dict[tuple[int, bytes], int]:
    """Ask for OBJECT FREQ or IDLETIME of all keys."""
    return {
        (db, name): ask(client, "OBJECT", fact, name)
        for client, db, name in listed(server)
    }


def test_the_frequency_of_use_is_read(
    server_name: str, start_server: StartServer
) -> None:
    server = start_server(server_name, maxmemory_policy="allkeys-lfu")
    client = server.client()
    fill_small(client, server_name)
    ask(client, "RESTORE", "restored", 0, client.dump("text"), "FREQ", 77)
    keys = keys_of(read(in_pieces(saved(server), 11)))
    found = {place: key.frequency for place, key in keys.items()}
    assert found == eviction_facts(server, "FREQ")
    assert found[0, b"restored"] == 77
    assert {key.idle for key in keys.values()} == {None}


def test_the_idle_time_is_read(server_name: str, start_server: StartServer) -> None:
    server = start_server(server_name, maxmemory_policy="allkeys-lru")
    client = server.client()
    fill_small(client, server_name)
    # What becomes of that number depends on when the server's 24-bit clock wraps.
    ask(client, "RESTORE", "restored", 0, client.dump("text"), "IDLETIME", 1000)
    earlier = eviction_facts(server, "IDLETIME")
    keys = keys_of(read(in_pieces(saved(server), 11)))
    later = eviction_facts(server, "IDLETIME")
    assert keys.keys() == earlier.keys()
    for place, key in keys.items():
        assert key.idle in range(earlier[place], later[place] + 1)
        assert key.frequency is None


def test_a_snapshot_without_checksum_is_complete(
    server_name: str, start_server: StartServer
) -> None:
    server = start_server(server_name, rdbchecksum="no", rdbcompression="no")
    fill_small(server.client(), server_name)
    events = read([saved(server)])
    assert events[-1] == End(0)
    assert len(keys_of(events)) == sum(1 for _ in listed(server))


def test_a_cluster_node_tells_its_slots(
    server_name: str, start_server: StartServer, tmp_path: Path
) -> None:
    before = start_server(server_name, folder=tmp_path)
    ask(before.client(), "MSET", "a", "1", "{a}b", "2", "c", "3")
    saved(before)
    before.close()
    # A node that finds keys at its start takes their slots, so no cluster is needed.
    server = start_server(server_name, folder=tmp_path, cluster_enabled="yes")
    events = read([saved(server)])
    assert {name for _, name in keys_of(events)} == {b"a", b"{a}b", b"c"}
    a, c = (ask(server.client(), "CLUSTER", "KEYSLOT", key) for key in "ac")
    told: dict[int, int] = {}
    for event in events:
        if isinstance(event, SlotInfo):
            told[event.slot] = event.keys
        if isinstance(event, Aux) and event.key == b"slot-info":
            slot, keys, *_ = map(int, event.value.split(b","))
            told[slot] = keys
    older = server_name in ("redis-6.2", "redis-7.0")
    assert told == ({} if older else {a: 2, c: 1})


@pytest.mark.parametrize("server_name", ["redis-6.2"], indirect=True)
def test_an_aof_that_starts_as_an_rdb_is_told_from_its_commands(
    server_name: str, start_server: StartServer
) -> None:
    server = start_server(server_name, appendonly="yes", appendfsync="always")
    client = server.client()
    fill_small(client, server_name)
    ask(client, "BGREWRITEAOF")
    wait_until(lambda: not client.info("persistence")["aof_rewrite_in_progress"])
    keys = client.dbsize()
    ask(client, "SET", "after", "1")
    reader = RdbReader()
    reader.receive_data((server.folder / "appendonly.aof").read_bytes())
    events = list(drain(reader))
    reader.close()
    assert Aux(b"aof-preamble", b"1") in events
    assert len([place for place in keys_of(events) if place[0] == 0]) == keys
    select, write = (
        b"*2\r\n$6\r\nSELECT\r\n$1\r\n0\r\n",
        b"*3\r\n$3\r\nSET\r\n$5\r\nafter",
    )
    assert reader.unused_data == select + write + b"\r\n$1\r\n1\r\n"
