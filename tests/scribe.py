"""A writer that never gives up, and remembers what it was promised.

It hides connections, demotions and crashes: whatever is the primary now gets the next
entries of a ledger, and what was found there after a break is what they stand on. It
asks WAITAOF now and then where the server knows it; what that says is in the backup
must be found there at any later time, whatever happens.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Self

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from ledger import Entry, Ledger, read_head
from plain_client import PlainClient, Reply, as_int, as_list

_BATCH: Final = 10
_PAUSE: Final = 0.03
_BETWEEN_PROMISES: Final = 1.0
_PROMISE_TIMEOUT_MS: Final = 1500

# What a server says that is not, or not yet, the primary to write to.
_PASSING: Final = ("READONLY", "LOADING", "MASTERDOWN", "NOREPLICAS", "UNKILLABLE")


@dataclass(frozen=True, slots=True)
class Promise:
    """An entry that was said to be in the backup, and an offset not before its end."""

    replid: str
    offset: int
    number: int


class WrongReplyError(AssertionError):
    """A server answered what it must not."""


class Scribe:
    """Writes entries until it is left; where() tells the port of the primary now."""

    def __init__(
        self, ledger: Ledger, where: Callable[[], int], *, asks_promises: bool
    ) -> None:
        self.ledger = ledger
        self.promises: list[Promise] = []
        self.error: BaseException | None = None
        self._where = where
        self._asks_promises = asks_promises
        self._may_write = threading.Event()
        self._may_write.set()
        self._is_ending = threading.Event()
        self._is_idle = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._is_ending.set()
        self._may_write.set()
        self._thread.join()

    def pause(self) -> None:
        """Have it write no more, until resume(); what was begun is written."""
        self._is_idle.clear()
        self._may_write.clear()
        while not self._is_idle.wait(0.1):
            self.must_be_well()

    def resume(self) -> None:
        """Have it write again."""
        self._may_write.set()

    def must_be_well(self) -> None:
        """Raise what ended it, if something did."""
        if self.error is not None:
            raise self.error

    def _run(self) -> None:
        try:
            while not self._is_ending.is_set():
                try:
                    with connect(self._where()) as plain:
                        self._write_all(plain)
                except (redis.RedisError, OSError):
                    self._is_ending.wait(0.1)
        except BaseException as error:  # noqa: BLE001 - must_be_well() raises it
            self.error = error

    def _write_all(self, plain: PlainClient) -> None:
        """Write until the connection breaks or the server is not the primary."""
        number = read_head(plain)
        promised = time.monotonic()
        while not self._is_ending.is_set():
            if not self._may_write.is_set():
                self._is_idle.set()
                self._may_write.wait()
            batch = self._begin(number)
            replies = plain.exchange([it for entry in batch for it in entry.commands()])
            if not _are_written(replies):
                return
            number = batch[-1].number
            is_due = time.monotonic() - promised > _BETWEEN_PROMISES
            if self._asks_promises and is_due:
                self._ask_promise(plain, number)
                promised = time.monotonic()
            time.sleep(_PAUSE)

    def _begin(self, number: int) -> Sequence[Entry]:
        batch = []
        for _ in range(_BATCH):
            entry = self.ledger.begin(number)
            number = entry.number
            batch.append(entry)
        return batch

    def _ask_promise(self, plain: PlainClient, number: int) -> None:
        replication = plain.info("replication")
        replid = replication["master_replid"]
        offset = int(replication["master_repl_offset"])
        if not offset:
            # Before its first replica a server counts nothing, and then each replica
            # has it all, as far as WAITAOF is concerned.
            return
        reply = plain.ask("WAITAOF", 0, 1, _PROMISE_TIMEOUT_MS)
        _, replicas = as_list(reply)
        if as_int(replicas):
            self.promises.append(Promise(replid, offset, number))


def connect(port: int) -> PlainClient:
    """Open a connection that sees each error at once."""
    retry = Retry(NoBackoff(), 0)
    client = redis.Redis(port=port, protocol=2, retry=retry, driver_info=None)
    return PlainClient(client)


def _are_written(replies: Sequence[Reply]) -> bool:
    """Whether all is written; False if the server is no primary (any more)."""
    for reply in replies:
        for inner in reply if isinstance(reply, list) else [reply]:
            if isinstance(inner, Exception):
                said = str(inner)
                if said.startswith(_PASSING) or "EXECABORT" in said:
                    return False
                raise WrongReplyError(said) from inner
    return True
