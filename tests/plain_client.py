"""The independent client of the tests: commands in, bare replies out.

It hides how redis-py is kept from helping: RESP2 whatever the caller's client speaks,
no reply parsers, no decoding, and an error is a value in the list of replies, because
both users (the workload and the oracle) send commands that are expected to fail.
Nothing of kvtape is imported here or by those users: an oracle that shared its parser
with the program under test would share its mistakes.

Decided against redis-py's pipelines: they parse every reply by command name, and are
several times slower for it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Self, TypeAlias

import redis

Argument: TypeAlias = bytes | str | int | float
Command: TypeAlias = Sequence[Argument]
Reply: TypeAlias = "bytes | int | Exception | list[Reply] | None"


class PlainClient:
    """One connection; `exchange` keeps the order of commands and replies.

    It is for one thread. A lost connection raises redis.ConnectionError and the
    instance is then of no further use.
    """

    def __init__(self, client: redis.Redis) -> None:
        pool = client.connection_pool
        settings = dict(client.get_connection_kwargs())
        settings.update(protocol=2, decode_responses=False, db=0, socket_timeout=60)
        self._connection = pool.connection_class(**settings)
        self._connection.connect()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._connection.disconnect()

    def exchange(self, commands: Iterable[Command]) -> list[Reply]:
        """Send all commands at once and return a reply, or an error, for each."""
        commands = list(commands)
        self.send(*commands)
        return [self.receive() for _ in commands]

    def send(self, *commands: Command) -> None:
        """Send without reading; each command owes one `receive`."""
        self._connection.send_packed_command(self._connection.pack_commands(commands))

    def receive(self) -> Reply:
        """Read the next reply."""
        try:
            reply: Reply = self._connection.read_response()
        except redis.ResponseError as error:
            return error
        return reply

    def has_reply(self) -> bool:
        """Whether a reply is there to be read without waiting."""
        return bool(self._connection.can_read(timeout=0))

    def ask(self, *command: Argument) -> Reply:
        """Send one command and return its reply; an error reply is raised."""
        [reply] = self.exchange([command])
        if isinstance(reply, Exception):
            raise reply
        return reply

    def info(self, section: str) -> dict[str, str]:
        """Return one section of INFO as its names and values."""
        text = as_bytes(self.ask("INFO", section)).decode()
        lines = (line.partition(":") for line in text.splitlines() if ":" in line)
        return {name: value for name, _, value in lines}

    def knows(self, *names: str) -> frozenset[str]:
        """Return those of the commands that the server has, by asking it."""
        replies = as_list(self.ask("COMMAND", "INFO", *names))
        return frozenset(
            name for name, reply in zip(names, replies, strict=True) if reply
        )


def as_bytes(reply: Reply) -> bytes:
    """Return the reply, which must be a string."""
    if not isinstance(reply, bytes):
        raise TypeError(f"a string was expected, not {reply!r}")
    return reply


def as_int(reply: Reply) -> int:
    """Return the reply, which must be an integer."""
    if not isinstance(reply, int):
        raise TypeError(f"an integer was expected, not {reply!r}")
    return reply


def as_list(reply: Reply) -> list[Reply]:
    """Return the reply, which must be an array."""
    if not isinstance(reply, list):
        raise TypeError(f"an array was expected, not {reply!r}")
    return reply


def as_pairs(reply: Reply) -> list[tuple[Reply, Reply]]:
    """Return a flat array of names and values as pairs."""
    items = as_list(reply)
    return list(zip(items[::2], items[1::2], strict=True))
