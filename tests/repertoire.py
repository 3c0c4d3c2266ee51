"""The repertoire of the workload: every operation it knows, as tables of text.

A line is one operation. Words in capitals, digits and symbols are sent as they stand,
each word of `operations.WORDS` is drawn anew for each use ("k" is a key of the family,
"same" the line's first key again, "v" a value, "soon" an expiry that passes), a
script's name stands for its text, and " ; " joins commands that belong together.

Left out on purpose, since the servers themselves do not replicate it and a primary
then differs from its own replica:

- XREADGROUP of a consumer's history (an id instead of ">"): it raises delivery counts
  on the primary alone (seen on all six releases).
- Writing to a HyperLogLog with string commands: PFADD on a damaged one can fail after
  it added some elements, and these are not streamed (seen on all six).
- HINCRBYFLOAT beside field expiries on Redis 7.4 and 8.0, which stream it as a plain
  HSET, so that a replica loses the field's expiry (seen on 8.0.2): see workload.py.
"""

from __future__ import annotations

from typing import Final

SCRIPTS: Final = {
    "several": """
        redis.call('SET', KEYS[1], ARGV[1])
        redis.call('HSET', KEYS[2], ARGV[2], ARGV[1])
        redis.call('PEXPIRE', KEYS[1], 3600000)
        return redis.call('RPUSH', KEYS[3], ARGV[1], ARGV[2])""",
    # Fails after its first write, which stays and is streamed.
    "halfway": """
        redis.call('RPUSH', KEYS[1], ARGV[1])
        redis.call('INCR', KEYS[1])
        redis.call('RPUSH', KEYS[2], ARGV[1])""",
    "tolerant": """
        for _, key in ipairs(KEYS) do
            redis.pcall('SADD', key, ARGV[1])
            redis.pcall('APPEND', key, ARGV[1])
        end""",
    # What a script reads or rolls is random; only its effects may be streamed.
    "random": """
        local member = redis.call('SPOP', KEYS[1])
        local time = redis.call('TIME')
        redis.call('ZADD', KEYS[2], math.random(1000), member or time[2])
        redis.call('XADD', KEYS[3], '*', 'at', time[1] .. '.' .. time[2])""",
    "elsewhere": """
        redis.call('SELECT', ARGV[1])
        redis.call('LPUSH', KEYS[1], ARGV[2])
        redis.call('EXPIRE', KEYS[1], 7200)""",
    # More than a node of the stream, so that "MAXLEN ~" has something to trim.
    "burst": """
        for i = 1, 130 do
            redis.call('XADD', KEYS[1], 'MAXLEN', '~', ARGV[1], '*', 'i', i)
        end""",
    "settle": """
        local pending = redis.call('XPENDING', KEYS[1], ARGV[1], '-', '+', 2)
        for _, entry in ipairs(pending) do
            redis.call('XACK', KEYS[1], ARGV[1], entry[1])
            redis.call('XDEL', KEYS[1], entry[1])
        end""",
    "recreate": """
        local dump = redis.call('DUMP', KEYS[1])
        if dump then
            redis.call('DEL', KEYS[1])
            redis.call('RESTORE', KEYS[2], ARGV[1], dump, 'REPLACE')
        end""",
    "library": """#!lua name=%(name)s
        redis.register_function('call%(name)s', function(keys, args)
            redis.call('SET', keys[1], args[1] .. '%(release)d')
            return redis.call('LPUSH', keys[2], args[1])
        end)""",
}

