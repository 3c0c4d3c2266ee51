"""Rescue: some keys, as they were at a moment, into a server that goes on serving.

First everything is looked at, and the target is only read: which of the keys it has,
and how. If that is not what was asked for, nothing is written. Then each key that is to
come is one RESTORE, which replaces all of it or nothing. So whatever happens half-way,
each key is either as it was or as it is, those that are done are known, and saying the
same again goes on: what is there already is the same, and is left alone.

Nothing is ever deleted: a key that was not there at the moment stays.
"""

from __future__ import annotations

import logging
from bisect import insort
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final

import trio

from kvtape.amounts import size
from kvtape.errors import DestinationError, ServerError, UsageError
from kvtape.restore.compare import Comparer, Kind, Wanted, batches
from kvtape.restore.fit import loads, release_of, what_loads
from kvtape.restore.job import Job
from kvtape.restore.loader import Loader, choose_loader, loaders_at_hand
from kvtape.restore.state import FOLDER, CancelledWatch, State, load_state
from kvtape.server.client import Client, ReplyError, Word, open_client
from kvtape.server.info import ServerInfo, ask, ask_hello, ask_setting
from kvtape.server.scratch import scratch_folder
from kvtape.server.url import ServerUrl, format_address
from kvtape.tape.documents import Server, server_name
from kvtape.tape.glob import Glob
from kvtape.tape.rdb import Key, type_name
from kvtape.tape.rdb.payload import make_payload, needed_version

_log = logging.getLogger(__name__)

# What a server takes as one word of a command unless proto-max-bulk-len says otherwise.
_LONGEST_WORD = 512 * 1024 * 1024
# What a payload has besides the value.
_FRAME = 11

# So many keys of each kind are named.
_NAMED = 10

_FIRST_WITH_EXPIRETIME = (7, 0)

KINDS: Final[tuple[Kind, ...]] = ("missing", "changed", "expiry", "same", "expired")
_TO_WRITE: Final[frozenset[Kind]] = frozenset({"missing", "changed", "expiry"})

# A database and a key in it.
Place = tuple[int, bytes]


@dataclass(frozen=True, slots=True)
class RescueOptions:
    """Which keys are to come, and where to.

    Those that match one of globs, of one database or of all, each into the database of
    the same number. rename is a prefix that all of them have, and the one that they get
    instead. replace allows to overwrite what the target has under their names. scratch
    names the server to load the recording with; None is the best that there is.
    """

    url: ServerUrl
    globs: tuple[Glob, ...]
    db: int | None = None
    rename: tuple[bytes, bytes] | None = None
    replace: bool = False
    scratch: str | None = None
    force: bool = False


@dataclass(slots=True)
class Found:
    """How many keys are of a kind, and the first of them by the alphabet.

    All by their names at the target.
    """

    count: int = 0
    first: list[Place] = field(default_factory=list)


@dataclass(slots=True)
class Rescue:
    """One rescue, and what came of it, which holds also if it fails or is cancelled.

    loader and reason say which server loaded the recording. found is what the target
    had before. done are the keys that were written, by their names there, and
    unanswered those of which that is not known, because the target was gone.
    """

    job: Job
    options: RescueOptions
    loader: Loader | None = None
    reason: str = ""
    found: dict[Kind, Found] = field(
        default_factory=lambda: {kind: Found() for kind in KINDS}
    )
    done: list[Place] = field(default_factory=list)
    unanswered: list[Place] = field(default_factory=list)

    @property
    def to_write(self) -> int:
        """How many keys have to be written."""
        return sum(self.found[kind].count for kind in _TO_WRITE)

    async def run(self, *, dry_run: bool = False) -> None:
        """Do it; with dry_run nothing is written.

        Raises ServerError if the target or the server that loads is unfit or fails,
        DestinationError if keys differ that must not be replaced, UsageError if one
        does not have the prefix, and what load_state() raises. It is cancelled at once.
        """
        async with _open_target(self.options.url):
            pass  # which refuses it before the long work
        loaders = await trio.to_thread.run_sync(loaders_at_hand, self.options.scratch)
        manifest = self.job.plan.snapshot.manifest
        self.loader, self.reason = choose_loader(loaders, manifest)
        _log.info("loading the moment with %s", self.loader.choice(self.reason))
        with scratch_folder(FOLDER) as folder:
            force = self.options.force
            state = await load_state(self.job, self.loader, folder, force=force)
            async with _open_target(self.options.url) as target:
                kinds = await self._compare(state, target)
                if not dry_run:
                    self._must_not_differ()
                    await self._write(state, target, kinds)

    async def _compare(self, state: State, target: _Target) -> list[Kind]:
        """Find out what of the wanted keys the target has."""
        comparer = target.comparer(state)
        kinds: list[Kind] = []
        groups = batches(self._wanted(state, "comparing"))
        while group := await trio.to_thread.run_sync(next, groups, None):
            for each in group:
                target.must_take(each.key, state)
            for each, kind in zip(group, await comparer.kinds(group), strict=True):
                kinds.append(kind)
                found = self.found[kind]
                found.count += 1
                insort(found.first, each.place)
                del found.first[_NAMED:]
        return kinds

    def _must_not_differ(self) -> None:
        differing = [self.found[kind] for kind in ("changed", "expiry")]
        count = sum(found.count for found in differing)
        if count and not self.options.replace:
            first = next(place for found in differing for place in found.first)
            raise DestinationError(
                f"the target has {count} of the keys otherwise than they were, such as "
                f"{shown(first)}: see which by --dry-run, and say --replace to "
                "overwrite them, or --rename-prefix to put them beside; nothing was "
                "written"
            )

    async def _write(self, state: State, target: _Target, kinds: list[Kind]) -> None:
        """Write what is not there as it was."""
        db = -1
        to_write = (
            each
            for each in self._wanted(state, "rescuing")
            if kinds[each.number] in _TO_WRITE
        )
        groups = batches(to_write)
        try:
            while group := await trio.to_thread.run_sync(next, groups, None):
                if group[0].key.db != db:
                    db = group[0].key.db
                    # Alone: what follows one that failed would go elsewhere.
                    await target.client.call("SELECT", db)
                await self._write_group(target.client, group, state.version)
        except ServerError as error:
            raise self._half_way(error) from error

    async def _write_group(
        self, client: Client, group: Sequence[Wanted], version: int
    ) -> None:
        commands = [self._restore(each, version) for each in group]
        self.unanswered = [each.place for each in group]
        await client.send(*commands)
        errors = []
        for each, words in zip(group, commands, strict=True):
            try:
                await client.reply(words)
            except ReplyError as error:
                errors.append(ServerError(f"{error}, for {shown(each.place)}"))
            else:
                self.done.append(each.place)
            del self.unanswered[0]
        if errors:
            raise errors[0]

    def _restore(self, wanted: Wanted, version: int) -> list[Word]:
        key = wanted.key
        payload = make_payload(key, version)
        words: list[Word] = ["RESTORE", wanted.name, key.expire_ms or 0, payload]
        words += ["ABSTTL"] if key.expire_ms else []
        return words + (["REPLACE"] if self.options.replace else [])

    def _half_way(self, error: ServerError) -> ServerError:
        unknown = ""
        if self.unanswered:
            unknown = f", and of {len(self.unanswered)} more that is not known"
        return ServerError(
            f"{error}; {len(self.done)} of {self.to_write} keys were written{unknown}: "
            "say the same again to go on"
        )

    def _wanted(self, state: State, stage: str) -> Iterator[Wanted]:
        """Yield the keys that are to come, always in the same order. Blocks."""
        options, number = self.options, 0
        for key in state.keys(stage, CancelledWatch(self.job.watch)):
            is_of_db = options.db is None or key.db == options.db
            if is_of_db and any(glob.matches(key.key) for glob in options.globs):
                yield Wanted(number, key, _renamed(key.key, options.rename))
                number += 1


