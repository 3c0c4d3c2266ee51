"""The whole check: repository, spool and server, in bounded time.

The repository comes first, since it knows the address and how far is recorded. What one
part cannot tell does not keep another from being asked.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import trio

from kvtape.check.ask import ask_server
from kvtape.check.facts import DiskFacts, Position, ServerFacts
from kvtape.check.finding import Finding
from kvtape.check.fitness import fitness, reachability, unknown
from kvtape.check.headroom import headroom, spool_disk, spool_space
from kvtape.check.repository import NAMES, Place, identify, not_tried, probe, stored
from kvtape.check.spool import disk_facts, position
from kvtape.errors import Error, RepositoryError, ServerError, UsageError
from kvtape.record.acknowledge import AckOption
from kvtape.record.spooling.place import default_spool
from kvtape.server.sentinel import Finder, Prefer
from kvtape.server.url import AT_SENTINEL, Address, Tls, parse_url
from kvtape.storage.repository import SourceFolder
from kvtape.storage.spool import DEFAULT_LIMIT
from kvtape.storage.store import Store
from kvtape.tape.catalogue import Catalogue
from kvtape.tape.documents import Source

# A store that is throttled or far away may take some tries; then it is too slow.
STORE_TIMEOUT = 60.0

# Beside those, resume: of a server, where something is recorded of it.
SERVER_NAMES = (
    *("reachability", "permission", "version", "role", "cluster", "min-replicas"),
    *("ack", "sharing", "persistence", "fork-memory", "clock"),
    *("backlog", "backlog-ttl", "output-buffer"),
)

_SPOOL_NAMES = ("spool-disk", "spool-space")

Returned = TypeVar("Returned")


@dataclass(frozen=True, slots=True)
class CheckOptions:
    """What to check. sample is for how many seconds the rate of writes is measured.

    Without a URL the server is the one that the source was recorded from, with the
    password given here, and over TLS if it is said how; one that Sentinels found needs
    their URL again.
    """

    repository: str
    url: Address | None = None
    source: str | None = None
    spool: Path | None = None
    ack: AckOption = "auto"
    sample: float = 3.0
    password: str | None = None
    tls: Tls | None = None
    spool_limit: int = DEFAULT_LIMIT
    prefer: Prefer = "primary"
    has_endpoint: bool = False


async def run_checks(options: CheckOptions) -> list[Finding]:
    """Check everything. UsageError where it is not clear which source is meant."""
    place, findings = await _of_repository(options.repository)
    source = _choose(place.sources, options)
    folder = catalogue = None
    if place.repository is not None and source is not None:
        folder = SourceFolder(place.repository.store, source.name)
        catalogue, found = await _of_source(folder)
        findings += found
    spool = _spool(options, folder, place.store)
    # Before the server is asked: what is recorded by then, it has.
    where = await _where(catalogue, spool)
    facts = await _ask(options, source)
    if spool is None:
        hint = "say where it is by --spool"
        message = "where the spool is follows from the repository"
        findings += [unknown(name, message, hint) for name in _SPOOL_NAMES]
    else:
        disk = await _disk(spool, options.spool_limit)
        findings += [spool_disk(disk), spool_space(disk, facts)]
    if facts is None:
        message = "no URL was given, and no source here says where its server is"
        hint = "kvtape check URL also checks the server"
        return [*findings, unknown("reachability", message, hint)]
    return [*findings, *_of_server(facts, options, where)]


async def _of_repository(url: str) -> tuple[Place, list[Finding]]:
    """Find out what is there, and try it out if it is ours."""
    place, findings = Place([]), list[Finding]()
    try:
        place = await _blocking(partial(identify, url))
        findings += place.findings
        if place.store is not None and place.may_be_written:
            findings += await _blocking(partial(probe, place.store))
        else:
            why = "it is not certain that the place is kvtape's"
            findings += [not_tried(name, why) for name in NAMES[2:]]
    except RepositoryError as error:
        name, *others = NAMES[len(findings) :]
        findings.append(Finding(name, "fail", str(error), {}, "is the store in reach?"))
        findings += [not_tried(other, "the store hangs") for other in others]
    return place, findings


async def _of_source(folder: SourceFolder) -> tuple[Catalogue | None, list[Finding]]:
    try:
        catalogue = await _blocking(folder.catalogue)
    except Error as error:
        hint = "a restore would fail as this did"
        return None, [Finding("stored", "fail", str(error), {}, hint)]
    return catalogue, list(stored(folder.name, catalogue, int(time.time() * 1000)))


def _spool(
    options: CheckOptions, folder: SourceFolder | None, store: Store | None
) -> Path | None:
    """Return the spool's folder; None if it cannot be told."""
    if options.spool is not None:
        return options.spool
    if folder is None and store is not None:
        # Not recorded yet: any name will do to find the disk.
        folder = SourceFolder(store, options.source or "source")
    return None if folder is None else default_spool(folder)


async def _ask(options: CheckOptions, source: Source | None) -> ServerFacts | None:
    url = options.url
    if url is not None:
        try:
            server = await Finder(url, options.prefer).find()
        except ServerError as error:
            return ServerFacts(url.address, trouble=str(error))
        return await ask_server(server, options.sample)
    if source is None or source.address.endswith(AT_SENTINEL):
        return None
    scheme = "redis" if options.tls is None else "rediss"
    server = parse_url(f"{scheme}://{source.address}").with_tls(options.tls)
    return await ask_server(server.with_password(options.password), options.sample)


async def _disk(spool: Path, limit: int) -> DiskFacts:
    try:
        return await _blocking(partial(disk_facts, spool, limit))
    except RepositoryError as error:
        return DiskFacts(str(spool), trouble=str(error))


async def _where(catalogue: Catalogue | None, spool: Path | None) -> Position | None:
    if spool is None:
        return None
    try:
        return await _blocking(partial(position, catalogue, spool))
    except (OSError, Error):
        # spool-disk and stored have said what is wrong with either.
        return None


def _of_server(
    facts: ServerFacts, options: CheckOptions, where: Position | None
) -> list[Finding]:
    if facts.trouble is not None:
        why = "the server was not reached"
        names = [*SERVER_NAMES[1:], *(["resume"] if where is not None else [])]
        return [reachability(facts), *(unknown(name, why, "") for name in names)]
    fit = fitness(facts, options.ack, has_endpoint=options.has_endpoint)
    return [*fit, *headroom(facts, where)]


def _choose(sources: Mapping[str, Source], options: CheckOptions) -> Source | None:
    """Return the source that is meant; None if it is not recorded yet."""
    if options.source is not None:
        return sources.get(options.source)
    url = options.url
    if url is not None:
        sources = {
            name: source
            for name, source in sources.items()
            if source.address == url.address
        }
    if len(sources) > 1:
        raise UsageError(
            f"the repository holds the sources {', '.join(sorted(sources))}: say which "
            "by --source"
        )
    return next(iter(sources.values()), None)


async def _blocking(call: Callable[[], Returned]) -> Returned:
    """Run what blocks in a thread; RepositoryError if it takes too long.

    The thread is left behind then: there is no way to end it.
    """
    with trio.move_on_after(STORE_TIMEOUT):
        return await trio.to_thread.run_sync(call, abandon_on_cancel=True)
    raise RepositoryError(f"no answer for {STORE_TIMEOUT:.0f} s")