# Family of keys, weight, and one operation per line.
TABLES: Final = {
    ("string", 14): """
        SET k v
        SET k v EX hours
        SET k v PX soon
        SET k v EXAT later
        SET k v PXAT later_ms
        SET k v PXAT soon_at_ms
        SET k v KEEPTTL
        SET k v NX
        SET k v XX PX soon
        SET k v XX GET EX hours
        SET k v PXAT past_ms
        SETEX k hours v
        SETEX k 1 v
        PSETEX k soon v
        SETNX k v
        MSET k v k v k v
        MSETNX k v k v
        GETSET k v
        GETDEL k
        GETEX k EX hours
        GETEX k PX soon
        GETEX k PXAT later_ms
        GETEX k PXAT past_ms
        GETEX k PERSIST
        APPEND k v
        SETRANGE k n v
        GET k""",
    ("counter", 10): """
        INCR k
        INCR k ; PEXPIRE same soon
        DECR k
        INCRBY k n
        DECRBY k n
        INCRBYFLOAT k float
        SET k n
        SET k n PX soon
        SET k n EX hours
        APPEND k n
        PEXPIRE k soon
        PERSIST k""",
    ("bits", 5): """
        SETBIT k n 1
        SETBIT k n 0
        BITFIELD k SET u8 #3 n INCRBY i5 n n
        BITFIELD k OVERFLOW SAT INCRBY u4 n 9 OVERFLOW FAIL INCRBY u2 n 3
        BITOP AND k k k
        BITOP OR k k k
        BITOP XOR k k k
        BITOP NOT k k
        SET k v""",
    ("hll", 4): """
        PFADD k m m m
        PFADD k bulk
        PFMERGE k k k
        PFCOUNT k
        PFCOUNT k k""",
    ("list", 12): """
        RPUSH k m m m
        LPUSH k m v
        RPUSH k v
        LPUSHX k m
        RPUSHX k m
        RPUSH k bulk
        LPOP k
        RPOP k n
        LMOVE k k LEFT RIGHT
        LMOVE k k RIGHT RIGHT
        RPOPLPUSH k k
        LINSERT k BEFORE m v
        LINSERT k AFTER m m
        LSET k 1 v
        LREM k 1 m
        LREM k -2 m
        LTRIM k 1 -2
        LTRIM k -40 -1
        RPUSH k v ; BLPOP same 0.05
        RPUSH k m m ; BRPOP k same 0.05
        RPUSH k m v ; BLMOVE same k RIGHT LEFT 0.05
        RPUSH k m v ; BRPOPLPUSH same k 0.05""",
    ("set", 9): """
        SADD k m m m
        SADD k n n
        SADD k v
        SADD k bulk
        SREM k m m m m
        SPOP k
        SPOP k 3
        SPOP k 1000
        SMOVE k k m
        SINTERSTORE k k k
        SUNIONSTORE k k k
        SDIFFSTORE k k k
        SORT k ALPHA STORE k
        SORT k BY nosort LIMIT 0 20 STORE k""",
    ("zset", 11): """
        ZADD k score m score m score m
        ZADD k score bulk_m
        ZADD k NX CH score m
        ZADD k XX GT score m
        ZADD k LT score m
        ZADD k INCR float m
        ZINCRBY k float m
        ZREM k m m
        ZPOPMIN k
        ZPOPMAX k 3
        ZADD k score m ; BZPOPMIN same 0.05
        ZADD k score m ; BZPOPMAX k same 0.05
        ZREMRANGEBYRANK k 0 1
        ZREMRANGEBYSCORE k -5 (5
        ZREMRANGEBYLEX k [a (b
        ZRANGESTORE k k 0 10
        ZRANGESTORE k k +inf -inf BYSCORE REV LIMIT 1 7
        ZUNIONSTORE k 2 k k WEIGHTS 2 float
        ZINTERSTORE k 2 k k AGGREGATE MAX
        ZDIFFSTORE k 2 k k
        SORT k ALPHA DESC STORE k""",
    ("geo", 4): """
        GEOADD k longitude latitude m longitude latitude m
        GEOADD k NX CH longitude latitude m
        GEOSEARCHSTORE k k FROMLONLAT 3 5 BYRADIUS 3000 km ASC COUNT 10
        GEOSEARCHSTORE k k FROMMEMBER m BYBOX 900 900 km STOREDIST
        GEORADIUS k 3 5 3000 km STORE k
        ZREM k m""",
    ("hash", 9): """
        HSET k f v
        HSET k f m f m f v
        HMSET k f m f m
        HSET k bulk
        HSETNX k f v
        HDEL k f f
        HINCRBY k c n
        HSET k c n""",
    ("hash", 1): "HINCRBYFLOAT k c float",
    ("stream", 12): """
        XADD k * f v
        XADD k * f m f v
        XADD k NOMKSTREAM * f m
        XADD k MAXLEN ~ 100 * f m
        XADD k MAXLEN = 30 * f m
        XADD k MAXLEN ~ 90 LIMIT 200 * f m
        XTRIM k MAXLEN ~ 110
        XTRIM k MAXLEN = 20
        EVAL burst 1 k 90
        EVAL burst 1 k 500
        XGROUP CREATE k group 0 MKSTREAM
        XGROUP CREATE k group 0 MKSTREAM ; XGROUP CREATECONSUMER same group consumer
        XGROUP CREATE k group $ MKSTREAM
        XGROUP CREATECONSUMER k group consumer
        XGROUP DELCONSUMER k group consumer
        XGROUP DESTROY k group
        XGROUP SETID k group 0
        XREADGROUP GROUP group consumer COUNT 3 STREAMS k >
        XREADGROUP GROUP group consumer COUNT 2 NOACK STREAMS k >
        XREADGROUP GROUP group consumer STREAMS k k > >
        XAUTOCLAIM k group consumer 0 0 COUNT 3
        XAUTOCLAIM k group consumer 0 0 COUNT 2 JUSTID
        EVAL settle 1 k group""",
    ("log", 12): """
        XADD k newid f v
        XADD k newid f m ; XADD same newid f m ; XADD same newid f v
        XADD k MAXLEN ~ 9 newid f m
        XADD k MINID id newid f m
        XGROUP CREATE k group 0 MKSTREAM
        XGROUP CREATE k group 0 MKSTREAM
        XGROUP CREATE k group id MKSTREAM
        XGROUP SETID k group id
        XGROUP SETID k group $
        XREADGROUP GROUP group consumer COUNT 4 STREAMS k >
        XREADGROUP GROUP group consumer COUNT 4 STREAMS k >
        XREADGROUP GROUP group consumer COUNT 1 NOACK STREAMS k >
        XACK k group id id id
        XDEL k id
        XCLAIM k group consumer 0 id id
        XCLAIM k group consumer 0 id id JUSTID
        XCLAIM k group consumer 0 id IDLE 5000 RETRYCOUNT 7
        XCLAIM k group consumer 0 id FORCE
        XAUTOCLAIM k group consumer 0 id COUNT 3
        XTRIM k MINID id
        XSETID k newid""",
    ("any", 22): """
        EXPIRE k hours
        EXPIRE k 1
        PEXPIRE k soon
        PEXPIRE k soon ; PERSIST same
        EXPIREAT k later
        PEXPIREAT k later_ms
        PEXPIREAT k soon_at_ms
        PEXPIREAT k past_ms
        EXPIRE k -1
        PERSIST k
        DEL k k
        DEL k
        UNLINK k k
        RENAME k k
        RENAMENX k k
        COPY k k
        COPY k k REPLACE
        COPY k k DB db REPLACE
        MOVE k db
        TOUCH k
        RESTORE k 0 dump REPLACE
        RESTORE k hours_ms dump
        RESTORE k soon dump REPLACE
        RESTORE k later_ms dump REPLACE ABSTTL
        RESTORE k past_ms dump REPLACE ABSTTL
        EXISTS k k k
        TYPE k
        TTL k""",
    ("unsealed", 4): """
        EVAL several 3 k k k v f
        EVALSHA sha_several 3 k k k v f
        SCRIPT LOAD several
        EVAL halfway 2 k k m
        EVAL tolerant 3 k k k m
        EVAL random 3 k k k
        SCRIPT LOAD random ; EVALSHA sha_random 3 k k k
        EVAL elsewhere 1 k db m
        EVAL recreate 2 k k hours_ms
        PUBLISH channel v""",
    ("any", 0.3): "SWAPDB db db\nSCRIPT FLUSH",
}

