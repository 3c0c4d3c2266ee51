"""The story of one key: where it begins, every write to it, and why it went.

The stream is read as often as it takes to know all names that the key's value ever had,
mostly once: a RENAME makes another name matter, from the beginning. Only segments that
may name one of them are read, which their filters tell. What is found is kept until it
is known what of it belongs to the story, unless it is too much; then it is read again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import TypeAlias

from kvtape.audit.search import Search
from kvtape.errors import VerificationError
from kvtape.progress import NoWatch, Watch
from kvtape.storage.commands import Damage, whole_commands
from kvtape.storage.filters import segments_with
from kvtape.storage.parallel import in_order, processes_for
from kvtape.storage.reader import read_snapshot
from kvtape.storage.repository import SourceFolder
from kvtape.storage.segments import read_header
from kvtape.tape.catalogue import Catalogue, Slice, Snapshot
from kvtape.tape.commands import RecordedCommand
from kvtape.tape.facts import ClockDifference
from kvtape.tape.key_expiry import NEVER, at
from kvtape.tape.key_history import Episode, Follower, Moment, Place, Relevance, sources
from kvtape.tape.names import SegmentName
from kvtape.tape.query import KeyQuery
from kvtape.tape.rdb import NEED_DATA, Key, RdbError, RdbReader, UnknownRdbError
from kvtape.tape.span import Hole, Span, runs

# What is assumed of a server that did not tell its time: that its clock and the
# recorder's differ by no more (ms). Hosts that keep their time are far closer.
_ASSUMED = ClockDifference(-1000, 1000)

# So many episodes are kept until it is known which of them belong to the story.
_KEPT = 20_000


@dataclass(frozen=True, slots=True)
class Beginning:
    """What a snapshot has of the key; None if the key was not there."""

    snapshot: Snapshot
    place: Place
    entry: Key | None


@dataclass(frozen=True, slots=True)
class Unread:
    """A snapshot that is newer than this kvtape: what it has of the key is not known.

    reason is what of it nobody knew when this was written.
    """

    snapshot: Snapshot
    reason: str


Item: TypeAlias = Beginning | Unread | Episode | Hole | Damage


def _subject(item: Item) -> RecordedCommand | Item:
    """Return what an item is about: the episodes of one command are about that."""
    return item.command if isinstance(item, Episode) else item


def _holds(name: SegmentName, command: RecordedCommand) -> bool:
    """Whether a segment has a command."""
    is_within = name.start <= command.start and command.end <= name.end
    return is_within and name.replid == command.replid


@dataclass(slots=True)
class KeyHistory:
    """The story of a key, as far as a span has it.

    Read items() to its end; then elsewhere has the other databases in which the name of
    the key was written. Blocks.
    """

    folder: SourceFolder
    catalogue: Catalogue
    span: Span
    key: Place
    watch: Watch = field(default_factory=NoWatch)
    processes: int | None = None
    elsewhere: set[int] = field(default_factory=set)
    _clocks: dict[str, ClockDifference] = field(default_factory=dict)
    _last: SegmentName | None = None

    def items(self) -> Iterator[Item]:
        """Yield what belongs to the story, in order."""
        names = frozenset({self.key[1]})
        while True:
            follower = Follower(self.key, names, self._clock, self._brackets_all)
            more: set[bytes] = set()
            kept: list[tuple[Moment, Item]] | None = []
            for told in self._told(follower, more):
                if kept is not None:
                    kept.append(told)
                    kept = kept if len(kept) <= _KEPT else None
            if not more:
                break
            names |= more
        relevance = Relevance(self.key, follower.links)
        if kept is None:
            again = Follower(self.key, names, self._clock, self._brackets_all)
            yield from self._chosen(self._told(again, more), relevance)
        else:
            yield from self._chosen(kept, relevance)

    def _chosen(
        self, told: Iterable[tuple[Moment, Item]], relevance: Relevance
    ) -> Iterator[Item]:
        """Yield what belongs to the story, and of each command one episode."""
        for _, group in groupby(told, lambda one: _subject(one[1])):
            belonging = [
                item for moment, item in group if self._belongs(item, moment, relevance)
            ]
            own = [
                item
                for item in belonging
                if not isinstance(item, Episode) or item.place == self.key
            ]
            yield from (own or belonging)[:1]

    def _belongs(self, item: Item, moment: Moment, relevance: Relevance) -> bool:
        if not isinstance(item, Beginning | Episode):
            return True
        if isinstance(item, Episode) and item.place[1] == self.key[1]:
            self.elsewhere |= {item.place[0]} - {self.key[0]}
        return relevance.holds(item.place, moment)

    def _told(
        self, follower: Follower, more: set[bytes]
    ) -> Iterator[tuple[Moment, Item]]:
        """Yield all that became of keys of the names followed; add what to follow."""
        # One at either end of what was asked for has nothing before it, or behind.
        holes = {(hole.end_replid, hole.end): hole for hole in self.span.holes}
        for number, run in enumerate(runs(self.catalogue, self.span.slices)):
            hole = holes.pop((run[0].segment.replid, run[0].start), None)
            if number or hole is not None:
                follower.forget()
            if hole is not None:
                yield Moment(follower.run, run[0].start), hole
            yield from self._told_of(run, follower, more)
        for hole in holes.values():
            follower.forget()
            yield Moment(follower.run, hole.start), hole

    def _told_of(
        self, run: Sequence[Slice], follower: Follower, more: set[bytes]
    ) -> Iterator[tuple[Moment, Item]]:
        """Yield the same of a run without a hole."""
        root = self._root(run)
        for content in self._found(run, follower.names):
            if isinstance(content, Damage):
                if root is not None and root.name.offset < content.end:
                    # What it tells is of before the damage, and may be no more after.
                    yield from self._begin(follower, root)
                    root = None
                follower.forget()
                yield Moment(follower.run, content.start), content
                continue
            for command in content:
                if root is not None and root.name.offset <= command.start:
                    yield from self._begin(follower, root)
                    root = None
                more |= {*sources(command, follower.names)} - follower.names
                moment = Moment(follower.run, command.start)
                for episode in follower.follow(command):
                    yield moment, episode
        if root is not None:
            yield from self._begin(follower, root)

    def _begin(
        self, follower: Follower, root: Snapshot
    ) -> Iterator[tuple[Moment, Item]]:
        """Begin with what a snapshot has."""
        offset = root.name.offset
        moment = Moment(follower.run, offset)
        try:
            entries = self._entries(root, follower.names)
        except UnknownRdbError as error:
            yield moment, Unread(root, str(error))
            return
        except VerificationError as error:
            yield moment, Damage(root.name.replid, offset, offset, str(error))
            return
        expiries = {
            place: NEVER if entry.expire_ms is None else at(entry.expire_ms)
            for place, entry in entries.items()
        }
        follower.see_snapshot(expiries, offset)
        for place in sorted({self.key, *entries}):
            yield moment, Beginning(root, place, entries.get(place))

    def _entries(self, root: Snapshot, names: frozenset[bytes]) -> dict[Place, Key]:
        """Return the keys of these names that a snapshot has.

        UnknownRdbError if it is newer than this kvtape: it may have more of them.
        """
        advance = self.watch.stage("snapshot", root.manifest.bytes)
        found = {}
        reader = RdbReader(values=False)
        try:
            for data in read_snapshot(self.folder, root):
                reader.receive_data(data)
                while (event := reader.next_event()) is not NEED_DATA:
                    if isinstance(event, Key) and event.key in names:
                        found[event.db, event.key] = event
                advance(len(data))
        except UnknownRdbError:
            raise
        except RdbError as error:
            where = f"{self.folder.url}/{root.name.rdb}"
            raise VerificationError(f"{where} is damaged: {error}") from None
        return found

    def _root(self, run: Sequence[Slice]) -> Snapshot | None:
        """Return the first snapshot that tells the state somewhere in a run."""
        lineage = self.catalogue.lineage(run[-1].segment.replid)
        within = [
            snapshot
            for snapshot in self.catalogue.snapshots_of(lineage)
            if run[0].start <= snapshot.name.offset <= run[-1].end
        ]
        return within[0] if within else None

    def _found(
        self, run: Sequence[Slice], names: frozenset[bytes]
    ) -> Iterator[list[RecordedCommand] | Damage]:
        """Yield the commands of a run that may concern keys of some names."""
        span = replace(self.span, slices=tuple(run))
        slices, damaged = whole_commands(self.folder, span)
        yield from damaged
        slices = self._needed(slices, names)
        total = sum(slice_.end - slice_.start for slice_ in slices)
        advance = self.watch.stage("stream", total)
        job = Search(KeyQuery(names), list)
        count = processes_for(slices) if self.processes is None else self.processes
        with closing(in_order(self.folder, slices, job, count)) as parts:
            for part in parts:
                advance(part.length)
                if part.content is not None:
                    yield part.content

    def _needed(self, slices: Sequence[Slice], names: frozenset[bytes]) -> list[Slice]:
        """Return those that may concern keys of some names, by their filters."""
        length = sum(slice_.end - slice_.start for slice_ in slices)
        advance = self.watch.stage("filters", length)
        needed = []
        segments = [slice_.segment for slice_ in slices]
        answers = segments_with(self.folder, segments, sorted(names))
        for slice_, answer in zip(slices, answers, strict=True):
            advance(slice_.end - slice_.start)
            if answer.is_needed:
                needed.append(slice_)
        return needed

    def _clock(self, command: RecordedCommand) -> ClockDifference:
        """Return by how much the server's clock was ahead of the recorder's."""
        name = self._last
        if name is None or not _holds(name, command):
            # There may be tens of thousands, and commands come in order.
            segments = self.catalogue.segments[command.replid]
            name = next((one for one in segments if _holds(one, command)), None)
            self._last = name
        if name is None:
            return _ASSUMED
        if name.path not in self._clocks:
            self._clocks[name.path] = read_header(self.folder, name).clock or _ASSUMED
        return self._clocks[name.path]

    @property
    def _brackets_all(self) -> bool:
        """Whether the recorded server is certainly a Redis before 7.0."""
        servers = {s.manifest.server for s in self.catalogue.snapshots}
        return bool(servers) and all(
            server.family == "redis" and (server.version or "").startswith("6.")
            for server in servers
        )
