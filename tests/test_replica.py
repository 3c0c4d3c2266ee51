"""A conversation is bytes in and events out, however the bytes are cut."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from kvtape.errors import ProtocolError, ServerError
from kvtape.replication import primary as primary_half
from kvtape.replication.primary import Ack, Primary, Psync
from kvtape.replication.refusal import RefusedError
from kvtape.replication.replica import (
    MAX_LINE,
    NEED_DATA,
    Announced,
    Continue,
    Event,
    FullResync,
    LinkError,
    Replica,
    SnapshotData,
    SnapshotEnd,
    SnapshotStart,
    StreamData,
)

REPLID = "0123456789abcdef0123456789abcdef01234567"
NEW_REPLID = "89abcdef0123456789abcdef0123456789abcdef"
MARK = b"a3f1" * 9 + b"a3f0"
PING = b"*1\r\n$4\r\nPING\r\n"
GETACK = b"*3\r\n$8\r\nREPLCONF\r\n$6\r\nGETACK\r\n$1\r\n*\r\n"

# The replies to what goes before PSYNC, where there is no password.
OKS = b"+OK\r\n" * 4
FULLRESYNC = b"+FULLRESYNC %s 7\r\n" % REPLID.encode()

RESYNCED = FullResync(REPLID, 7)


def command(*words: str) -> bytes:
    packed = "".join(f"${len(word)}\r\n{word}\r\n" for word in words)
    return f"*{len(words)}\r\n{packed}".encode()


def events(replica: Replica, pieces: list[bytes]) -> list[Event]:
    got: list[Event] = []
    for piece in pieces:
        replica.receive_data(piece)
        while (event := replica.next_event()) is not NEED_DATA:
            got.append(event)
    return joined(got)


def joined(got: list[Event]) -> list[Event]:
    """Merge neighbouring data, so that only the conversation is compared."""
    out: list[Event] = []
    for event in got:
        match out[-1:], event:
            case [SnapshotData(before)], SnapshotData(after):
                out[-1] = SnapshotData(before + after)
            case [StreamData(offset, before)], StreamData(start, after):
                assert start == offset + len(before)
                out[-1] = StreamData(offset, before + after)
            case _:
                out.append(event)
    return out


def singly(said: bytes) -> list[bytes]:
    return [said[i : i + 1] for i in range(len(said))]


def cuts(said: bytes) -> Iterator[list[bytes]]:
    """Yield the same bytes whole, one by one, and cut in two at every place."""
    yield [said]
    yield singly(said)
    for cut in range(1, len(said)):
        yield [said[:cut], said[cut:]]


@dataclass(frozen=True)
class Conversation:
    """What the primary says, and what is to come of it."""

    said: bytes
    expected: tuple[Event, ...]
    replid: str | None = None
    offset: int = 0

    def replica(self) -> Replica:
        """Return the replica that takes part in it."""
        return Replica(self.replid, self.offset)


def full(snapshot: bytes, body: bytes, length: int | None) -> Conversation:
    """Return a full resync that ends with a PING in the stream."""
    data = (SnapshotData(body),) if body else ()
    return Conversation(
        OKS + FULLRESYNC + snapshot + PING,
        (
            RESYNCED,
            SnapshotStart(length),
            *data,
            SnapshotEnd(),
            StreamData(7, PING),
        ),
    )


def marked(body: bytes) -> Conversation:
    return full(b"$EOF:%s\r\n%s%s" % (MARK, body, MARK), body, None)


CONVERSATIONS = {
    "a snapshot of known length": full(b"$5\r\nREDIS", b"REDIS", 5),
    "an empty snapshot": full(b"$0\r\n", b"", 0),
    "a snapshot that looks like a reply": full(b"$6\r\n-ERR\r\n", b"-ERR\r\n", 6),
    "a marked snapshot": marked(b"REDISxx"),
    "an empty marked snapshot": marked(b""),
    "a snapshot shorter than its mark": marked(b"R"),
    "a snapshot with most of its mark inside": marked(b"x" + MARK[:39] + b"y"),
    "a snapshot with starts of its mark inside": marked(MARK[:39] + MARK[:20] + b"z"),
    "a snapshot that ends with a newline": marked(b"REDIS\n\r\n"),
    "newlines before everything": Conversation(
        OKS + b"\n\n\n" + FULLRESYNC + b"\n\n$5\r\nREDIS" + PING,
        (
            RESYNCED,
            SnapshotStart(5),
            SnapshotData(b"REDIS"),
            SnapshotEnd(),
            StreamData(7, PING),
        ),
    ),
    "newlines before a marked snapshot": Conversation(
        OKS + b"\n" + FULLRESYNC + b"\n$EOF:%s\r\n\n\n%s" % (MARK, MARK),
        (RESYNCED, SnapshotStart(None), SnapshotData(b"\n\n"), SnapshotEnd()),
    ),
    "newlines in the stream": Conversation(
        OKS + b"\n+CONTINUE\r\n\n\n" + PING,
        (Continue(REPLID), StreamData(100, b"\n\n" + PING)),
        REPLID,
        100,
    ),
    "a resumed stream": Conversation(
        OKS + b"+CONTINUE\r\n" + PING,
        (Continue(REPLID), StreamData(100, PING)),
        REPLID,
        100,
    ),
    "a resumed stream under a new replid": Conversation(
        OKS + b"+CONTINUE %s\r\n" % NEW_REPLID.encode() + GETACK,
        (Continue(NEW_REPLID), StreamData(100, GETACK)),
        REPLID,
        100,
    ),
    "a full resync where a stream was to be resumed": Conversation(
        OKS + b"+FULLRESYNC %s 9000000000\r\n$1\r\nR" % NEW_REPLID.encode() + PING,
        (
            FullResync(NEW_REPLID, 9_000_000_000),
            SnapshotStart(1),
            SnapshotData(b"R"),
            SnapshotEnd(),
            StreamData(9_000_000_000, PING),
        ),
        REPLID,
        100,
    ),
    "a server that does not know REPLCONF version": Conversation(
        b"+OK\r\n" * 3
        + b"-ERR Unrecognized REPLCONF option: version\r\n"
        + FULLRESYNC
        + b"$1\r\nR",
        (RESYNCED, SnapshotStart(1), SnapshotData(b"R"), SnapshotEnd()),
    ),
}

conversations = pytest.mark.parametrize(
    "conversation", CONVERSATIONS.values(), ids=CONVERSATIONS.keys()
)


@conversations
def test_the_events_do_not_depend_on_how_the_bytes_were_cut(
    conversation: Conversation,
) -> None:
    for pieces in cuts(conversation.said):
        assert events(conversation.replica(), pieces) == [*conversation.expected]


@conversations
def test_all_that_follows_is_stream(conversation: Conversation) -> None:
    tail = GETACK * 3 + b"\x00\n$EOF:" + MARK
    *before, last = conversation.expected
    match last:
        case StreamData(offset, data):
            expected = [*before, StreamData(offset, data + tail)]
        case _:
            expected = [*before, last, StreamData(7, tail)]
    for pieces in cuts(conversation.said + tail):
        assert events(conversation.replica(), pieces) == expected


@pytest.mark.parametrize(
    "line",
    [FULLRESYNC, b"+CONTINUE\r\n", b"+CONTINUE %s\r\n" % NEW_REPLID.encode()],
)
def test_an_answer_to_psync_is_no_event_before_its_line_ends(line: bytes) -> None:
    replica = Replica(REPLID, 100)
    assert events(replica, [OKS, *singly(line[:-1])]) == []
    assert len(events(replica, [line[-1:]])) == 1


@given(st.binary(max_size=200), st.lists(st.integers(0, 400), max_size=8))
@example(MARK[:39], [])
def test_a_marked_snapshot_is_whole_however_it_is_cut(
    body: bytes, at: list[int]
) -> None:
    conversation = marked(body)
    edges = [0, *sorted(at), len(conversation.said)]
    pieces = [conversation.said[a:b] for a, b in pairwise(edges)]
    assert events(conversation.replica(), pieces) == [*conversation.expected]


# What is sent.


def transcript(replica: Replica, replies: list[bytes]) -> list[bytes]:
    """Return what is sent at first and after each reply, and that nothing comes early.

    A reply is given byte by byte, since a command that follows half a reply is as wrong
    as one that follows none.
    """
    sent = [replica.data_to_send()]
    for reply in replies:
        assert not replica.data_to_send()
        for byte in singly(reply[:-1]):
            assert events(replica, [byte]) == []
            assert not replica.data_to_send()
        events(replica, [reply[-1:]])
        sent.append(replica.data_to_send())
    return sent


REPLCONFS = [
    command("REPLCONF", "listening-port", "70000"),
    command("REPLCONF", "capa", "eof"),
    command("REPLCONF", "capa", "psync2"),
    command("REPLCONF", "version", "255.255.255"),
]
PSYNC_NEW = command("PSYNC", "?", "-1")


def test_commands_go_one_at_a_time() -> None:
    sent = transcript(Replica(), [b"+OK\r\n"] * 4)
    assert sent == [*REPLCONFS, PSYNC_NEW]


def test_a_password_goes_first() -> None:
    sent = transcript(Replica(password="s3cret"), [b"+OK\r\n"] * 5)
    assert sent == [command("AUTH", "s3cret"), *REPLCONFS, PSYNC_NEW]


def test_a_user_name_goes_with_the_password() -> None:
    replica = Replica(username="tape", password="s3cret")
    sent = transcript(replica, [b"+OK\r\n"] * 5)
    assert sent == [command("AUTH", "tape", "s3cret"), *REPLCONFS, PSYNC_NEW]


def test_an_empty_password_is_a_password() -> None:
    assert Replica(password="").data_to_send() == command("AUTH", "")


def test_a_user_name_without_a_password_is_not_sent() -> None:
    assert Replica(username="tape").data_to_send() == REPLCONFS[0]


def test_the_address_that_we_listen_at_is_announced() -> None:
    sent = transcript(Replica(announced=Announced("10.0.0.7", 6380)), [b"+OK\r\n"])
    assert sent == [
        command("REPLCONF", "listening-port", "6380"),
        command("REPLCONF", "ip-address", "10.0.0.7"),
    ]
    assert b"ip-address" not in b"".join(transcript(Replica(), [b"+OK\r\n"] * 4))


def test_what_is_durable_is_acknowledged_beside_what_is_received() -> None:
    replica = Replica()
    replica.data_to_send()
    replica.ack(7)
    assert replica.data_to_send() == command("REPLCONF", "ACK", "7")
    replica.ack(0, 7)
    assert replica.data_to_send() == command("REPLCONF", "ACK", "0", "FACK", "7")


def test_psync_asks_for_the_byte_after_the_offset() -> None:
    *_, last = transcript(Replica(REPLID, 100), [b"+OK\r\n"] * 4)
    assert last == command("PSYNC", REPLID, "101")


def test_a_refused_version_is_no_refusal() -> None:
    unknown = b"-ERR Unrecognized REPLCONF option: version\r\n"
    *_, last = transcript(Replica(), [b"+OK\r\n"] * 3 + [unknown])
    assert last == PSYNC_NEW


def test_replies_that_came_early_are_still_answered_in_order() -> None:
    # No server does it, but one read may hold more than one reply.
    replica = Replica()
    events(replica, [OKS])
    assert replica.data_to_send() == b"".join([*REPLCONFS, PSYNC_NEW])


@conversations
def test_once_online_nothing_but_acks_is_sent(conversation: Conversation) -> None:
    replica = conversation.replica()
    events(replica, [conversation.said])
    assert replica.is_online
    replica.data_to_send()
    for said in [PING, GETACK, b"\n", b"-ERR\r\n", OKS, FULLRESYNC]:
        events(replica, [said])
        assert replica.data_to_send() == b""
    replica.ack(107)
    replica.ack(121)
    acks = command("REPLCONF", "ACK", "107") + command("REPLCONF", "ACK", "121")
    assert replica.data_to_send() == acks
    assert replica.data_to_send() == b""


def test_it_is_online_when_the_snapshot_has_ended_and_not_before() -> None:
    replica = Replica()
    for said in [b"", OKS, FULLRESYNC, b"$5\r\nREDI"]:
        events(replica, [said])
        assert not replica.is_online
    events(replica, [b"S"])
    assert replica.is_online


# The snapshot alone.


@conversations
def test_a_snapshot_alone_ends_the_conversation_however_it_is_cut(
    conversation: Conversation,
) -> None:
    *replies, rest = conversation.said.split(b"\r\n", 4)
    said = b"\r\n".join([*replies, b"+OK", rest])
    expected = [*conversation.expected]
    if isinstance(expected[0], Continue):
        with pytest.raises(ProtocolError):
            events(Replica.for_snapshot(None, None), [said])
        return
    if isinstance(expected[-1], StreamData):
        expected.pop()
    for pieces in cuts(said):
        replica = Replica.for_snapshot(None, None)
        assert events(replica, pieces) == expected
        assert not replica.is_online
        replica.receive_data(GETACK)
        assert replica.next_event() is NEED_DATA


def test_a_snapshot_alone_is_asked_for_before_psync() -> None:
    replica = Replica.for_snapshot("tape", "s3cret")
    auth, *sent = transcript(replica, [b"+OK\r\n"] * 6)
    assert auth == command("AUTH", "tape", "s3cret")
    assert sent == [*REPLCONFS, command("REPLCONF", "rdb-only", "1"), PSYNC_NEW]


def test_a_server_that_sends_no_snapshot_alone_refuses() -> None:
    replica = Replica.for_snapshot(None, None)
    with pytest.raises(RefusedError, match="rdb-only"):
        events(replica, [OKS + b"-ERR Unrecognized REPLCONF option: rdb-only\r\n"])


@pytest.mark.parametrize("said", [b"", OKS, OKS + b"+OK\r\n" + FULLRESYNC + b"$9\r\nR"])
def test_a_snapshot_alone_that_breaks_off_is_the_replicas_fault(said: bytes) -> None:
    replica = Replica.for_snapshot(None, None)
    events(replica, [said])
    error = replica.receive_end()
    assert "the replica" in str(error) or not said
    assert "the primary" not in str(error)


@given(st.binary(max_size=60))
def test_garbage_to_who_wants_a_snapshot_alone_is_an_event_or_an_error(
    garbage: bytes,
) -> None:
    for before in (b"", OKS + b"+OK\r\n", OKS + b"+OK\r\n" + FULLRESYNC):
        try:
            events(Replica.for_snapshot(None, None), [before, garbage])
        except ServerError:
            continue


# What a primary must not say.

ILLEGAL = {
    "a newline in the handshake": b"\n",
    "a status but OK": b"+PONG\r\n",
    "a number": b":1\r\n",
    "a resumed stream that was not asked for": OKS + b"+CONTINUE\r\n",
    "another's stream that was not asked for": OKS + b"+CONTINUE %b\r\n" % MARK,
    "a full resync without an offset": OKS + b"+FULLRESYNC %b\r\n" % MARK,
    "a replid that is too short": OKS + b"+FULLRESYNC abc 7\r\n",
    "a replid that leads elsewhere": OKS + b"+FULLRESYNC ../%b 7\r\n" % MARK[3:],
    "a negative offset": OKS + b"+FULLRESYNC %b -1\r\n" % MARK,
    "an offset beyond 64 bits": OKS + b"+FULLRESYNC %b %d\r\n" % (MARK, 2**63),
    "two channels": OKS + b"+DUALCHANNELSYNC\r\n",
    "no snapshot": OKS + FULLRESYNC + b"+OK\r\n",
    "a null": OKS + FULLRESYNC + b"$-1\r\n",
    "a length that is no number": OKS + FULLRESYNC + b"$1a\r\n",
    "a length beyond 64 bits": OKS + FULLRESYNC + b"$%d\r\n" % 2**64,
    "no length": OKS + FULLRESYNC + b"$\r\n",
    "a mark that is too short": OKS + FULLRESYNC + b"$EOF:%b\r\n" % MARK[1:],
    "a line without an end": OKS + b"+" * (MAX_LINE + 1),
    "a line that ends too late": OKS + b"+" * (MAX_LINE + 1) + b"\r\n",
}


@pytest.mark.parametrize("said", ILLEGAL.values(), ids=ILLEGAL.keys())
def test_what_a_primary_must_not_say_is_a_protocol_error(said: bytes) -> None:
    messages = set()
    for pieces in ([said], singly(said), [said + b"+OK\r\n"]):
        with pytest.raises(ProtocolError) as caught:
            events(Replica(), pieces)
        messages.add(str(caught.value))
    assert len(messages) == 1
    assert len(messages.pop()) < 300


def test_a_resumed_stream_needs_a_whole_replid() -> None:
    with pytest.raises(ProtocolError, match="answered PSYNC"):
        events(Replica(REPLID, 7), [OKS + b"+CONTINUE abc\r\n"])


# The end of the connection.


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (b"+O", "closed the connection in the handshake"),
        (OKS, "closed the connection in the handshake"),
        (OKS + b"\n", "closed the connection in the handshake"),
        (OKS + FULLRESYNC, "before the snapshot; its log says why"),
        (OKS + FULLRESYNC + b"\n$5\r", "before the snapshot; its log says why"),
        (OKS + FULLRESYNC + b"$5\r\nREDI", "cut the link within the snapshot"),
        (OKS + FULLRESYNC + b"$EOF:%b\r\nx" % MARK, "within the snapshot"),
        (OKS + FULLRESYNC + b"$5\r\nREDIS", "cut the link after 7"),
        (OKS + FULLRESYNC + b"$5\r\nREDIS" + PING, "cut the link after 21"),
    ],
)
def test_an_end_is_an_error_that_says_where(said: bytes, message: str) -> None:
    replica = Replica()
    events(replica, [said])
    error = replica.receive_end()
    assert isinstance(error, LinkError)
    assert message in str(error)


def test_an_end_without_a_word_hints_at_tls() -> None:
    error = Replica().receive_end()
    assert isinstance(error, RefusedError)
    assert "TLS" in str(error)
    assert not error.is_passing


def test_empty_data_is_nothing_heard() -> None:
    replica = Replica()
    events(replica, [b""])
    assert isinstance(replica.receive_end(), RefusedError)


# Garbage.

FRAGMENTS = [
    *(b"+OK\r\n", OKS, FULLRESYNC, b"+CONTINUE\r\n", b"+CONTINUE " + MARK + b"\r\n"),
    *(b"$5\r\n", b"$0\r\n", b"$EOF:" + MARK + b"\r\n", MARK, MARK[:20], b"$EOF:"),
    *(b"\n", b"\r\n", b"\r", b"-", b"-ERR x\r\n", b"-LOADING", b"HTTP/", b"\x15\x03"),
    *(b"+FULLRESYNC ", b"99999999999999999999", b"+", b":", b"$", PING, b"\xff\xfe"),
]
garbage = st.lists(st.one_of(st.sampled_from(FRAGMENTS), st.binary(max_size=20)))
starts = st.sampled_from([b"", OKS, OKS + FULLRESYNC, OKS + b"+CONTINUE\r\n"])
replicas: st.SearchStrategy[Callable[[], Replica]] = st.sampled_from(
    [Replica, lambda: Replica(REPLID, 100), lambda: Replica(password="x")]
)


def outcome(replica: Replica, pieces: list[bytes]) -> tuple[list[Event], str]:
    """Return the events until the error, if there is one, and the error."""
    got: list[Event] = []
    try:
        for piece in pieces:
            replica.receive_data(piece)
            while (event := replica.next_event()) is not NEED_DATA:
                got.append(event)
    except ServerError as error:
        return joined(got), f"{type(error)}: {error}"
    return joined(got), ""


@given(replicas, starts, garbage)
def test_garbage_is_an_event_or_a_server_error_however_it_is_cut(
    replica: Callable[[], Replica], start: bytes, pieces: list[bytes]
) -> None:
    said = start + b"".join(pieces)
    expected = outcome(replica(), [said])
    assert outcome(replica(), [start, *pieces]) == expected
    assert outcome(replica(), singly(said)) == expected


# Both roles back to back.


@dataclass
class Both:
    """A replica and a primary that hear each other, and what came of it on each side.

    answer is what the primary's owner does about a Psync; it returns what the owner
    itself writes to the socket afterwards.
    """

    replica: Replica
    answer: Callable[[Primary, Psync], bytes]
    step: int
    primary: Primary
    at_replica: list[Event]
    at_primary: list[primary_half.Event]

    def talk(self) -> None:
        """Carry bytes in both directions until both are silent."""
        while said := self.replica.data_to_send():
            for piece in self._pieces(said):
                self.primary.receive_data(piece)
                self._hear_replica()

    def _hear_replica(self) -> None:
        while (event := self.primary.next_event()) is not NEED_DATA:
            self.at_primary.append(event)
            if isinstance(event, Psync):
                said = self.answer(self.primary, event)
                self._say(self.primary.data_to_send() + said)
        self._say(self.primary.data_to_send())

    def _say(self, said: bytes) -> None:
        self.at_replica += events(self.replica, self._pieces(said))

    def _pieces(self, said: bytes) -> list[bytes]:
        return [said[i : i + self.step] for i in range(0, len(said), self.step)]


def talk(
    replica: Replica, answer: Callable[[Primary, Psync], bytes], step: int
) -> Both:
    both = Both(replica, answer, step, Primary(), [], [])
    both.talk()
    both.at_replica = joined(both.at_replica)
    return both


steps = pytest.mark.parametrize("step", [1, 7, 100_000])


@steps
def test_a_snapshot_of_known_length_passes_from_one_role_to_the_other(
    step: int,
) -> None:
    def answer(primary: Primary, _: Psync) -> bytes:
        primary.full_resync(REPLID, 7, length=5)
        return b"REDIS" + PING

    both = talk(Replica(username="a", password="b"), answer, step)
    expected = full(b"", b"REDIS", 5).expected
    assert both.at_replica == [*expected]
    both.replica.ack(21)
    both.talk()
    assert both.at_primary == [Psync(None, -2), Ack(21)]
    assert both.primary.listening_port == 70000
    assert both.primary.version == "255.255.255"


@steps
def test_a_marked_snapshot_passes_from_one_role_to_the_other(step: int) -> None:
    def answer(primary: Primary, _: Psync) -> bytes:
        primary.full_resync(REPLID, 7, length=None, mark=MARK)
        return b"REDIS" + MARK

    both = talk(Replica(), answer, step)
    assert both.at_replica == [*marked(b"REDIS").expected[:-1]]
    both.replica.ack(7)
    both.talk()
    assert both.at_primary == [Psync(None, -2), Ack(7)]


@steps
def test_a_resumed_stream_passes_from_one_role_to_the_other(step: int) -> None:
    def answer(primary: Primary, asked: Psync) -> bytes:
        assert asked == Psync(REPLID, 100)
        primary.partial_resync(NEW_REPLID)
        return PING

    both = talk(Replica(REPLID, 100), answer, step)
    assert both.at_replica == [Continue(NEW_REPLID), StreamData(100, PING)]


@steps
def test_a_refusal_passes_from_one_role_to_the_other(step: int) -> None:
    def answer(primary: Primary, _: Psync) -> bytes:
        primary.refuse("LOADING kvtape is loading the dataset in memory")
        return b""

    with pytest.raises(RefusedError) as caught:
        talk(Replica(), answer, step)
    assert caught.value.is_passing
