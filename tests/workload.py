"""The workload writer: seeded operations of every kind, done on a real server.

Hides how operations are sent: in pipelines of mixed size, with what must come from a
reply asked for just before, and a second connection for those that wait. It is an
independent client (nothing of kvtape is imported) and knows nothing of what the data
should look like afterwards; that is read back by the oracle.

Operations collide on purpose, so a server may refuse one; refusals are counted by
command and kind, and so are successes, for a test that every kind of write was done.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Final, Self

import redis

from operations import (
    OPTIONAL_COMMANDS,
    Command,
    FieldTtls,
    Operation,
    Operations,
    Payload,
)
from plain_client import Argument, PlainClient, Reply, as_bytes, as_list

PIPELINE_SIZES: Final = (1, 1, 2, 3, 5, 8, 20, 60)
SUBCOMMANDS: Final = frozenset({"XGROUP", "FUNCTION", "SCRIPT"})
EVICTED_ENOUGH: Final = 20
EVICTION_ROUNDS: Final = 2000
# How long a second connection is waited for until it waits itself.
BLOCK_TIMEOUT: Final = 1.0


class Workload:
    """Does operations on one server; the seed decides which.

    `server_name` is what the server should be ("valkey-9.1"); another release is
    refused, so that a run cannot test the wrong server. `field_ttls` says whether hash
    fields expire: not at all, only after hours, or also within the run.

    `done` counts the commands that succeeded, `errors` those that were refused, by
    command and kind of error. For one thread; leaving the context closes it.
    """

    def __init__(
        self,
        host: str,
        port: int,
        seed: int,
        server_name: str,
        *,
        field_ttls: FieldTtls = "long",
        databases: tuple[int, ...] = (0, 1, 3, 9, 15),
        max_value: int = 4096,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.done: Counter[str] = Counter()
        self.errors: Counter[tuple[str, str]] = Counter()
        self._rng = random.Random(seed)
        client = redis.Redis(host=host, port=port)
        self._client = PlainClient(client)
        self._waiting = PlainClient(client)
        check_release(self._client, server_name)
        commands = self._client.knows(*OPTIONAL_COMMANDS)
        # Redis 7.4 and 8.0 stream HINCRBYFLOAT as a plain HSET, which drops the
        # field's expiry on a replica; a primary there differs from its own replica.
        loses_expiries = server_name.startswith("redis") and "HEXPIRE" in commands
        self._operations = Operations(
            seed,
            commands,
            databases=databases,
            field_ttls=field_ttls,
            float_in_hashes=field_ttls == "none" or not loses_expiries,
            max_value=max_value,
            now=now,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._client.close()
        self._waiting.close()

    def step(self, count: int) -> None:
        """Do the next `count` operations; all have been answered on return."""
        while count > 0:
            size = min(count, self._rng.choice(PIPELINE_SIZES))
            self._do([self._operations.next() for _ in range(size)])
            count -= size

    def large_value(self, size: int) -> None:
        """Write one string of `size` bytes that does not compress."""
        value = self._rng.randbytes(size)
        self._run([("SELECT", 0), ("SET", f"large:{size}", value)])

    def evictions(self) -> None:
        """Write under a memory limit until keys were evicted; lift the limit again."""
        limits = ("maxmemory", "maxmemory-policy")
        before = [as_list(self._client.ask("CONFIG", "GET", name)) for name in limits]
        evicted = int(self._client.info("stats")["evicted_keys"])
        limit = int(self._client.info("memory")["used_memory"]) + 100_000
        try:
            self._client.ask("CONFIG", "SET", "maxmemory-policy", "allkeys-random")
            self._client.ask("CONFIG", "SET", "maxmemory", limit)
            self._write_until_evicted(evicted + EVICTED_ENOUGH)
        finally:
            for name, (_, value) in zip(limits, before, strict=True):
                self._client.ask("CONFIG", "SET", name, as_bytes(value))

    def _write_until_evicted(self, goal: int) -> None:
        for _ in range(EVICTION_ROUNDS):
            key = f"filler:{self._rng.randrange(500)}"
            database = self._rng.choice((0, 1))
            value = self._rng.randbytes(4000)
            self._run([("SELECT", database), *[("APPEND", key, value)] * 5])
            if int(self._client.info("stats")["evicted_keys"]) >= goal:
                return
        raise RuntimeError(f"the server did not evict up to {goal} keys")

    def _do(self, operations: Sequence[Operation]) -> None:
        """Send in as few pipelines as open arguments and waiting allow."""
        queue: list[Command] = []
        for operation in operations:
            if operation.blocked is not None:
                self._run(queue)
                queue = []
                self._do_blocked(operation.blocked, operation.commands)
                continue
            for command in operation.commands:
                queue.append(command)
                if any(isinstance(argument, Payload) for argument in command):
                    queue = self._settle(queue)
        self._run(queue)

    def _settle(self, queue: list[Command]) -> list[Command]:
        """Fill in what the last command leaves open; return what is still to send.

        Inside of MULTI the payload is asked for as part of the transaction's start,
        since there a DUMP would only be queued.
        """
        start = transaction_start(queue)
        self._run(queue[:start])
        return [self._resolved(command) for command in queue[start:]]

    def _resolved(self, command: Command) -> Command:
        return tuple(
            self._payload(argument) if isinstance(argument, Payload) else argument
            for argument in command
        )

    def _payload(self, payload: Payload) -> Argument:
        [reply] = self._client.exchange([payload.source])
        return reply if isinstance(reply, bytes) else b""

    def _do_blocked(self, blocked: Command, serving: Sequence[Command]) -> None:
        """Let the second connection wait, serve it, and read what it was given."""
        self._waiting.send(plain(blocked))
        deadline = time.monotonic() + BLOCK_TIMEOUT
        # Data may have been there, or the key be of another type: then it never waits.
        while self._client.info("clients")["blocked_clients"] == "0":
            if self._waiting.has_reply() or time.monotonic() > deadline:
                break
        self._run(serving)
        self._count(blocked, self._waiting.receive())

    def _run(self, commands: Sequence[Command]) -> None:
        replies = self._client.exchange([plain(command) for command in commands])
        queued: list[Command] = []
        for command, reply in zip(commands, replies, strict=True):
            if reply == b"QUEUED":
                queued.append(command)
                continue
            self._count(command, reply)
            if command[0] in {"EXEC", "DISCARD"}:
                if isinstance(reply, list):
                    for inner, inner_reply in zip(queued, reply, strict=True):
                        self._count(inner, inner_reply)
                queued = []

    def _count(self, command: Command, reply: Reply) -> None:
        words = command[: 2 if command[0] in SUBCOMMANDS else 1]
        name = " ".join(str(word) for word in words)
        if isinstance(reply, Exception):
            self.errors[name, kind_of_error(reply)] += 1
        else:
            self.done[name] += 1


def check_release(client: PlainClient, server_name: str) -> None:
    """Raise RuntimeError unless the server is the release that it should be."""
    info = client.info("server")
    family = "valkey" if "valkey_version" in info else "redis"
    found = f"{family}-{info[f'{family}_version']}"
    if not f"{found}.".startswith(f"{server_name}."):
        raise RuntimeError(f"this server is {found}, not {server_name}")


def kind_of_error(error: Exception) -> str:
    """Return the part of an error message that does not depend on the data."""
    text = str(error)
    code = text.partition(" ")[0]
    return (
        code
        if code.isupper() and code != "ERR"
        else " ".join(text.partition("(")[0].split()[:6])
    )


def transaction_start(queue: Sequence[Command]) -> int:
    """Return where the transaction that the queue's last command is in begins."""
    last = len(queue) - 1
    for index in range(last, -1, -1):
        if queue[index][0] in {"EXEC", "DISCARD"}:
            return last
        if queue[index][0] == "MULTI":
            return index
    return last


def plain(command: Command) -> tuple[Argument, ...]:
    """Return the command, of which nothing may be left open."""
    arguments = tuple(
        argument for argument in command if not isinstance(argument, Payload)
    )
    if len(arguments) < len(command):
        raise TypeError(f"{command!r} was sent before its payload was known")
    return arguments
