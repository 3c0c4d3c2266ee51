"""What is sent to a target instead of a command, told from the command alone."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from kvtape.errors import PointError, UsageError
from kvtape.replay.client_form import client_form
from kvtape.replay.moving import moved
from kvtape.replay.selection import Selection, UntoldError, must_be_known
from kvtape.replication.tracker import NO_DB
from kvtape.tape.facts import crc64
from kvtape.tape.glob import parse_glob
from kvtape.tape.ttls import MOST

TIME = 1_000_000
MOMENT = 5_000_000


def words(text: str) -> list[bytes]:
    return [word.encode() for word in text.split()]


def said(command: Sequence[bytes | int]) -> str:
    return " ".join(
        word.decode() if isinstance(word, bytes) else str(word) for word in command
    )


def edited(selection: Selection, text: str, db: int = 0) -> str:
    """Return what is sent, with commas between commands; the same text if it is it."""
    found = selection.edit(words(text), db, TIME, MOMENT, 77)
    return text if found is None else ", ".join(map(said, found))


A = Selection(globs=(parse_glob(b"a*"),))
ONE = Selection(dbs=frozenset({1}))
RENAMED = Selection(prefixes=((b"a:", b"b:"), (b"a:long:", b"c:")))
MAPPED = Selection(db_map=((1, 7), (7, 1)))


@pytest.mark.parametrize(
    ("selection", "text", "expected"),
    [
        (Selection(), "SET a 1", "SET a 1"),
        (Selection(), "ping", ""),
        (Selection(), "MULTI", ""),
        (Selection(), "EXEC", ""),
        (Selection(), "REPLCONF GETACK *", ""),
        (Selection(), "CLUSTER SYNCSLOTS x", ""),
        (Selection(), "PUBLISH c m", ""),
        (Selection(publish=True), "PUBLISH c m", "PUBLISH c m"),
        (Selection(names=frozenset({b"SPUBLISH"})), "SPUBLISH c m", "SPUBLISH c m"),
        (Selection(), "SELECT 3", "SELECT 3"),
        (Selection(), "MODULE.DO a", "MODULE.DO a"),
        (Selection(), "EVALSHA x 1 a", "EVALSHA x 1 a"),
        (Selection(), "FUNCTION FLUSH", "FUNCTION FLUSH"),
        (Selection(), "SCRIPT LOAD x", "SCRIPT LOAD x"),
        (Selection(), "FLUSHALL", "FLUSHALL"),
        (Selection(), "SET a 1 PXAT 1000500", "SET a 1 PXAT 5000500"),
        (Selection(), "XADD a MAXLEN = 9 LIMIT 5 1-1 f v", "XADD a MAXLEN = 9 1-1 f v"),
        (Selection(names=frozenset({b"INCR"})), "incr a", "incr a"),
        (Selection(names=frozenset({b"INCR"})), "DECR a", ""),
        # By keys.
        (A, "SET a 1", "SET a 1"),
        (A, "SET b 1", ""),
        (A, "SET a 1 PX 500", "SET a 1 PXAT 5000500"),
        (A, "DEL b a1 a2", "DEL a1 a2"),
        (A, "UNLINK b a1", "UNLINK a1"),
        (A, "MSET a 1 b 2 a2 3", "MSET a 1 a2 3"),
        (A, "MSETNX b 2 a2 3", "MSETNX a2 3"),
        (A, "MSETEX 2 b 2 a2 3 PXAT 1000500", "MSETEX 1 a2 3 PXAT 5000500"),
        (A, "RENAME a b", "DEL a"),
        (A, "COPY a b", ""),
        (A, "SUNIONSTORE b a c", ""),
        (A, "PFCOUNT a b", ""),
        (A, "LMOVE a b LEFT RIGHT", "LPOP a"),
        (A, "LMOVE a b RIGHT LEFT", "RPOP a"),
        (A, "RPOPLPUSH a b", "RPOP a"),
        (A, "SMOVE a b m", "SREM a m"),
        (A, "FLUSHDB", "FLUSHDB"),
        (A, "SWAPDB 1 2", "SWAPDB 1 2"),
        (A, "FUNCTION FLUSH", ""),
        (A, "SORT a STORE a2", "SORT a STORE a2"),
        # By databases.
        (ONE, "SET a 1", ""),
        (ONE, "MODULE.DO a", ""),
        (ONE, "FLUSHDB", ""),
        (ONE, "FLUSHALL ASYNC", "SELECT 1, FLUSHDB ASYNC"),
        (ONE, "SELECT 1", "SELECT 1"),
        (ONE, "SELECT 0", ""),
        (ONE, "SWAPDB 2 3", ""),
        (ONE, "COPY a b", ""),
        # Under other names.
        (RENAMED, "SET a:1 1", "SET b:1 1"),
        (RENAMED, "SET a:long:1 1 PX 500", "SET c:1 1 PXAT 5000500"),
        (RENAMED, "SET other a:", "SET other a:"),
        (RENAMED, "MSET a:1 a:1 x a:1", "MSET b:1 a:1 x a:1"),
        (MAPPED, "SELECT 1", "SELECT 7"),
        (MAPPED, "SELECT 0", "SELECT 0"),
        (MAPPED, "MOVE a 1", "MOVE a 7"),
        (MAPPED, "COPY a b DB 7 REPLACE", "COPY a b DB 1 REPLACE"),
        (MAPPED, "COPY a b REPLACE", "COPY a b REPLACE"),
        (MAPPED, "SWAPDB 0 1", "SWAPDB 0 7"),
        (MAPPED, "SCRIPT FLUSH", "SCRIPT FLUSH"),
    ],
)
def test_a_command_becomes(selection: Selection, text: str, expected: str) -> None:
    assert edited(selection, text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("SET a 1", "SET a 1"),
        ("MODULE.DO a", "MODULE.DO a"),
        ("FLUSHDB", "FLUSHDB"),
        ("FLUSHALL", "SELECT 1, FLUSHDB, SELECT 1"),
        ("MOVE a 2", "DEL a"),
        ("COPY a b DB 2", ""),
    ],
)
def test_within_the_database_that_is_replayed(text: str, expected: str) -> None:
    assert edited(ONE, text, db=1) == expected


@pytest.mark.parametrize(
    ("selection", "text", "why"),
    [
        (A, "MODULE.DO a", "which words are keys"),
        (RENAMED, "EVALSHA x 1 a", "a script"),
        (A, "RENAME b a", "RENAME with keys"),
        (A, "SMOVE b a m", "SMOVE with keys"),
        (A, "ZUNIONSTORE a 2 a b", "ZUNIONSTORE with keys"),
        (A, "SORT a BY w_* STORE a2", "what other keys hold"),
        (A, "RENAME a", "no server would"),
        (ONE, "SWAPDB 1 2", "SWAPDB with"),
        (Selection(), "SET a 1 PX many", "no server would"),
        (MAPPED, "MOVE a x", "no server would"),
    ],
)
def test_what_cannot_be_told_is_said(selection: Selection, text: str, why: str) -> None:
    with pytest.raises(UntoldError, match=why):
        edited(selection, text)


def test_slots_are_not_trimmed() -> None:
    with pytest.raises(PointError, match=r"TRIMSLOTS.*ends at offset 77"):
        edited(Selection(), "TRIMSLOTS RANGES 1 0 100")


def test_two_databases_do_not_become_one() -> None:
    with pytest.raises(UsageError, match=r"0 and 5 .* would both become 5"):
        edited(Selection(db_map=((0, 5),)), "SELECT 5")


@pytest.mark.parametrize("pairs", [((0, 1), (0, 2)), ((0, 1), (2, 1))])
def test_a_mapping_is_of_one_to_one(pairs: tuple[tuple[int, int], ...]) -> None:
    with pytest.raises(UsageError, match="each database can be mapped once"):
        Selection(db_map=pairs)


def test_the_selected_database_must_be_known() -> None:
    assert must_be_known(0, 5) == 0
    with pytest.raises(PointError, match="at offset 5 is not recorded"):
        must_be_known(NO_DB, 5)


def test_what_needs_no_look_is_known_by_its_name() -> None:
    whole = Selection()
    assert whole.least_words(b"incr") is None
    assert whole.least_words(b"set") == 4
    assert whole.least_words(b"expire") == 1
    assert whole.least_words(b"SELECT") == 1
    assert A.least_words(b"INCR") == 1
    assert not A.has_all
    assert Selection(names=frozenset({b"INCR"})).least_words(b"DECR") == 1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "XADD a NOMKSTREAM MINID = 9 LIMIT 5 1-1 f v",
            "XADD a NOMKSTREAM MINID = 9 1-1 f v",
        ),
        ("XTRIM a MAXLEN = 9 LIMIT 5", "XTRIM a MAXLEN = 9"),
        ("XTRIM a MAXLEN ~ 9 LIMIT 5", None),
        ("XTRIM a MAXLEN = 9", None),
        ("XADD a 1-1 MAXLEN = 9 LIMIT 5 f v", None),
        ("XADD a MAXLEN = 9 1-1 LIMIT v f v", None),
        ("SET a 1", None),
    ],
)
def test_a_client_says_no_limit_of_exact_trimming(
    text: str, expected: str | None
) -> None:
    found = client_form(words(text))
    assert (found and said(found)) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("SET a 1", None),
        ("SET a 1 KEEPTTL", None),
        ("SET a EX EX 5 NX", "SET a EX PXAT 5005000 NX"),
        ("SET a 1 EXAT 1001", "SET a 1 PXAT 5001000"),
        ("set a 1 NX px 5", "set a 1 NX PXAT 5000005"),
        ("SETEX a 5 v", "SET a v PXAT 5005000"),
        ("psetex a 5 v", "SET a v PXAT 5000005"),
        ("EXPIRE a 5 NX", "PEXPIREAT a 5005000 NX"),
        ("pexpire a 5", "PEXPIREAT a 5000005"),
        ("EXPIREAT a 1001", "PEXPIREAT a 5001000"),
        ("PEXPIREAT a 1001", "PEXPIREAT a 4001001"),
        ("PEXPIREAT a -9999999", "PEXPIREAT a 1"),
        ("GETEX a EX 5", "GETEX a PXAT 5005000"),
        ("GETEX a PERSIST", None),
        ("HPEXPIREAT a 1000001 FIELDS 1 f", "HPEXPIREAT a 5000001 FIELDS 1 f"),
        ("HEXPIRE a 5 FIELDS 1 f", "HPEXPIREAT a 5005000 FIELDS 1 f"),
        ("HSETEX a PXAT 1000001 FIELDS 1 f v", "HSETEX a PXAT 5000001 FIELDS 1 f v"),
        ("HSETEX a FIELDS 1 PX v", None),
        ("HSETEX a KEEPTTL FIELDS 1 PX 5", None),
        ("MSETEX 1 PX 5 PX 7", "MSETEX 1 PX 5 PXAT 5000007"),
        ("RESTORE a 0 x REPLACE", None),
        ("RESTORE a 5 x REPLACE", "RESTORE a 5000005 x REPLACE ABSTTL"),
        ("RESTORE a 1000005 x absttl", "RESTORE a 5000005 x absttl"),
        (f"PEXPIREAT a {MOST}", None),
        (f"SET a 1 EXAT {MOST // 1000}", f"SET a 1 PXAT {MOST}"),
        ("INCR a", None),
    ],
)
def test_an_expiry_is_moved(text: str, expected: str | None) -> None:
    found = moved(words(text), TIME, MOMENT)
    assert (found and said(found)) == expected


def test_the_expiries_of_fields_in_a_payload_are_moved() -> None:
    def until(time: int) -> bytes:
        content = b"\x18" + time.to_bytes(8, "little") + b"\x01\x01\x01f\x01v\x0c\x00"
        checksum: int = crc64.calc(content)
        return content + checksum.to_bytes(8, "little")

    sent = [b"RESTORE", b"a", b"0", until(TIME + 7)]
    assert moved(sent, TIME, MOMENT) == [*sent[:3], until(MOMENT + 7)]
    unreadable = [*sent[:3], b"\xf3\x00" + bytes(10)]
    assert moved(unreadable, TIME, MOMENT) is None


@pytest.mark.parametrize(
    "text", ["PEXPIREAT a never", "RESTORE a", "MSETEX x", "SETEX a"]
)
def test_what_no_server_sends_is_an_error(text: str) -> None:
    with pytest.raises((ValueError, IndexError)):
        moved(words(text), TIME, MOMENT)
