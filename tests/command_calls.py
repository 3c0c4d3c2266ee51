"""Calls of every command of the table, with the keys marked, for real servers.

A word NAME:TYPE is a key that has a value of this type before the call; of what is
made in front of it `prepare` knows the commands. "none" is for a key that only an
outcome goes to. Words with a $ are filled in: a DUMP, a script's SHA1, another server.
Which calls a server takes differs between releases: one that it refuses says nothing,
but one of each command that it knows must work.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

SCRIPT: Final = b"if KEYS[1] then redis.call('set', KEYS[1], 1) end"
SHA1: Final = hashlib.sha1(SCRIPT).hexdigest().encode()
LIBRARY: Final = b"""#!lua name=lib
redis.register_function('fun', function(keys) redis.call('set', keys[1], 1) end)
"""

# What makes a value of each type; K stands for the key.
TYPES: Final[Mapping[str, str]] = {
    "none": "",
    "string": "SET K 10",
    "ttl": "SET K 10 EX 1000",
    "list": "RPUSH K a b c",
    "one": "RPUSH K a",
    "set": "SADD K a b c",
    "numbers": "SADD K 3 1 2",
    "zset": "ZADD K 1 a 2 b 3 c",
    "hash": "HSET K f 1 g 2",
    "lapsing": "HSET K f 1 g 2; HEXPIRE K 1000 FIELDS 1 f",
    "geo": "GEOADD K 13.4 38.1 a 15.1 37.5 b",
    "hll": "PFADD K a b c",
    # With an entry that is pending, and one that is not.
    "stream": "XADD K 1-1 f v; XADD K 2-1 f v; XGROUP CREATE K g 0;"
    "XREADGROUP GROUP g c COUNT 1 STREAMS K >",
    # The group is called as an option is.
    "streams": "XADD K 1-1 f v; XGROUP CREATE K STREAMS 0",
    "vectors": "VADD K VALUES 2 1 1 e; VADD K VALUES 2 1 2 f",
    "array": "ARSET K 0 a b c",
}

CALLS: Final = """
APPEND a:string x
ARDEL a:array 0
ARDEL a:array 0 1 2
ARDELRANGE a:array 0 2
ARDELRANGE a:array 0 1
ARINSERT a:array x
ARMSET a:array 7 x 9 y
ARRING a:array 3 x
ARSEEK a:array 7
ARSET a:array 7 x
BITFIELD a:string SET u8 0 1
BITFIELD a:string GET u8 0 INCRBY u2 100 1 OVERFLOW SAT INCRBY u2 102 1
BITFIELD a:string
BITOP AND a:string b:string
BITOP OR a:none b:string c:string
BITOP NOT a:none b:string
BITOP DIFF a:none b:string c:string
BLMOVE a:list b:list LEFT RIGHT 0.01
BLMOVE a:one b:none RIGHT LEFT 0.01
BLMPOP 0.01 1 a:list LEFT
BLMPOP 0.01 2 a:list b:list RIGHT COUNT 9
BLPOP a:list 0.01
BLPOP a:none b:one c:list 0.01
BRPOP a:list 0.01
BRPOP a:none b:one c:list 0.01
BRPOPLPUSH a:list b:list 0.01
BRPOPLPUSH a:one b:none 0.01
BZMPOP 0.01 1 a:zset MIN
BZMPOP 0.01 2 a:zset b:zset MAX COUNT 9
BZPOPMAX a:zset 0.01
BZPOPMAX a:none b:zset 0.01
BZPOPMIN a:zset 0.01
BZPOPMIN a:none b:zset 0.01
COPY a:string b:none
COPY a:stream b:string REPLACE
COPY a:list b:none DB 0
COPY a:list b:list REPLACE DB 0
COPY a:hash b:none db 1
COPY a:hash b:none DB 2 REPLACE
DECR a:string
DECRBY a:string 2
DEL a:string
DEL a:string b:none c:list
DELEX a:string
DELEX a:string IFEQ 10
DELEX a:string IFNE 10
DELIFEQ a:string 10
DELIFEQ a:string 11
EVAL $SCRIPT 1 a:string
EVAL $SCRIPT 1 a:string b 1
EVAL $SCRIPT 0
EVAL $SCRIPT 2 a:string b:list x
EVALSHA $SHA1 1 a:string
EVALSHA $SHA1 2 a:string b:list c d
EXPIRE a:string 1000
EXPIRE a:string -1
EXPIRE a:ttl 1 GT
EXPIREAT a:string 9000000000
EXPIREAT a:string 1
FCALL fun 1 a:string
FCALL fun 2 a:string b:list c d
GEOADD a:geo 13 38 c
GEOADD a:geo NX CH 13 38 c 14 38 d
GEORADIUS a:geo 15 37 200 km
GEORADIUS a:geo 15 37 200 km STORE b:none
GEORADIUS a:geo 15 37 200 km STOREDIST b:zset
GEORADIUS a:geo 15 37 200 km COUNT 1 ASC storedist b:none
GEORADIUS a:geo 15 37 200 km DESC store b:none COUNT 1
GEORADIUS a:geo 15 37 200 km STORE x STORE b:none
GEORADIUS a:geo 15 37 200 km STORE x STOREDIST b:none
GEORADIUS a:geo 15 37 200 km STOREDIST x STORE b:none ASC
GEORADIUS a:geo 15 37 1 m STORE b:zset
GEORADIUSBYMEMBER a:geo a 200 km
GEORADIUSBYMEMBER a:geo a 200 km STORE b:none
GEORADIUSBYMEMBER a:geo a 200 km COUNT 2 STOREDIST b:zset
GEORADIUSBYMEMBER a:geo a 200 km STORE x STOREDIST b:none
GEOSEARCHSTORE a:none b:geo FROMMEMBER a BYRADIUS 200 km
GEOSEARCHSTORE a:zset b:geo FROMLONLAT 15 37 BYBOX 400 400 km ASC COUNT 1 STOREDIST
GETDEL a:string
GETEX a:string EX 1000
GETEX a:ttl PERSIST
GETEX a:string
GETSET a:string x
HDEL a:hash f
HDEL a:hash f g
HEXPIRE a:hash 1000 FIELDS 1 f
HEXPIRE a:hash 0 FIELDS 2 f g
HEXPIREAT a:hash 9000000000 FIELDS 1 f
HGETDEL a:hash FIELDS 1 f
HGETDEL a:hash FIELDS 2 f g
HGETEX a:hash EX 1000 FIELDS 1 f
HGETEX a:lapsing PERSIST FIELDS 1 f
HINCRBY a:hash f 1
HINCRBYFLOAT a:hash f 1.5
HMSET a:hash f 3
HPERSIST a:lapsing FIELDS 1 f
HPEXPIRE a:hash 100000 NX FIELDS 1 f
HPEXPIREAT a:hash 9000000000000 FIELDS 1 f
HSET a:hash f 3
HSET a:hash f 3 h 4
HSETEX a:hash EX 100 FIELDS 1 f v
HSETEX a:hash FXX KEEPTTL FIELDS 1 f v
HSETNX a:hash h 1
INCR a:string
INCRBY a:string 2
INCRBYFLOAT a:string 1.5
INCREX a:string
INCREX a:string BYINT 2
LINSERT a:list BEFORE b x
LMOVE a:list b:list LEFT RIGHT
LMOVE a:one b:none LEFT LEFT
LMPOP 1 a:list LEFT
LMPOP 2 a:none b:list RIGHT COUNT 2
LPOP a:list
LPOP a:list 3
LPUSH a:list x y
LPUSHX a:list x
LREM a:list 0 a
LSET a:list 0 x
LTRIM a:list 1 0
LTRIM a:list 1 1
MIGRATE $HOST $PORT a:string 0 1000
MIGRATE $HOST $PORT a:string 0 1000 COPY
MIGRATE $HOST $PORT a:string 0 1000 REPLACE COPY
MIGRATE $HOST $PORT $EMPTY 0 1000 KEYS a:string
MIGRATE $HOST $PORT $EMPTY 0 1000 REPLACE KEYS a:string b:list c:zset
MIGRATE $HOST $PORT $EMPTY 0 1000 AUTH KEYS REPLACE KEYS a:string b:none
MIGRATE $HOST $PORT $EMPTY 0 1000 AUTH2 KEYS KEYS COPY KEYS a:string
MOVE a:string 1
MSET a:string x
MSET a:string 1 b:none c c:list 2
MSETEX 1 a:string x
MSETEX 2 a:string x b:none y NX
MSETEX 2 a:string x b:list y XX
MSETEX 2 a:none 2 b:none EX EX 100
MSETNX a:none x
MSETNX a:none x b:none y
PERSIST a:ttl
PEXPIRE a:string 100000
PEXPIRE a:string 0
PEXPIREAT a:string 9000000000000
PFADD a:hll x y
PFADD a:none
PFCOUNT a:hll
PFCOUNT a:hll b:hll
PFDEBUG TODENSE a:hll
PFDEBUG GETREG a:hll
PFMERGE a:hll
PFMERGE a:hll b:hll
PFMERGE a:none b:hll c:hll
PSETEX a:string 100000 x
RENAME a:string b:none
RENAME a:stream b:string
RENAMENX a:string b:none
RENAMENX a:string b:string
RESTORE a:none 0 $DUMP
RESTORE a:list 100000 $DUMP REPLACE
RESTORE a:list 1 $DUMP REPLACE ABSTTL
RESTORE-ASKING a:none 0 $DUMP
RESTORE-ASKING a:list 100000 $DUMP REPLACE
RPOP a:list
RPOP a:list 9
RPOPLPUSH a:list b:list
RPOPLPUSH a:one b:none
RPUSH a:list x y
RPUSHX a:list x y
SADD a:set x y
SDIFFSTORE a:none b:set
SDIFFSTORE a:set b:set c:set
SET a:string x
SET a:list x EX 100
SET a:string x XX KEEPTTL GET
SET a:string x PXAT 1
SETBIT a:string 3 0
SETBIT a:string 3 1
SETEX a:string 100 x
SETNX a:none x
SETRANGE a:string 3 x
SETRANGE a:string 0 $EMPTY
SINTERSTORE a:none b:set c:set
SINTERSTORE a:zset b:set
SMOVE a:set b:set a
SMOVE a:set b:none a
SORT a:numbers
SORT a:numbers DESC STORE b:none
SORT a:numbers STORE b:list LIMIT 0 1
SORT a:numbers BY STORE GET STORE GET # store b:none ALPHA
SORT a:numbers STORE b:none BY STORE GET STORE GET #
SORT a:numbers BY nosort STORE x STORE b:none
SORT a:numbers BY BY GET GET GET STORE GET x-* STORE b:list ASC
SORT a:numbers STORE x LIMIT 1 1 STORE y store b:none
SPOP a:set
SPOP a:set 3
SREM a:set a
SREM a:set a b c
SUNIONSTORE a:none b:set
SUNIONSTORE a:string b:set c:set
UNLINK a:string
UNLINK a:string b:none c:list
VADD a:vectors VALUES 2 1 2 g
VADD a:vectors VALUES 2 3 2 g SETATTR {} M 8
VREM a:vectors e
VSETATTR a:vectors e {"x":1}
XACK a:stream g 1-1
XACKDEL a:stream g IDS 1 1-1
XACKDEL a:stream g DELREF IDS 2 1-1 2-1
XADD a:stream * f v
XADD a:stream NOMKSTREAM MAXLEN = 1 5-1 f v
XAUTOCLAIM a:stream g d 0 0
XAUTOCLAIM a:stream g d 0 0 COUNT 1 JUSTID
XCFGSET a:stream IDMP-DURATION 50
XCLAIM a:stream g d 0 1-1
XCLAIM a:stream g d 0 2-1 TIME 1 RETRYCOUNT 1 FORCE JUSTID LASTID 2-1
XDEL a:stream 1-1
XDEL a:stream 1-1 2-1
XDELEX a:stream IDS 1 1-1
XGROUP CREATE a:stream h $
XGROUP CREATE a:stream h 0 MKSTREAM
XGROUP CREATECONSUMER a:stream g d
XGROUP DELCONSUMER a:stream g c
XGROUP DESTROY a:stream g
XGROUP SETID a:stream g 0
XIDMPRECORD a:stream p i 1-1
XNACK a:stream g SILENT IDS 1 1-1
XREADGROUP GROUP g d STREAMS a:stream >
XREADGROUP GROUP g d COUNT 1 NOACK STREAMS a:stream >
XREADGROUP GROUP g d BLOCK 1 streams a:stream b:stream > >
XREADGROUP GROUP STREAMS STREAMS STREAMS a:streams >
XREADGROUP GROUP STREAMS STREAMS COUNT 3 STREAMS a:streams b:streams > 0
XREADGROUP COUNT 2 GROUP g STREAMS STREAMS a:stream >
XREADGROUP GROUP g d CLAIM 1 STREAMS a:stream >
XSETID a:stream 7-1
XSETID a:stream 7-1 ENTRIESADDED 9 MAXDELETEDID 0-0
XTRIM a:stream MAXLEN 1
XTRIM a:stream MINID = 9
ZADD a:zset 1 x
ZADD a:zset GT CH 9 a 9 b
ZADD a:zset INCR 1 x
ZDIFFSTORE a:none 1 b:zset
ZDIFFSTORE a:zset 2 b:zset c:set
ZINCRBY a:zset 1 x
ZINTERSTORE a:none 2 b:zset c:set WEIGHTS 1 2 AGGREGATE MAX
ZINTERSTORE a:string 1 b:zset
ZMPOP 1 a:zset MIN
ZMPOP 2 a:none b:zset MAX COUNT 3
ZPOPMAX a:zset
ZPOPMAX a:zset 3
ZPOPMIN a:zset
ZRANGESTORE a:none b:zset 0 -1
ZRANGESTORE a:string b:zset 0 1 REV
ZRANGESTORE a:zset b:zset 7 9
ZREM a:zset a
ZREM a:zset a b c
ZREMRANGEBYLEX a:zset - +
ZREMRANGEBYLEX a:zset - [a
ZREMRANGEBYRANK a:zset 0 0
ZREMRANGEBYSCORE a:zset 2 9
ZUNIONSTORE a:none 1 b:zset
ZUNIONSTORE a:list 2 b:zset c:zset WEIGHTS 1 2
"""


@dataclass(frozen=True, slots=True)
class Call:
    """A call as its words, and the types of the keys among them by their index."""

    words: tuple[bytes, ...]
    types: Mapping[int, str]

    def with_keys(self, names: Sequence[bytes]) -> Call:
        """Return it with other keys; those that are one key stay one key."""
        before = sorted({self.words[at] for at in self.types})
        renamed = dict(zip(before, names, strict=False))
        words = tuple(
            renamed[word] if at in self.types else word
            for at, word in enumerate(self.words)
        )
        return Call(words, self.types)

    def filled(self, words: Mapping[bytes, bytes]) -> Call:
        """Return it with the words that begin with a $ filled in, if they are known."""
        return Call(tuple(words.get(word, word) for word in self.words), self.types)


def read(line: str) -> Call:
    """Read a call as it stands above."""
    words: list[bytes] = []
    types: dict[int, str] = {}
    for at, word in enumerate(line.split()):
        key, is_key, type_ = word.rpartition(":")
        if is_key and type_ in TYPES:
            types[at] = type_
            words.append(key.encode())
        else:
            words.append(word.encode())
    return Call(tuple(words), types)


ALL: Final = tuple(read(line) for line in CALLS.strip().splitlines())


def prepare(call: Call, at: int) -> list[list[bytes]]:
    """Return the commands that make the value of the key there."""
    key = call.words[at]
    commands = TYPES[call.types[at]].split(";")
    return [
        [key if word == "K" else word.encode() for word in command.split()]
        for command in commands
        if command
    ]
