"""Read an RDB, from bytes to events, without understanding what is in the values.

Give RdbReader what there is with receive_data() and call next_event() until it returns
NEED_DATA. The split of the bytes never shows: the events (and the error, if one comes)
are the same for one piece and for single bytes.

Invariants:

- A value is passed on as it stands. An event never needs more of it than where it ends.
- Besides the pieces just received nothing is held in memory but the name being read
  (or auxiliary field, or library), of 512 MiB at most, and with values=True one value.
  What a length says is not allocated before the bytes are there. The work is
  proportional to the bytes either way.
- What an opcode or a type means depends on the family and on the version: 243 and 22
  are different things in Redis and Valkey. One that is unknown is an error that names
  it and its offset, and an error of its own kind, because the file may be sound and
  merely newer than this module. Nothing is guessed; the server decides what it loads.
- The checksum is verified. Zero says that the server computed none. Keys come before
  it, so they count when End has come. Damage that looks like an end with a checksum of
  zero leaves `unused_data`: who has a whole file must look there.

Decided against: decoding values (peers that do so break with each new release; only to
compare them does kvtape.tape.rdb.canonical, which then takes what is new as it stands)
and writing RDBs here (kvtape.tape.rdb.rewriting changes expiries, and nothing else). An
envelope of Valkey's development branch (a compressed body, the inline updates of opcode
242) is refused as unknown.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import partial

from kvtape.tape.rdb.events import (
    NEED_DATA,
    Aux,
    End,
    Event,
    Header,
    Key,
    Library,
    ModuleAux,
    NeedData,
    RdbError,
    ResizeDb,
    SelectDb,
    SlotImport,
    SlotInfo,
    UnknownRdbError,
)
from kvtape.tape.rdb.input import Input, ShortError
from kvtape.tape.rdb.strings import (
    UnknownError,
    UnreadableError,
    read_int64,
    read_length,
    read_string,
    string_end,
    take,
)
from kvtape.tape.rdb.values import (
    Walk,
    Walker,
    key_metadata,
    module,
    string,
    walk,
    walkers,
)

HEADER_SIZE = 9
CHECKSUM_SIZE = 8
FIRST_OPCODE = 0x80  # Types count from 0 and opcodes from 255 down, with a wide gap.
FIRST_VERSION_WITH_CHECKSUM = 5
FIRST_VERSION_WITH_METADATA = 13
MAX_SLOTS = 16384

# Called with the data and the position after the opcode. Returns the event, if that is
# one of its own, and where the next part starts.
Opcode = Callable[[bytes, int], tuple[Event | None, int]]

# Called with the bytes of a value, if they are wanted, their number, and for a hash the
# earliest expiry of a field.
Make = Callable[[bytes | None, int, int | None], Event | None]


class RdbReader:
    """Follows one RDB.

    After End it reports NEED_DATA for good, `complete` is true and `unused_data` holds
    what came after the RDB. After an error every call raises that error again.
    """

    def __init__(self, *, values: bool = True) -> None:
        self.complete = False
        self._values = values
        self._input = Input(keep=values)
        self._error: RdbError | None = None
        self._state: Callable[[], Event | None] = self._read_header

        self._magic = b""
        self._version = 0
        self._walkers: dict[int, Walker] = {}
        self._opcodes: dict[int, Opcode] = {}
        self._stretches: dict[int, tuple[Walker, Make]] = {}

        # What opcodes said of the next key.
        self._db = 0
        self._expire_ms: int | None = None
        self._idle: int | None = None
        self._frequency: int | None = None
        self._metadata: bytes | None = None

        # The value that is being walked over, and what to make of it.
        self._walk: Walk
        self._make: Make

    @property
    def offset(self) -> int:
        """How many bytes are dealt with: between two parts, or within a value."""
        return self._input.offset

    @property
    def unused_data(self) -> bytes:
        """What was received beyond the end of the RDB."""
        return self._input.rest() if self.complete else b""

    def receive_data(self, data: bytes | bytearray | memoryview) -> None:
        """Add what was read. Nothing is parsed until next_event()."""
        self._input.receive(data)

    def next_event(self) -> Event | NeedData:
        """Return the next part of the RDB, or NEED_DATA; RdbError if it is damaged."""
        if self._error is not None:
            raise self._error
        if self.complete or not self._input.fill():
            return NEED_DATA
        try:
            while True:
                event = self._state()
                if event is not None:
                    return event
        except IndexError as error:
            self._input.miss(error)
            return NEED_DATA
        except UnreadableError as error:
            self._error = self._explain(error)
            raise self._error from None

    def close(self) -> None:
        """Say that no more data come; RdbError if the RDB is not complete."""
        if self._error is not None:
            raise self._error
        if not self.complete:
            total = self._input.total
            raise RdbError(f"the RDB is cut short: it ends at byte {total}", total)

    def _explain(self, error: UnreadableError) -> RdbError:
        offset = self._input.start + error.position
        kind = UnknownRdbError if isinstance(error, UnknownError) else RdbError
        version = f" ({self._magic.decode()} version {self._version})"
        where = f"at byte {offset} of the RDB{version if self._magic else ''}"
        return kind(f"{error.reason} {where}", offset)

    def _read_header(self) -> Event | None:
        header = take(self._input.data, 0, HEADER_SIZE)
        for magic in (b"REDIS", b"VALKEY"):
            digits = header.removeprefix(magic)
            if header.startswith(magic) and digits.isdigit():
                self._magic = magic
                self._version = int(digits)
                self._walkers = walkers(magic, self._version)
                self._learn_opcodes()
                self._input.position = HEADER_SIZE
                self._state = self._read_part
                return Header(magic, self._version)
        raise UnreadableError(0, f"{header!r} is not how an RDB starts,")

    def _learn_opcodes(self) -> None:
        self._opcodes = {
            244: _slot_info,
            245: _library,
            248: self._idle_time,
            249: self._use_frequency,
            250: _aux,
            251: _resize_db,
            252: self._expire_at_ms,
            253: self._expire_at,
            254: self._select_db,
            255: self._end,
        }
        self._stretches = {247: (module, _module_aux)}
        if self._magic == b"VALKEY":
            self._opcodes[243] = _slot_import
        elif self._version >= FIRST_VERSION_WITH_METADATA:
            self._stretches[243] = (key_metadata, self._keep_metadata)

    def _read_part(self) -> Event | None:
        """Read an opcode or a key; the position moves only when it is there whole."""
        source = self._input
        data, position = source.data, source.position
        code = data[position]
        walker = self._walkers.get(code)
        if walker is None:
            return self._read_opcode(code)
        key, start = read_string(data, position + 1)
        if walker is string:
            # Most values are one string, and need none of the machinery for walks.
            end = string_end(data, start)
            if end <= len(data):
                source.position = end
                value = data[start:end] if self._values else None
                return self._key(key, code, value, end - start)
        return self._read_stretch(walker, start, partial(self._key, key, code))

    def _read_opcode(self, code: int) -> Event | None:
        source = self._input
        opcode = self._opcodes.get(code)
        if opcode is not None:
            event, source.position = opcode(source.data, source.position + 1)
            return event
        if code in self._stretches:
            walker, make = self._stretches[code]
            return self._read_stretch(walker, source.position + 1, make)
        what = "value type" if code < FIRST_OPCODE else "opcode"
        raise UnknownError(source.position, f"unknown {what} {code}")

    def _read_stretch(self, walker: Walker, start: int, make: Make) -> Event | None:
        self._input.begin(start)
        self._walk = walk(self._input, walker)
        self._make = make
        self._state = self._read_on
        return self._read_on()

    def _read_on(self) -> Event | None:
        try:
            next(self._walk)
        except StopIteration as end:
            value, size = self._input.finish()
            self._state = self._read_part
            return self._make(value, size, end.value)
        self._input.suspend()
        raise ShortError(0)

    def _key(
        self,
        key: bytes,
        code: int,
        value: bytes | None,
        size: int,
        field_expire_ms: int | None = None,
    ) -> Key:
        event = Key(
            self._db,
            key,
            code,
            value,
            size,
            self._expire_ms,
            field_expire_ms,
            self._idle,
            self._frequency,
            self._metadata,
        )
        self._expire_ms = self._idle = self._frequency = self._metadata = None
        return event

    def _keep_metadata(self, value: bytes | None, _: int, __: int | None) -> None:
        self._metadata = value

    def _idle_time(self, data: bytes, position: int) -> tuple[None, int]:
        self._idle, position = read_length(data, position)
        return None, position

    def _use_frequency(self, data: bytes, position: int) -> tuple[None, int]:
        self._frequency = data[position]
        return None, position + 1

    def _expire_at_ms(self, data: bytes, position: int) -> tuple[None, int]:
        self._expire_ms, position = read_int64(data, position)
        return None, position

    def _expire_at(self, data: bytes, position: int) -> tuple[None, int]:
        end = position + 4
        seconds = int.from_bytes(take(data, position, end), "little", signed=True)
        self._expire_ms = seconds * 1000
        return None, end

    def _select_db(self, data: bytes, position: int) -> tuple[SelectDb, int]:
        self._db, position = read_length(data, position)
        return SelectDb(self._db), position

    def _end(self, data: bytes, position: int) -> tuple[End, int]:
        checksum, end = 0, position
        if self._version >= FIRST_VERSION_WITH_CHECKSUM:
            end += CHECKSUM_SIZE
            checksum = int.from_bytes(take(data, position, end), "little")
        found = self._input.checksum(position)
        if checksum not in (0, found):
            reason = f"checksum {checksum:016x} should be {found:016x}"
            raise UnreadableError(position, reason)
        self.complete = True
        return End(checksum), end


def _aux(data: bytes, position: int) -> tuple[Aux, int]:
    key, position = read_string(data, position)
    value, position = read_string(data, position)
    return Aux(key, value), position


def _library(data: bytes, position: int) -> tuple[Library, int]:
    source, position = read_string(data, position)
    return Library(source), position


def _resize_db(data: bytes, position: int) -> tuple[ResizeDb, int]:
    keys, position = read_length(data, position)
    expires, position = read_length(data, position)
    return ResizeDb(keys, expires), position


def _slot_info(data: bytes, position: int) -> tuple[SlotInfo, int]:
    slot, position = read_length(data, position)
    keys, position = read_length(data, position)
    expires, position = read_length(data, position)
    return SlotInfo(slot, keys, expires), position


def _slot_import(data: bytes, position: int) -> tuple[SlotImport, int]:
    job, position = read_string(data, position)
    count, end = read_length(data, position)
    if count > MAX_SLOTS:
        raise UnreadableError(position, f"{count} ranges of slots to import")
    ranges = []
    for _ in range(count):
        first, end = read_length(data, end)
        last, end = read_length(data, end)
        ranges.append((first, last))
    return SlotImport(job, tuple(ranges)), end


def _module_aux(value: bytes | None, size: int, _: int | None) -> ModuleAux:
    return ModuleAux(value, size)


def read_header(data: bytes) -> tuple[Header, dict[bytes, bytes]]:
    """Return the header and those of the first auxiliary fields that data hold whole.

    The first few KiB of an RDB are enough for all of them. RdbError if it is not an
    RDB, or shorter than a header.
    """
    reader = RdbReader(values=False)
    reader.receive_data(data)
    header = reader.next_event()
    if not isinstance(header, Header):
        raise RdbError(f"{len(data)} bytes are too few for an RDB", len(data))
    fields = {}
    # What comes after the fields may be unknown to this module; they are good anyway.
    with suppress(UnknownRdbError):
        while isinstance(event := reader.next_event(), Aux):
            fields[event.key] = event.value
    return header, fields
