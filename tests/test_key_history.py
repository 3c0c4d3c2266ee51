"""What is said of a key is what happened to it in a small server, or left open."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvtape.tape.command_table import Effect
from kvtape.tape.commands import RecordedCommand
from kvtape.tape.facts import ClockDifference
from kvtape.tape.key_expiry import NEVER, UNKNOWN, Expiry, at, given_by
from kvtape.tape.key_history import (
    Episode,
    Follower,
    Moment,
    Place,
    Presence,
    Relevance,
    sources,
)

REPLID = "c" * 40
FAR = 2**63
KEY = (0, b"key")
NAMES = (b"key", b"other", b"third")
DBS = (0, 1)

# The server's clock is 50 ms ahead; what is known of it is less exact.
AHEAD = 50
CLOCK = ClockDifference(20, 90)


def clock(_command: RecordedCommand) -> ClockDifference:
    return CLOCK


@dataclass
class Value:
    """What is at a key: how many elements, its expiry, and what was done to it."""

    size: int = 1
    expiry: int = FAR
    story: set[int] = field(default_factory=set)


@dataclass
class SmallServer:
    """Carries out some commands, and streams them as servers do.

    now is the recorder's time. told is what was streamed, and whys why a key was
    deleted, by the offset and the key.
    """

    now: int = 100_000
    at: int = 1000
    db: int = 0
    keys: dict[Place, Value] = field(default_factory=dict)
    told: list[RecordedCommand] = field(default_factory=list)
    whys: dict[tuple[int, Place], str] = field(default_factory=dict)
    transaction: int | None = None
    story: set[int] = field(default_factory=set)  # of KEY
    slack: int = 0

    def stream(self, *words: bytes) -> int:
        """Send a command, and return where it begins."""
        start, self.at = self.at, self.at + 10
        after, time = self.now - self.slack, self.now + self.slack
        self.told.append(
            RecordedCommand(
                REPLID, start, self.at, time, after, self.db, self.transaction, words
            )
        )
        return start

    def expire(self, place: Place) -> None:
        """Delete a key whose time has come, as is done before it is touched."""
        value = self.keys.get(place)
        if value is not None and value.expiry <= self.now + AHEAD:
            self.delete(place, "expired", b"DEL")

    def delete(self, place: Place, why: str, name: bytes) -> None:
        """Delete a key, and stream that."""
        selected, self.db = self.db, place[0]
        self.gone(place, self.stream(name, place[1]), why)
        self.db = selected

    def gone(self, place: Place, start: int, why: str) -> None:
        """Note that a key is gone."""
        del self.keys[place]
        self.whys[start, place] = why
        if place == KEY:
            self.story.add(start)

    def write(self, place: Place, start: int) -> Value:
        """Write to a key, new or not."""
        value = self.keys.setdefault(place, Value(0))
        value.story.add(start)
        if place == KEY:
            self.story.add(start)
        return value

    def link(self, source: Place, target: Place, start: int) -> None:
        """Have the value of one key come to another."""
        value = self.keys[source]
        story = {*value.story, start}
        self.keys[target] = Value(value.size, value.expiry, story)
        if target == KEY:
            self.story |= story

    def carry_out(self, name: str, place: Place, other: Place, number: int) -> None:
        """Carry out a command of a client; the database of place is selected."""
        self.db = place[0]
        if name == "swap":
            start = self.stream(b"SWAPDB", b"0", b"1")
            for value in self.keys.values():
                value.story.add(start)
            self.keys = {(1 - db, key): v for (db, key), v in self.keys.items()}
            if KEY in self.keys:
                self.story |= self.keys[KEY].story
            elif (1, KEY[1]) in self.keys:
                self.story.add(start)
            return
        if name in ("flushdb", "flushall"):
            start = self.stream(name.upper().encode())
            for there in list(self.keys):
                if name == "flushall" or there[0] == self.db:
                    self.gone(there, start, "client")
            return
        if name == "evict":
            if place in self.keys:
                self.delete(place, "evicted", b"DEL")
            return
        self.expire(place)
        self.expire((place[0], other[1]))
        self.expire((1 - place[0], place[1]))
        self._carry_out(name, place, (place[0], other[1]), number)

    def _carry_out(  # noqa: C901, PLR0912 the same
        self, name: str, place: Place, other: Place, number: int
    ) -> None:
        key, deadline = place[1], self.now + AHEAD + number
        is_there = place in self.keys
        match name:
            case "set":
                value = self.write(place, self.stream(b"SET", key, b"v"))
                value.size, value.expiry = 1, FAR
            case "set pxat":
                start = self.stream(b"SET", key, b"v", b"PXAT", b"%d" % deadline)
                value = self.write(place, start)
                value.size, value.expiry = 1, deadline
            case "set px":
                start = self.stream(b"SET", key, b"v", b"PX", b"%d" % number)
                value = self.write(place, start)
                value.size, value.expiry = 1, deadline
            case "set keepttl":
                value = self.write(place, self.stream(b"SET", key, b"v", b"KEEPTTL"))
                value.size = 1
            case "sadd":
                value = self.write(place, self.stream(b"SADD", key, b"m"))
                value.size += 1
            case "srem" if is_there:
                start = self.stream(b"SREM", key, b"m")
                value = self.write(place, start)
                value.size -= 1
                if not value.size:
                    self.gone(place, start, "client")
            case "expire" if is_there:
                start = self.stream(b"PEXPIREAT", key, b"%d" % deadline)
                self.write(place, start).expiry = deadline
            case "persist" if is_there:
                self.write(place, self.stream(b"PERSIST", key)).expiry = FAR
            case "del" | "DEL" | "UNLINK" if is_there:
                self.delete(place, "client", name.encode())
            case "del both" if is_there and other in self.keys and other != place:
                start = self.stream(b"DEL", key, other[1])
                for each in (place, other):
                    self.gone(each, start, "client")
            case "rename" if is_there and other != place:
                start = self.stream(b"RENAME", key, other[1])
                self.link(place, other, start)
                self.gone(place, start, "client")
            case "copy" if is_there and other != place:
                start = self.stream(b"COPY", key, other[1], b"REPLACE")
                self.link(place, other, start)
            case "move" if is_there and (1 - place[0], key) not in self.keys:
                start = self.stream(b"MOVE", key, b"%d" % (1 - place[0]))
                self.link(place, (1 - place[0], key), start)
                self.gone(place, start, "client")
            case _:
                pass


EXACT = (
    *("set", "set pxat", "set keepttl", "sadd", "expire", "persist", "del", "DEL"),
    *("del both", "rename", "copy", "move", "swap", "flushdb", "flushall"),
)
ALL = (*EXACT, "set px", "srem", "UNLINK", "evict", "multi", "exec", "wait")

places = st.tuples(st.sampled_from(DBS), st.sampled_from(NAMES))


def calls(
    names: Sequence[str],
) -> st.SearchStrategy[list[tuple[str, Place, Place, int]]]:
    # Often enough the same key.
    often = st.just(KEY) | places
    one = st.tuples(st.sampled_from(names), often, often, st.integers(1, 300))
    return st.lists(one, max_size=25)


def run(asked: list[tuple[str, Place, Place, int]], slack: int = 0) -> SmallServer:
    server = SmallServer(slack=slack)
    for name, place, other, number in asked:
        server.now += 10
        if name == "multi":
            if server.transaction is None:
                server.transaction = server.at
                server.stream(b"MULTI")
        elif name == "exec":
            if server.transaction is not None:
                server.stream(b"EXEC")
                server.transaction = None
        elif name == "wait":
            server.now += number
        elif server.transaction is None or name != "evict":
            server.carry_out(name, place, other, number)
    return server


def follower(*, known: bool = True, brackets_all: bool = False) -> Follower:
    found = Follower(KEY, frozenset(NAMES), clock, brackets_all)
    if known:
        found.see_snapshot({}, 1000)
    return found


@given(calls(ALL), st.booleans(), st.integers(0, 100))
def test_what_is_claimed_of_a_key_is_never_wrong(
    asked: list[tuple[str, Place, Place, int]], known: bool, slack: int
) -> None:
    # What is not known at first is what was there before it was looked at.
    half = 0 if known else len(asked) // 2
    for end in range(half, len(asked) + 1):
        before = len(run(asked[:half], slack).told)
        server = run(asked[:end], slack)
        following = follower(known=known)
        for command in server.told[before:]:
            for episode in following.follow(command):
                check_cause(episode, server, command)
        for place in ((db, name) for db in DBS for name in NAMES):
            check_state(following, server, place)


def check_state(following: Follower, server: SmallServer, place: Place) -> None:
    state = following.state(place)
    value = server.keys.get(place)
    presence: set[Presence] = {"unsure", "gone" if value is None else "there"}
    assert state.presence in presence
    if value is not None:
        assert state.expiry.low <= value.expiry <= state.expiry.high


def check_cause(
    episode: Episode, server: SmallServer, command: RecordedCommand
) -> None:
    why = server.whys.get((command.start, episode.place))
    match episode.cause:
        case "expired":
            # Or somebody deleted it when its time had come, which nobody can tell.
            assert why in ("expired", "evicted")
        case "command":
            # Or it was not there, which is not known either.
            assert (why or "client", command.transaction) == ("client", None)
        case "transaction":
            assert (why or "client") == "client"
            assert command.transaction is not None
        case _:
            pass
    if episode.effect is Effect.DELETES and episode.cause is None:
        assert why is None


@given(calls(EXACT))
def test_the_story_is_that_of_every_value_that_the_key_had(
    asked: list[tuple[str, Place, Place, int]],
) -> None:
    server = run(asked)
    following = follower()
    told = [
        (episode.place, Moment(following.run, command.start))
        for command in server.told
        for episode in following.follow(command)
    ]
    relevance = Relevance(KEY, following.links)
    found = {moment.offset for place, moment in told if relevance.holds(place, moment)}
    assert found == server.story


# The rules, one by one.


def recorded(
    *words: bytes | str | int,
    start: int = 1000,
    time: int = 100_000,
    after: int | None = None,
    transaction: int | None = None,
    db: int = 0,
) -> RecordedCommand:
    encoded = tuple(w if isinstance(w, bytes) else str(w).encode() for w in words)
    after = time if after is None else after
    return RecordedCommand(
        REPLID, start, start + 10, time, after, db, transaction, encoded
    )


def last_cause(
    *commands: RecordedCommand, brackets_all: bool = False, known: bool = True
) -> object:
    following = follower(known=known, brackets_all=brackets_all)
    episodes = [
        episode for command in commands for episode in following.follow(command)
    ]
    assert episodes[-1].effect is Effect.DELETES
    return episodes[-1].cause


SET = recorded("SET", "key", "v", "PXAT", 200_000)


@pytest.mark.parametrize(
    ("command", "cause"),
    [
        # By the clock that lags most it had passed when the one before was there.
        (recorded("DEL", "key", time=199_990, after=199_981), "expired"),
        (recorded("UNLINK", "key", time=199_990, after=199_981), "expired"),
        (recorded("DEL", "key", time=199_990, after=199_980), "unknown"),
        (recorded("DEL", "key", time=199_000), "unknown"),
        (recorded("del", "key", time=199_000), "unknown"),
        (recorded("DEL", "other", "key", time=199_000), "command"),
        (recorded("DEL", "key", time=199_000, transaction=5), "transaction"),
        (recorded("DEL", "key", time=199_910, transaction=5), "unknown"),
        (recorded("DEL", "key", time=199_909, transaction=5), "transaction"),
        (recorded("DEL", "key", time=199_981, transaction=5), "expired"),
        (recorded("del", "key", time=199_000, transaction=5), "transaction"),
        (recorded("DEL", "other", "key", time=1, transaction=5), "transaction"),
        (recorded("RENAME", "key", "other", time=199_000), "command"),
        (recorded("FLUSHALL", time=199_000), "command"),
        (recorded("FLUSHDB", time=199_000, transaction=5), "transaction"),
    ],
)
def test_why_a_key_with_an_expiry_was_deleted(
    command: RecordedCommand, cause: str
) -> None:
    assert last_cause(SET, command) == cause


def test_where_scripts_are_in_brackets_small_letters_are_a_command() -> None:
    assert last_cause(SET, recorded("del", "key"), brackets_all=True) == "command"
    assert last_cause(SET, recorded("DEL", "key"), brackets_all=True) == "unknown"


def test_of_several_keys_those_that_were_gone_are_not_deleted() -> None:
    assert follower().follow(recorded("DEL", "key", "nosuch")) == []
    unsure = recorded("DEL", "key", "nosuch")
    assert last_cause(unsure, known=False) == "unknown"


def test_a_hash_that_lost_a_field_may_have_lost_its_last() -> None:
    made = recorded("HSET", "key", "f", "v")
    lost = recorded("HDEL", "key", "f", transaction=5)
    gone = recorded("UNLINK", "key", transaction=5)
    assert last_cause(made, lost, gone) == "unknown"
    assert last_cause(made, gone) == "transaction"
    other = recorded("UNLINK", "key", transaction=7)
    assert last_cause(made, lost, made, other) == "transaction"


@pytest.mark.parametrize(
    "command",
    [
        recorded("EVAL", "return 1", 1, "key"),
        recorded("MOD.CMD", "key"),
        recorded("SET", "key"),
        recorded("SWAPDB", "key"),
        recorded("SWAPDB", "x", "key"),
        recorded("COPY", "key", "a", "DB", "x"),
        recorded("RENAME", "key"),
    ],
)
def test_after_what_may_do_anything_nothing_is_known(command: RecordedCommand) -> None:
    following = follower()
    following.follow(SET)
    [episode] = following.follow(command)
    assert (episode.place, episode.effect) == (KEY, None)
    state = following.state(KEY)
    assert (state.presence, state.expiry) == ("unsure", UNKNOWN)
    assert list(sources(command, frozenset(NAMES))) == []


def test_a_database_that_is_put_in_its_own_place_is_as_it_was() -> None:
    following = follower()
    following.follow(SET)
    before = following.state(KEY)
    assert following.follow(recorded("SWAPDB", 0, 0)) == []
    assert following.state(KEY) == before
    assert following.links == []


def test_a_source_of_which_nothing_is_known_gives_an_expiry_that_is_not() -> None:
    following = Follower(KEY, frozenset({b"key"}), clock)
    [episode] = following.follow(recorded("RENAME", "unknown", "key"))
    assert episode.source == (0, b"unknown")
    assert following.state(KEY).expiry == UNKNOWN
    assert following.state(KEY).presence == "there"
    assert following.follow(recorded("COPY", "key", "elsewhere")) == []


def test_a_key_that_a_command_names_twice_is_one_event() -> None:
    [episode] = follower().follow(recorded("LMOVE", "key", "key", "LEFT", "RIGHT"))
    assert episode.place == KEY
    following = follower()
    following.follow(SET)
    assert len(following.follow(recorded("DEL", "key", "key"))) == 1


def test_what_was_gone_is_not_made_by_what_only_changes() -> None:
    following = follower()
    following.follow(recorded("LPOP", "key"))
    assert following.state(KEY).presence == "gone"
    following.follow(recorded("CLUSTER", "FLUSHSLOT", 1))
    assert following.state(KEY).presence == "gone"


def test_a_script_may_touch_keys_that_it_does_not_name() -> None:
    following = follower()
    following.follow(SET)
    assert following.follow(recorded("EVAL", "x", 0)) == []
    assert following.state(KEY).presence == "unsure"
    assert following.state((1, b"other")).presence == "unsure"


def test_keys_of_slots_may_be_gone() -> None:
    following = follower()
    following.follow(SET)
    [episode] = following.follow(recorded("CLUSTER", "FLUSHSLOT", 1))
    assert (episode.place, episode.effect) == (KEY, None)
    assert following.state(KEY).presence == "unsure"
    assert following.state(KEY).expiry == at(200_000)
    assert following.state((0, b"other")).presence == "unsure"


def test_what_writes_to_no_key_is_no_event() -> None:
    following = follower()
    for words in (("PING",), ("FUNCTION", "FLUSH"), ("SET", "unrelated", 1)):
        assert following.follow(recorded(*words)) == []


def test_a_hole_makes_everything_unsure_until_a_snapshot() -> None:
    following = follower()
    following.follow(SET)
    following.forget()
    assert following.state(KEY).presence == "unsure"
    following.see_snapshot({KEY: at(7)}, 5000)
    assert following.state(KEY).expiry == at(7)
    assert following.state((1, b"key")).presence == "gone"


def test_a_snapshot_does_not_begin_a_life_that_is_known_already() -> None:
    following = follower()
    following.follow(recorded("SET", "other", "v", start=2000))
    following.see_snapshot({(0, b"other"): NEVER}, 3000)
    following.follow(recorded("RENAME", "other", "key", start=4000))
    relevance = Relevance(KEY, following.links)
    assert relevance.holds((0, b"other"), Moment(0, 2000))
    assert not relevance.holds((0, b"other"), Moment(0, 1990))


def test_what_happened_to_a_source_after_it_was_copied_is_not_the_story() -> None:
    following = follower()
    for start, words in (
        (2000, ("SET", "third", "v")),
        (2010, ("COPY", "third", "other")),
        (2020, ("SET", "third", "w")),
        (2030, ("RENAME", "other", "key")),
    ):
        following.follow(recorded(*words, start=start))
    relevance = Relevance(KEY, following.links)
    assert relevance.holds((0, b"third"), Moment(0, 2000))
    assert relevance.holds((0, b"other"), Moment(0, 2010))
    assert not relevance.holds((0, b"third"), Moment(0, 2020))
    assert not relevance.holds((1, b"third"), Moment(0, 2000))


def test_the_name_of_a_source_is_told_where_its_value_comes_to_a_key() -> None:
    names = frozenset({b"key"})
    assert list(sources(recorded("RENAME", "a", "key"), names)) == [b"a"]
    assert list(sources(recorded("copy", "a", "key"), names)) == [b"a"]
    assert list(sources(recorded("RENAME", "key", "a"), names)) == []
    assert list(sources(recorded("SET", "a", "key"), names)) == []


# Expiries.


@pytest.mark.parametrize(
    ("words", "expiry"),
    [
        (("SET", "k", "v"), NEVER),
        (("set", "k", "v", "get"), NEVER),
        (("SET", "k", "v", "KEEPTTL"), None),
        (("SET", "k", "v", "keepttl", "GET"), None),
        (("SET", "k", "v", "PXAT", 5), at(5)),
        (("SET", "k", "v", "XX", "EXAT", 5), at(5000)),
        (("SET", "k", "v", "PX", 5), Expiry(99_025, 100_095)),
        (("SET", "k", "v", "EX", 5), Expiry(104_020, 105_090)),
        (("SET", "k", "v", "EX", "much"), UNKNOWN),
        (("SET", "EX", "PX", "EX", 5), Expiry(104_020, 105_090)),
        (("MSETEX", 2, "a", 1, "b", 2, "PXAT", 7), at(7)),
        (("MSETEX", 1, "PXAT", 7), NEVER),
        (("MSETEX", "x"), UNKNOWN),
        (("SETEX", "k", 5, "v"), Expiry(104_020, 105_090)),
        (("PSETEX", "k", 5, "v"), Expiry(99_025, 100_095)),
        (("GETEX", "k"), None),
        (("GETEX", "k", "PERSIST"), NEVER),
        (("GETEX", "k", "PXAT", 9), at(9)),
        (("EXPIRE", "k", 5), Expiry(104_020, 105_090)),
        (("PEXPIRE", "k", 5), Expiry(99_025, 100_095)),
        (("EXPIREAT", "k", 5), at(5000)),
        (("PEXPIREAT", "k", 5, "GT"), at(5)),
        (("PEXPIREAT", "k"), UNKNOWN),
        (("PERSIST", "k"), NEVER),
        (("RESTORE", "k", 0, "payload"), NEVER),
        (("RESTORE", "k", 5, "ABSTTL"), Expiry(99_025, 100_095)),
        (("RESTORE", "k", 5, "payload", "REPLACE", "absttl"), at(5)),
        (("GETSET", "k", "v"), NEVER),
        (("MSET", "k", "v"), NEVER),
        (("SUNIONSTORE", "k", "a"), NEVER),
        (("APPEND", "k", "v"), None),
        (("RENAME", "k", "l"), None),
    ],
)
def test_the_expiry_that_a_command_gives(
    words: tuple[str | int, ...], expiry: Expiry | None
) -> None:
    assert given_by(recorded(*words, time=100_000, after=99_000), clock) == expiry


def test_an_expiry_has_passed_by_every_clock_or_may_have() -> None:
    for expiry, after, time, has, may in (
        (at(1000), 981, 981, True, True),
        (at(1000), 980, 980, False, True),
        (at(1000), 0, 910, False, True),
        (at(1000), 0, 909, False, False),
        (NEVER, FAR, FAR, False, False),
        (UNKNOWN, 10**15, 10**15, False, True),
    ):
        command = recorded("DEL", "k", time=time, after=after)
        assert expiry.has_passed(command, clock) == has
        assert expiry.may_have_passed(command, clock) == may


def test_a_time_is_told_only_if_it_is_exact() -> None:
    assert at(5).time == 5
    assert NEVER.time is UNKNOWN.time is None
    assert Expiry(1, 2).time is None
    assert at(5).or_else(at(7)) == Expiry(5, 7)


def test_a_result_that_is_stored_may_be_none() -> None:
    following = follower()
    following.follow(SET)
    following.follow(recorded("SUNIONSTORE", "key", "a"))
    assert following.state(KEY).presence == "unsure"
    assert following.state(KEY).expiry == NEVER


def test_a_key_that_a_database_is_swapped_away_from_is_gone_by_command() -> None:
    following = follower()
    following.follow(SET)
    swapped = recorded("SWAPDB", 0, 1, start=2000)
    gone, made = sorted(following.follow(swapped), key=lambda episode: episode.place)
    assert (gone.place, gone.effect, gone.cause) == (KEY, Effect.DELETES, "command")
    assert (made.place, made.source) == ((1, b"key"), KEY)
    assert following.state(KEY).presence == "gone"
    assert following.state((1, b"key")).expiry == at(200_000)


def test_what_a_swap_brings_is_not_known_if_it_may_not_have_been_there() -> None:
    following = Follower(KEY, frozenset({b"key"}), clock)
    episodes = following.follow(recorded("SWAPDB", 0, 1))
    assert [(one.place, one.effect) for one in episodes] == [
        (KEY, None),
        ((1, b"key"), None),
    ]


@pytest.mark.parametrize("condition", ["IFEQ", "ifne", "IFDEQ", "IFDNE"])
def test_what_a_value_is_compared_with_is_no_option(condition: str) -> None:
    def given_to(*words: str | int) -> Expiry | None:
        return given_by(recorded("SET", "key", "v", *words), clock)

    assert given_to(condition, "KEEPTTL") == NEVER
    assert given_to(condition, "PX") == NEVER
    assert given_to(condition, "x", "KEEPTTL") is None
    assert given_to(condition, "PX", "PXAT", 5000) == at(5000)