# Only on servers that have the command it is listed under.
EXTRAS: Final = {
    ("FCALL", "any", 6): """
        FUNCTION LOAD REPLACE library
        FUNCTION LOAD library
        FCALL function 2 k k m
        FCALL function 2 k k v
        FCALL function 2 k k v
        FUNCTION DELETE name
        FUNCTION RESTORE functions REPLACE
        EXPIRE k hours NX
        EXPIRE k hours GT
        PEXPIRE k soon LT
        EXPIREAT k later XX
        SET k v NX GET
        SPUBLISH channel v""",
    ("FCALL", "any", 0.2): "FUNCTION FLUSH ASYNC",
    ("LMPOP", "list", 1): """
        LMPOP 2 k k LEFT COUNT 3
        RPUSH k m m m ; BLMPOP 0.05 2 k same RIGHT COUNT 2""",
    ("ZMPOP", "zset", 1): """
        ZMPOP 2 k k MIN COUNT 3
        ZADD k score m ; BZMPOP 0.05 2 k same MAX""",
    ("FCALL", "log", 1): """
        XGROUP CREATE k group id ENTRIESREAD 3
        XGROUP SETID k group id ENTRIESREAD 2
        XSETID k newid ENTRIESADDED 1000 MAXDELETEDID id""",
    ("DELIFEQ", "counter", 1): "SET k 5 ; DELIFEQ same 5\nSET k 5 ; SET same 6 IFEQ 5",
    ("MSETEX", "string", 1): "MSETEX 2 k v k v PX soon\nMSETEX 2 k v k v EX hours NX",
    ("HEXPIRE", "fields", 12): """
        HSET k f v f v f m
        HSET k f v ; HPEXPIRE same lapse FIELDS 3 f f f
        HEXPIRE k hours FIELDS 2 f f
        HPEXPIRE k lapse FIELDS 2 f f
        HPEXPIRE k lapse GT FIELDS 1 f
        HPEXPIREAT k lapse_at FIELDS 2 f f
        HEXPIREAT k later NX FIELDS 1 f
        HPEXPIREAT k past_ms FIELDS 1 f
        HPERSIST k FIELDS 2 f f
        HDEL k f
        HINCRBY k c n
        HSET k c n
        HPEXPIRE k lapse FIELDS 2 c c""",
    ("HSETEX", "fields", 6): """
        HSETEX k EX hours FIELDS 2 f v f m
        HSETEX k PX lapse FIELDS 1 f v
        HSETEX k FNX PXAT lapse_at FIELDS 1 f m
        HSETEX k FXX KEEPTTL FIELDS 1 f v
        HGETEX k PX lapse FIELDS 2 f f
        HGETEX k PERSIST FIELDS 1 f
        HGETDEL k FIELDS 1 f""",
}

# What waits on another connection, and what then serves it.
BLOCKED: Final = (
    ("list", "BLPOP k k 2", "RPUSH same m v"),
    ("list", "BRPOPLPUSH k k 2", "RPUSH same m v"),
    ("list", "BLMOVE k k LEFT RIGHT 2", "MULTI ; LPUSH same m ; LPUSH same v ; EXEC"),
    ("zset", "BZPOPMAX k k 2", "ZADD same score m score m"),
    (
        "log",
        "XREADGROUP GROUP group consumer BLOCK 2000 STREAMS k >",
        "XADD same newid f m ; XADD same newid f v",
    ),
)
