"""What real replicas say is understood, and nothing else is.

The conversations were recorded from the six real servers (Redis 6.2 to 8.0, Valkey 8.0
to 9.1), with a user name, a password and an announced address configured.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvtape.errors import ProtocolError, ServerError
from kvtape.replication.primary import PING, Ack, Event, Primary, Psync
from kvtape.replication.replica import NEED_DATA

REPLID = "88015ea7b7cce4cd55284a7ac2fe8e979ffe7661"
MARK = b"a3f1" * 10


def command(*words: str) -> bytes:
    packed = "".join(f"${len(word)}\r\n{word}\r\n" for word in words)
    return f"*{len(words)}\r\n{packed}".encode()


BEFORE = [
    command("PING"),
    command("AUTH", "me", "secret"),
    command("REPLCONF", "listening-port", "15799"),
    command("REPLCONF", "ip-address", "10.1.2.3"),
]
PSYNC = command("PSYNC", REPLID, "1")
CAPA = ("REPLCONF", "capa", "eof", "capa", "psync2")

# What each says before PSYNC, and the version that it announces.
REPLICAS = {
    "redis-6.2 and 7.0": ([*BEFORE, command(*CAPA)], None),
    "redis-8.0": ([*BEFORE, command(*CAPA, "capa", "rdb-channel-repl")], None),
    "redis after 8.6": (
        [
            *BEFORE,
            command("REPLCONF", "rdb-no-compress", "1", "rdb-no-checksum", "1"),
            command(*CAPA, "capa", "rdb-channel-repl"),
        ],
        None,
    ),
    "valkey-8.0 to 9.1": (
        [*BEFORE, command(*CAPA), command("REPLCONF", "version", "8.1.1")],
        "8.1.1",
    ),
    "valkey-9.1 in cluster mode": (
        [
            *BEFORE,
            command(*CAPA, "capa", "skip-rdb-checksum"),
            command("REPLCONF", "version", "9.1.2"),
            command("REPLCONF", "SET-CLUSTER-NODE-ID", "0" * 40),
        ],
        "9.1.2",
    ),
}

replicas = pytest.mark.parametrize(
    ("before", "version"), REPLICAS.values(), ids=REPLICAS.keys()
)


def cuts(said: bytes) -> Iterator[list[bytes]]:
    """Yield the same bytes whole, one by one, and cut in two at every place."""
    yield [said]
    yield [said[i : i + 1] for i in range(len(said))]
    for cut in range(1, len(said)):
        yield [said[:cut], said[cut:]]


def events(primary: Primary, pieces: list[bytes]) -> list[Event]:
    got: list[Event] = []
    for piece in pieces:
        primary.receive_data(piece)
        while (event := primary.next_event()) is not NEED_DATA:
            got.append(event)
    return got


@replicas
def test_a_handshake_is_answered_and_ends_with_psync(
    before: list[bytes], version: str | None
) -> None:
    replies = b"+PONG\r\n" + b"+OK\r\n" * (len(before) - 1)
    for pieces in cuts(b"".join(before) + PSYNC):
        primary = Primary()
        assert events(primary, pieces) == [Psync(REPLID, 0)]
        assert primary.data_to_send() == replies
        assert primary.listening_port == 15799
        assert primary.version == version


@replicas
def test_each_command_is_answered_when_it_is_whole(
    before: list[bytes], version: str | None
) -> None:
    primary = Primary()
    for said in before:
        assert events(primary, [said[:-1]]) == []
        assert primary.data_to_send() == b""
        assert events(primary, [said[-1:]]) == []
        assert primary.data_to_send().startswith(b"+")
    assert primary.version == version


def test_nothing_is_answered_before_the_next_event_is_asked_for() -> None:
    primary = Primary()
    primary.receive_data(command("PING"))
    assert primary.data_to_send() == b""
    assert primary.next_event() is NEED_DATA
    assert primary.data_to_send() == b"+PONG\r\n"
    assert primary.data_to_send() == b""


def test_a_replica_that_knows_no_history_asks_for_none() -> None:
    [event] = events(Primary(), [command("PSYNC", "?", "-1")])
    assert isinstance(event, Psync)
    assert event.replid is None


def test_psync_names_the_byte_after_the_offset() -> None:
    asked = command("psync", REPLID, "123456789013")
    assert events(Primary(), [asked]) == [Psync(REPLID, 123456789012)]


def test_acks_are_events_and_never_answered() -> None:
    said = [
        command("REPLCONF", "ACK", "1000"),
        command("replconf", "ack", "1014", "FACK", "1000"),
        command("REPLCONF", "ACK", "-1"),
    ]
    for pieces in cuts(b"".join(said)):
        primary = Primary()
        assert events(primary, pieces) == [Ack(1000), Ack(1014, 1000), Ack(-1)]
        assert primary.data_to_send() == b""


def test_newlines_from_a_replica_that_loads_its_snapshot_are_no_commands() -> None:
    ack = command("REPLCONF", "ACK", "1000")
    for pieces in cuts(PSYNC + b"\n\n\n" + ack + b"\n" + ack + b"\n"):
        primary = Primary()
        assert events(primary, pieces) == [Psync(REPLID, 0), Ack(1000), Ack(1000)]
        assert primary.data_to_send() == b""


def test_a_replica_without_a_port_has_none() -> None:
    primary = Primary()
    events(primary, [command("REPLCONF", "listening-port", "")])
    assert primary.listening_port is None
    assert primary.data_to_send() == b"+OK\r\n"


def test_sync_is_refused_since_it_has_no_offsets() -> None:
    primary = Primary()
    assert events(primary, [command("SYNC")]) == []
    assert primary.data_to_send() == b"-ERR unknown command\r\n"


def test_nobody_can_fail_over_to_us() -> None:
    primary = Primary()
    assert events(primary, [command("PSYNC", REPLID, "1", "FAILOVER")]) == []
    assert primary.data_to_send().startswith(b"-ERR")


def test_the_answers_are_those_of_a_primary() -> None:
    primary = Primary()
    primary.full_resync(REPLID, 7, length=5)
    said = f"+FULLRESYNC {REPLID} 7\r\n$5\r\n".encode()
    assert primary.data_to_send() == said
    primary.full_resync(REPLID, 7, length=None, mark=MARK)
    said = f"+FULLRESYNC {REPLID} 7\r\n$EOF:{MARK.decode()}\r\n".encode()
    assert primary.data_to_send() == said
    primary.partial_resync(REPLID)
    assert primary.data_to_send() == f"+CONTINUE {REPLID}\r\n".encode()
    primary.refuse("LOADING Redis is loading")
    assert primary.data_to_send() == b"-LOADING Redis is loading\r\n"


def test_a_ping_is_the_14_bytes_that_every_primary_sends() -> None:
    assert PING == b"*1\r\n$4\r\nPING\r\n"


def test_a_replica_that_wants_tls_is_told_what_to_do() -> None:
    hello = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500)
    for pieces in cuts(hello):
        with pytest.raises(ServerError, match="tls-replication no"):
            events(Primary(), pieces)


ILLEGAL = {
    "inline SYNC": b"SYNC\r\n",
    "a carriage return": b"\r\n",
    "a reply": b"+OK\r\n",
    "HTTP": b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
    "no words": b"*0\r\n",
    "a null": b"*-1\r\n",
    "no number": b"*\r\n",
    "a number that is none": b"*1x\r\n",
    "a header that ends with a newline only": b"*1\n$4\r\nPING\r\n",
    "a header that does not end": b"*" + b"1" * 100,
    "more words than a replica has": b"*65\r\n",
    "words without end": b"*999999\r\n",
    "a number among the words": b"*2\r\n$4\r\nPING\r\n:1\r\n",
    "an array among the words": b"*2\r\n$8\r\nREPLCONF\r\n*1\r\n$3\r\nACK\r\n",
    "a null among the words": b"*2\r\n$4\r\nPING\r\n$-1\r\n",
    "a word that is too long": b"*2\r\n$4\r\nPING\r\n$65536\r\n",
    "words that are too long together": b"*3\r\n"
    + command("PING", "x" * 60_000)[4:]
    + b"$6000\r\n",
    "PSYNC without an offset": command("PSYNC", REPLID),
    "PSYNC without anything": command("PSYNC"),
    "PSYNC with no number": command("PSYNC", REPLID, "x"),
    "PSYNC with no text": b"*3\r\n$5\r\nPSYNC\r\n$1\r\n\xff\r\n$1\r\n1\r\n",
    "an ACK with no number": command("REPLCONF", "ACK", "x"),
    "a port with no number": command("REPLCONF", "listening-port", "x"),
    "a number that takes for ever": command("REPLCONF", "ACK", "9" * 5000),
}


@pytest.mark.parametrize("said", ILLEGAL.values(), ids=ILLEGAL.keys())
def test_what_no_replica_says_is_a_protocol_error(said: bytes) -> None:
    singly = [said[i : i + 1] for i in range(len(said))]
    for pieces in ([said], [said + command("PING")], singly):
        with pytest.raises(ProtocolError) as caught:
            events(Primary(), pieces)
        assert len(str(caught.value)) < 200


def test_a_long_password_is_no_reason_to_refuse() -> None:
    primary = Primary()
    assert events(primary, [command("AUTH", "x" * 512)]) == []
    assert primary.data_to_send() == b"+OK\r\n"


FRAGMENTS = [
    *(PSYNC, command("REPLCONF", "ACK", "7"), command("PING"), b"\n", b"\r\n"),
    *(b"*1\r\n", b"*3\r\n", b"*0\r\n", b"*-1\r\n", b"*99999999999\r\n", b"$4\r\nPING"),
    *(b"$5\r\nPSYNC\r\n", b"$8\r\nREPLCONF\r\n", b"$1\r\n?\r\n", b"$2\r\n-1\r\n"),
    *(b"$0\r\n\r\n", b"$3\r\nACK\r\n", b"$-1\r\n", b":1\r\n", b"SYNC", b"\x16\x03\x01"),
]
garbage = st.lists(st.one_of(st.sampled_from(FRAGMENTS), st.binary(max_size=20)))


def outcome(pieces: list[bytes]) -> tuple[list[Event], bytes, str]:
    """Return the events and the answers until the error, if there is one, and it."""
    primary = Primary()
    got: list[Event] = []
    try:
        for piece in pieces:
            primary.receive_data(piece)
            while (event := primary.next_event()) is not NEED_DATA:
                got.append(event)
    except ServerError as error:
        return got, primary.data_to_send(), type(error).__name__
    return got, primary.data_to_send(), ""


@given(garbage)
def test_garbage_is_an_event_or_a_server_error_however_it_is_cut(
    pieces: list[bytes],
) -> None:
    said = b"".join(pieces)
    expected = outcome([said])
    assert outcome(pieces) == expected
    assert outcome([said[i : i + 1] for i in range(len(said))]) == expected