def _renamed(key: bytes, rename: tuple[bytes, bytes] | None) -> bytes:
    if rename is None:
        return key
    old, new = rename
    if not key.startswith(old):
        raise UsageError(
            f"the key {shown((0, key))} does not begin with {shown((0, old))}, so "
            "--rename-prefix does not say what to call it: ask for keys that do"
        )
    return new + key.removeprefix(old)


def shown(place: Place) -> str:
    """Return a key as it is named to people."""
    db, key = place
    name = key.decode(errors="backslashreplace")
    return repr(name) if db == 0 else f"{name!r} (database {db})"


# The target.


@dataclass(frozen=True, slots=True)
class _Target:
    """A server that takes keys, and what it can take."""

    client: Client
    server: Server
    longest: int

    def comparer(self, state: State) -> Comparer:
        """Return what compares keys of a state with those that it has."""
        both = (self.server, state.loader.server)
        is_lean = any(not _has_expiretime(server) for server in both)
        return Comparer(self.client, _has_expiretime(self.server), is_lean)

    def must_take(self, key: Key, state: State) -> None:
        """Raise ServerError if it cannot take a key."""
        version = needed_version(key.type, state.version)
        what = f"the {type_name(key.type)} {shown((key.db, key.key))}"
        if not loads(self.server, version, state.magic):
            raise ServerError(
                f"the target is {server_name(self.server)} and cannot take {what} as "
                f"{state.loader.name} keeps it (RDB version {version}): rescue into "
                f"{what_loads(version, state.magic)}, or name an older server that "
                "loads the recording by --scratch; nothing was written"
            )
        if key.value_size + _FRAME > self.longest:
            raise ServerError(
                f"{what} is of {size(key.value_size)}, and the target takes no more "
                f"than {size(self.longest)} at once (proto-max-bulk-len): raise that, "
                "or restore into a folder (--data-dir); nothing was written"
            )
        if key.metadata is not None:
            raise ServerError(
                f"{what} has metadata of a module, which RESTORE does not take: "
                "restore into a folder (--data-dir); nothing was written"
            )


def _has_expiretime(server: Server) -> bool:
    return release_of(server.version or "7.0") >= _FIRST_WITH_EXPIRETIME


@asynccontextmanager
async def _open_target(url: ServerUrl) -> AsyncIterator[_Target]:
    """Connect to a target; ServerError if it is none for a rescue."""
    async with open_client(url) as client:
        info = await ask(client)
        if not info.fields:
            info = await ask_hello(client)
        if (error := _unfit(info)) is not None:
            raise error
        longest = await ask_setting(client, "proto-max-bulk-len")
        is_number = longest is not None and longest.isdigit()
        yield _Target(
            client, info.server, int(longest or 0) if is_number else _LONGEST_WORD
        )


def _unfit(info: ServerInfo) -> ServerError | None:
    if info.is_clustered:
        return ServerError(
            "the target is a node of a cluster, which takes only keys of its own "
            "slots: rescue into a server of its own"
        )
    if info.server.role != "replica":
        return None
    primary = ""
    if "master_host" in info.fields and (port := info.number("master_port")):
        primary = f", {format_address(info.fields['master_host'], port)}"
    return ServerError(
        f"the target is a replica, which takes no writes: give its primary{primary}"
    )
