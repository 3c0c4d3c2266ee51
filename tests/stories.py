"""What the story of each key has to be, worked out from what is known to be written.

A second implementation, from the other end: it has the whole truth (who deleted what,
when a last element was taken) and follows values, where kvtape has the stream and
follows names. Nothing of kvtape is imported here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from deeds import Place, Touch
from diary import Row, Written

# What may take the last element, which the stream does not tell.
_TAKES: Final = frozenset(
    {b"LPOP", b"RPOP", b"RPOPLPUSH", b"SREM", b"ZPOPMIN", b"ZPOPMAX", b"HDEL"}
)
_AT_LARGE: Final = frozenset({b"SWAPDB", b"FLUSHDB", b"FLUSHALL"})
_BY_COMMAND: Final = _AT_LARGE | {b"RENAME", b"RENAMENX", b"MOVE"}


@dataclass(frozen=True, slots=True)
class Death:
    """The deletion of a key: which causes may be told of it.

    Where the truth is "expired" that is one of two, and the test counts.
    """

    causes: frozenset[str]
    is_expiry: bool = False


@dataclass(slots=True)
class Story:
    """The writes that belong to a key's story, by number.

    Those that only may are of a time before a last element was taken, which no reader
    of the stream can know. deaths are the key's own.
    """

    needed: set[int] = field(default_factory=set)
    possible: set[int] = field(default_factory=set)
    deaths: dict[int, Death] = field(default_factory=dict)


@dataclass(slots=True)
class _Life:
    """A value: what was done to it so far, under whatever names."""

    needed: set[int] = field(default_factory=set)
    possible: set[int] = field(default_factory=set)
    may_expire: bool = False
    is_sure: bool = True


@dataclass(slots=True)
class Stories:
    """The stories of all keys, of what was written."""

    written: Sequence[Written]
    brackets_all: bool
    of: dict[Place, Story] = field(default_factory=dict)
    alive: dict[Place, _Life] = field(default_factory=dict)
    # Those that may be gone: whose last element was taken, or that may have expired
    # before there was a stream to say so.
    _faded: dict[Place, _Life] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for number in range(len(self.written)):
            for touch in self._touches(number):
                self._take(number, touch)

    def story(self, place: Place) -> Story:
        """Return the story of a key."""
        return self.of.setdefault(place, Story())

    def _touches(self, number: int) -> Sequence[Touch]:
        one = self.written[number]
        if one.entry is None or one.entry.words[0] not in _AT_LARGE:
            return one.touches
        # Whatever names a key has looked for it; these take what is there.
        if one.row is not None:
            self._fade_what_may_have_expired_early()
        words = one.entry.words
        if words[0] == b"SWAPDB":
            self._swap(
                number, *(int(word) for word in words[1:] if isinstance(word, bytes))
            )
            return ()
        everywhere = words[0] == b"FLUSHALL"
        for place in [*self.alive, *self._faded]:
            if everywhere or place[0] == one.entry.db:
                self._delete(number, place)
        return ()

    def _take(self, number: int, touch: Touch) -> None:
        place = touch.place
        if touch.effect == "deletes":
            self._delete(number, place)
            return
        if touch.effect == "names":
            self.story(place).possible.add(number)
            return
        if touch.effect == "comes":
            assert touch.source is not None
            self._come(number, place, self._life(touch.source))
            return
        life = self._life(place)
        for known in (life, self.story(place)):
            known.needed.add(number)
        if touch.has_ttl is not None:
            life.may_expire = touch.has_ttl
        entry = self.written[number].entry
        assert entry is not None
        life.is_sure = entry.words[0] not in _TAKES
        if touch.effect == "empties":
            self._faded[place] = self.alive.pop(place)

    def _fade_what_may_have_expired_early(self) -> None:
        """Be unsure of keys with a TTL that nothing was done to since."""
        for place, life in list(self.alive.items()):
            if life.may_expire and all(
                self.written[number].row is None for number in life.needed
            ):
                self._faded[place] = self.alive.pop(place)

    def _life(self, place: Place) -> _Life:
        """Return the life of a key, which begins if it was not there."""
        if place not in self.alive:
            faded = self._faded.pop(place, _Life())
            possible = faded.needed | faded.possible
            self.alive[place] = _Life(
                possible=possible, may_expire=faded.may_expire and bool(possible)
            )
        return self.alive[place]

    def _come(self, number: int, place: Place, life: _Life) -> None:
        """Let a value come to a key."""
        story = self.story(place)
        story.needed |= life.needed | {number}
        story.possible |= life.possible
        self._faded.pop(place, None)
        self.alive[place] = replace(
            life, needed=life.needed | {number}, possible=set(life.possible)
        )

    def _delete(self, number: int, place: Place) -> None:
        story, life = self.story(place), self.alive.pop(place, None)
        if life is None:
            story.possible.add(number)
            life = self._faded.pop(place, _Life(is_sure=False))
            life.is_sure = False
        else:
            story.needed.add(number)
        story.deaths[number] = self._death(self.written[number], life)

    def _swap(self, number: int, one: int, other: int) -> None:
        places = {
            (db, name)
            for there, name in [*self.alive, *self._faded]
            if there in (one, other)
            for db in (one, other)
        }
        lives = {place: self.alive.pop(place, None) for place in places}
        faded = {place: self._faded.pop(place, None) for place in places}
        for place in places:
            source = (one + other - place[0], place[1])
            story = self.story(place)
            if (life := lives[source]) is not None:
                self._come(number, place, life)
            elif (gone := faded[source]) is not None:
                possible = gone.needed | gone.possible | {number}
                story.possible |= possible
                self._faded[place] = replace(gone, needed=set(), possible=possible)
            # What was there went, unless it had before.
            if lives[place] is not None:
                story.needed.add(number)
            story.possible.add(number)
            if lives[source] is None and faded[source] is None:
                there = lives[place] or _Life(is_sure=False)
                story.deaths[number] = self._death(self.written[number], there)

    def _death(self, one: Written, life: _Life) -> Death:
        """Return what may be told of a deletion, as strictly as can be known."""
        if one.maker != "client":
            is_expiry = one.maker == "expiry"
            causes = {"unknown", "expired"} if is_expiry else {"unknown"}
            return Death(frozenset(causes), is_expiry)
        if one.row is None:
            return Death(frozenset())
        return Death(frozenset(self._causes(one.row, life)))

    def _causes(self, row: Row, life: _Life) -> set[str]:
        """Return what may be told of what a client deleted."""
        name, *keys = row.words
        ordered = "command" if row.transaction is None else "transaction"
        if name in _BY_COMMAND:
            return {ordered}
        if len(keys) > 1:
            return {ordered} if life.is_sure else {ordered, "unknown"}
        is_marked = self.brackets_all and not name.isupper()
        if row.transaction is None and not is_marked:
            return {"unknown"}
        # In a transaction, it may also have expired when it was written to.
        may_be_other = name.isupper() and life.may_expire
        return {ordered, "unknown"} if may_be_other else {ordered}


def alive_before(written: Sequence[Written]) -> Iterator[tuple[Place, bool]]:
    """Yield the keys that were there when the recording began, and if they expire."""
    early = [one for one in written if one.row is None]
    for place, life in Stories(early, brackets_all=False).alive.items():
        yield place, life.may_expire
