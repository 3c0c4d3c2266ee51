"""What became of a key: which writes touched it, under which names, and why it went.

Commands go in, episodes of the keys that are followed come out. Of each key is known
whether it is there and when it expires, as far as snapshot and stream tell; what they
do not tell is *unsure*, and stays so until something settles it. Nothing is guessed:

- A server deletes a key by itself when its time has come or when memory is short, and
  streams that as a DEL or UNLINK like any other. Once a key's time has certainly come,
  such a DEL is its expiry, whoever touched it: before a server does what a client asks
  of an expired key, it deletes it. Certainly is: the receipt before the DEL's own was
  later than that time, by any clock that the recording allows for.
- What stands in a transaction was sent by a client, or done by a script; servers put
  no eviction there (tried on all releases). They do bracket what expires while it is
  written to, so this is said only of keys that cannot have expired; and Valkey brackets
  the UNLINK of a hash with the HDEL of its last expired field, so neither is it said of
  a hash that a field was just deleted from.
- Of several keys at once, or moved with a command of its own, it was a command: from
  Redis 7.0 and Valkey 8.0 on perhaps the only write of a script or a transaction, which
  is streamed without brackets.
- Anything else may have been an eviction, and is unknown.

A key's value may come from elsewhere. RENAME, COPY, MOVE and SWAPDB are links; what was
done to a value under another name, since it came to be there, belongs to its story.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, Literal, NamedTuple, TypeAlias

from kvtape.errors import ProtocolError
from kvtape.tape.command_table import Effect, KeyUse, Kind, find
from kvtape.tape.commands import RecordedCommand
from kvtape.tape.key_expiry import NEVER, STORES, UNKNOWN, Clock, Expiry, given_by

# A database, and a key in it.
Place: TypeAlias = tuple[int, bytes]

Presence: TypeAlias = Literal["there", "gone", "unsure"]
Cause: TypeAlias = Literal["expired", "transaction", "command", "unknown"]


class Moment(NamedTuple):
    """A place in what is read: the run without a hole, and the offset in it."""

    run: int
    offset: int


_BEFORE_ALL: Final = Moment(-1, -1)


@dataclass(frozen=True, slots=True)
class State:
    """What is known of a key; born is when its life began, at the earliest."""

    presence: Presence
    expiry: Expiry
    born: Moment = _BEFORE_ALL


_UNSURE: Final = State("unsure", UNKNOWN)
_GONE: Final = State("gone", NEVER)


@dataclass(frozen=True, slots=True)
class Episode:
    """What a command did to a key that is followed.

    effect is None where that is not known. cause is of what deletes it, if it may have
    been there; expiry is when it would have expired. source is where its value comes
    from.
    """

    command: RecordedCommand
    place: Place
    effect: Effect | None
    cause: Cause | None = None
    expiry: Expiry = UNKNOWN
    source: Place | None = None


class Link(NamedTuple):
    """A value came to target at a moment from source, where its life began at born."""

    at: Moment
    target: Place
    source: Place
    born: Moment


@dataclass(slots=True)
class Follower:
    """Follows the keys of some names, in all databases; key is the one asked about.

    brackets_all says that the server puts whatever a script or a transaction does into
    MULTI and EXEC, as 6.2 does.
    """

    key: Place
    names: frozenset[bytes]
    clock: Clock
    brackets_all: bool = False
    links: list[Link] = field(default_factory=list)
    run: int = 0
    _states: dict[Place, State] = field(default_factory=dict)
    # What is so of every other key of these names.
    _default: State = _UNSURE
    _transaction: int | None = None
    _lost_fields: set[Place] = field(default_factory=set)

    def state(self, place: Place) -> State:
        """Return what is known of a key now."""
        return self._states.get(place, self._default)

    def forget(self) -> None:
        """Take nothing for known any more: something is missing."""
        self.run += 1
        self._states.clear()
        self._default = _UNSURE

    def see_snapshot(self, entries: Mapping[Place, Expiry], offset: int) -> None:
        """Take note of what a snapshot at an offset has of these names, and has not."""
        moment = Moment(self.run, offset)
        self._default = replace(_GONE, born=moment)
        self._states = {
            place: replace(self.state(place), presence="there", expiry=expiry)
            for place, expiry in entries.items()
        }

    def follow(self, command: RecordedCommand) -> list[Episode]:
        """Take note of the next command; return what it did to keys of these names."""
        if command.transaction != self._transaction:
            self._transaction = command.transaction
            self._lost_fields.clear()
        entry = find(command.words)
        uses: Sequence[KeyUse] = ()
        try:
            uses = () if entry is None else entry.keys(command.words)
        except ProtocolError:
            entry = None  # it has not the words that it should
        if entry is None or not _has_numbers(command):
            return self._unsettle(command, set(command.words[1:]))
        match entry.kind:
            case Kind.KEYS:
                return self._follow_keys(command, entry.name, uses)
            case Kind.DATABASES:
                return list(self._follow_databases(command, entry.name))
            case Kind.SCRIPTS:
                episodes = self._unsettle(command, set(command.words[1:]))
                self._states.clear()
                self._default = _UNSURE
                return episodes
            case _:
                return []

    def _follow_keys(
        self, command: RecordedCommand, name: str, uses: Sequence[KeyUse]
    ) -> list[Episode]:
        if name in _LINKS:
            return list(self._follow_link(command, uses))
        episodes: list[Episode] = []
        for use in uses:
            place = (command.db, command.words[use.at])
            if place[1] in self.names and self._matters(place, use.effect):
                episode = self._apply(command, place, use.effect)
                if episode.place not in {other.place for other in episodes}:
                    episodes.append(episode)
        return episodes

    def _matters(self, place: Place, effect: Effect) -> bool:
        """Whether a command may do anything to a key.

        One of several that are deleted need not have been there.
        """
        is_gone = self.state(place).presence == "gone"
        return effect is not Effect.READS and not (effect is Effect.DELETES and is_gone)

    def _apply(self, command: RecordedCommand, place: Place, effect: Effect) -> Episode:
        """Take note of what a command does to one key."""
        before = self.state(place)
        if effect is Effect.DELETES:
            self._put(place, _GONE)
            cause = self._cause(command, place, before)
            return Episode(command, place, effect, cause, before.expiry)
        if command.name == b"HDEL":
            self._lost_fields.add(place)
        presence, kept = self._after(command.name, effect, before)
        given = given_by(command, self.clock)
        born = before.born
        if before.presence == "gone" and presence != "gone":
            born = Moment(self.run, command.start)
        expiry = kept if given is None else given
        self._put(place, State(presence, expiry, born))
        return Episode(command, place, effect)

    @staticmethod
    def _after(name: bytes, effect: Effect, before: State) -> tuple[Presence, Expiry]:
        """Return whether a key is there after a command, and with which old expiry."""
        if effect is Effect.CREATES:
            if name in STORES:
                return "unsure", NEVER
            if before.presence == "unsure":
                return "there", before.expiry.or_else(NEVER)
            return "there", before.expiry
        if name in _KEEP:
            # It is streamed only if there was something to do it to.
            return "there", before.expiry
        # It may have taken the last element.
        return "gone" if before.presence == "gone" else "unsure", before.expiry

    def _cause(self, command: RecordedCommand, place: Place, before: State) -> Cause:
        """Return why a key was deleted by a command that names it."""
        if len(command.words) > _ONE_KEY:
            # Had it expired, the server would have streamed that before.
            return self._ordered(command) if before.presence == "there" else "unknown"
        # What a server does by itself it streams in capital letters.
        if not command.words[0].isupper():
            is_one_of_more = command.transaction is None and not self.brackets_all
            return "unknown" if is_one_of_more else self._ordered(command)
        if before.expiry.has_passed(command, self.clock):
            return "expired"
        if command.transaction is None or place in self._lost_fields:
            return "unknown"
        may_be_expiry = before.expiry.may_have_passed(command, self.clock)
        return "unknown" if may_be_expiry else "transaction"

    @staticmethod
    def _ordered(command: RecordedCommand) -> Cause:
        """Return the cause of what no server does by itself."""
        return "command" if command.transaction is None else "transaction"

    def _follow_link(
        self, command: RecordedCommand, uses: Sequence[KeyUse]
    ) -> Iterator[Episode]:
        """Follow RENAME, MOVE and COPY: what is at the source comes to the target."""
        first, second = uses
        source = (command.db, command.words[first.at])
        there = command.db if second.db is None else second.db
        target = (there, command.words[second.at])
        value = self.state(source)
        if target[1] in self.names:
            at = Moment(self.run, command.start)
            self.links.append(Link(at, target, source, value.born))
            known = value.expiry if source[1] in self.names else UNKNOWN
            self._put(target, State("there", known, at))
            yield Episode(command, target, Effect.CREATES, source=source)
        if first.effect is Effect.DELETES and source[1] in self.names:
            self._put(source, _GONE)
            cause = self._ordered(command)
            yield Episode(command, source, Effect.DELETES, cause, value.expiry)

    def _follow_databases(
        self, command: RecordedCommand, name: str
    ) -> Iterator[Episode]:
        """Follow what touches keys without naming them."""
        if name == "SWAPDB":
            yield from self._swap(command)
        elif name in ("FLUSHALL", "FLUSHDB"):
            everywhere = name == "FLUSHALL"
            for place in self._known_places(command):
                if everywhere or place[0] == command.db:
                    yield from self._flush(command, place)
            if everywhere:
                self._default = _GONE
        else:
            # Which keys are in the slots is not worked out here.
            for place in self._known_places(command):
                if self.state(place).presence != "gone":
                    self._put(place, replace(self.state(place), presence="unsure"))
                    yield Episode(command, place, None)
            self._default = replace(self._default, presence="unsure")

    def _flush(self, command: RecordedCommand, place: Place) -> Iterator[Episode]:
        before = self.state(place)
        self._put(place, _GONE)
        if before.presence != "gone":
            cause = self._ordered(command)
            yield Episode(command, place, Effect.DELETES, cause, before.expiry)

    def _swap(self, command: RecordedCommand) -> Iterator[Episode]:
        one, other = int(command.words[1]), int(command.words[2])
        if one == other:
            return
        at = Moment(self.run, command.start)
        for name in sorted(self.names):
            places = (one, name), (other, name)
            states = [self.state(place) for place in places]
            for target, source, value, over in (
                (places[0], places[1], states[1], states[0]),
                (places[1], places[0], states[0], states[1]),
            ):
                self._put(target, replace(value, born=at))
                if value.presence != "gone":
                    self.links.append(Link(at, target, source, value.born))
                    effect = Effect.CREATES if value.presence == "there" else None
                    yield Episode(command, target, effect, source=source)
                elif over.presence != "gone":
                    cause = self._ordered(command)
                    yield Episode(command, target, Effect.DELETES, cause, over.expiry)

    def _known_places(self, command: RecordedCommand) -> list[Place]:
        """Return the places that are followed, and that something may be at."""
        here = {(command.db, name) for name in self.names}
        return sorted({*self._states, *here, self.key})

    def _unsettle(self, command: RecordedCommand, words: set[bytes]) -> list[Episode]:
        """Take note of a command that may do anything to the keys it names."""
        places = [(command.db, name) for name in sorted(self.names & words)]
        for place in places:
            self._put(
                place, replace(self.state(place), presence="unsure", expiry=UNKNOWN)
            )
        return [Episode(command, place, None) for place in places]

    def _put(self, place: Place, state: State) -> None:
        self._states[place] = _GONE if state.presence == "gone" else state


def sources(command: RecordedCommand, names: frozenset[bytes]) -> Iterator[bytes]:
    """Yield the name of a key whose value comes to one of names by a command."""
    words = command.words
    is_link = command.name.decode("ascii", "replace") in _LINKS and len(words) > _TARGET
    if is_link and words[_TARGET] in names:
        yield words[_SOURCE]


def _has_numbers(command: RecordedCommand) -> bool:
    """Whether what is taken for the number of a database is one."""
    return command.name != b"SWAPDB" or all(map(bytes.isdigit, command.words[1:3]))


class Relevance:
    """Which moments of which keys belong to the story of one key.

    All of the key's own do; of another one those between the beginning of a life and
    the moment when its value came to the key, by whatever way. A value that comes to a
    place begins a life there, so it belongs only to what came later from there.
    """

    def __init__(self, key: Place, links: Sequence[Link]) -> None:
        self._key = key
        self._spans: dict[Place, list[tuple[Moment, Moment]]] = {}
        for link in sorted(links, reverse=True):
            if self._came_from(link.target, link.at) and link.source != key:
                self._spans.setdefault(link.source, []).append((link.born, link.at))

    def _came_from(self, place: Place, moment: Moment) -> bool:
        """Whether what came to a place at a moment is of the story."""
        spans = self._spans.get(place, ())
        return place == self._key or any(b <= moment < end for b, end in spans)

    def holds(self, place: Place, moment: Moment) -> bool:
        """Whether what happened to a key at a moment belongs to the story."""
        if place == self._key:
            return True
        spans = self._spans.get(place, ())
        return any(begin <= moment <= end for begin, end in spans)


_LINKS: Final = frozenset({"COPY", "MOVE", "RENAME", "RENAMENX"})

# Where the keys of a link stand.
_SOURCE: Final = 1
_TARGET: Final = 2

# DEL and one key.
_ONE_KEY: Final = 2

# What changes a key and never takes its last element with the key.
_KEEP: Final = frozenset(
    {
        *(b"EXPIRE", b"EXPIREAT", b"PEXPIRE", b"PEXPIREAT", b"PERSIST", b"GETEX"),
        *(b"LINSERT", b"LPUSHX", b"RPUSHX", b"LSET", b"HPERSIST", b"PFCOUNT"),
        *(b"XACK", b"XCLAIM", b"XAUTOCLAIM", b"XDEL", b"XGROUP", b"XREADGROUP"),
        *(b"XSETID", b"XTRIM"),
    }
)
