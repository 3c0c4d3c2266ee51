"""Whether the repository takes, gives back and keeps what is put there.

What is put there is a probe of a few bytes, under a name that no source can have and as
deep as nobody looks who asks whether a place is empty: one that cannot be deleted does
no harm. Nothing is put into a place that is somebody else's.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from kvtape.amounts import duration, size
from kvtape.check.finding import Finding, Verdict
from kvtape.errors import Error, IdentityError, RepositoryError, VerificationError
from kvtape.storage.repository import Repository, open_repository
from kvtape.storage.store import Store, open_store
from kvtape.tape.catalogue import Catalogue
from kvtape.tape.documents import Source
from kvtape.tape.point import format_time

# Sources begin with a letter or a digit; two folders deep is looked for sources.
PROBES = ".kvtape-check/probe"

_LIST, _WRITE = "repository-list", "repository-write"
_READ, _ONCE = "repository-read", "repository-create-only"
_DELETE, _IDENTITY = "repository-delete", "repository-identity"
NAMES = (_LIST, _IDENTITY, _WRITE, _READ, _ONCE, _DELETE)

# The agent stores every ten seconds; a primary's PINGs alone keep the tape moving.
AGE_WARN, AGE_FAIL = 300.0, 3600.0

# As many gaps are named one by one.
_MOST_GAPS = 5


@dataclass(frozen=True, slots=True)
class _Trouble:
    """What a store refused."""

    error: Error


@dataclass(frozen=True, slots=True)
class Place:
    """What is at a repository's URL, as far as it could be looked at."""

    findings: list[Finding]
    store: Store | None = None
    repository: Repository | None = None
    sources: Mapping[str, Source] = field(default_factory=dict)

    @property
    def may_be_written(self) -> bool:
        """Whether it is kvtape's, or nobody's."""
        return all(finding.verdict == "ok" for finding in self.findings)


def identify(url: str) -> Place:
    """List the place, and tell whose it is. Blocks."""
    took = time.perf_counter()
    try:
        store = open_store(url)
        listing = store.list(depth=2)
    except Error as error:
        hint = "allow listing, or mend the repository's URL"
        if isinstance(error, RepositoryError) and error.is_passing:
            hint = "is the store in reach? record waits for it, or fills its spool"
        return Place(
            [
                _failed(_LIST, error, hint),
                not_tried(_IDENTITY, "the place cannot be listed"),
            ]
        )
    took = time.perf_counter() - took
    measured = {"seconds": took, "objects": len(listing)}
    listed = Finding(_LIST, "ok", f"took {duration(took)}", measured)
    if not listing:
        message = f"{store.url} is empty: kvtape record creates a repository there"
        empty = Finding(_IDENTITY, "ok", message, {"sources": 0})
        return Place([listed, empty], store)
    try:
        repository = open_repository(url)
        sources = repository.sources()
    except (IdentityError, VerificationError) as error:
        hint = "give another place by --repo; nothing was written to this one"
        return Place([listed, _failed(_IDENTITY, error, hint)], store)
    except Error as error:
        refused = _failed(_IDENTITY, error, "allow reading there")
        return Place([listed, refused], store)
    found = f"a repository with {_count(len(sources), 'source')}"
    names = f": {', '.join(sorted(sources))}" if sources else ""
    measured = {"sources": len(sources)}
    ours = Finding(_IDENTITY, "ok", found + names, measured)
    return Place([listed, ours], store, repository, sources)


def probe(store: Store) -> list[Finding]:
    """Put a probe, read it back, try to put another in its place, and delete it.

    Blocks. A probe that could not be deleted is named.
    """
    path, content = f"{PROBES}/{uuid.uuid4().hex}", uuid.uuid4().bytes
    took, put = _timed(lambda: store.put(path, content))
    if isinstance(put, _Trouble):
        hint = "allow creating objects there, or free some space"
        return [
            _failed(_WRITE, put.error, hint),
            *(not_tried(name, "nothing could be written") for name in NAMES[3:]),
        ]
    message = f"{size(len(content))} took {duration(took)}"
    return [
        Finding(_WRITE, "ok", message, {"seconds": took, "bytes": len(content)}),
        _read_back(store, path, content),
        _put_another(store, path),
        _delete(store, path),
    ]


def not_tried(name: str, why: str) -> Finding:
    """Return the finding for what was not even tried."""
    return Finding(name, "unknown", f"not tried: {why}")


def _read_back(store: Store, path: str, content: bytes) -> Finding:
    took, read = _timed(lambda: store.read(path))
    hint = "allow reading objects there: a restore, and a restart, need it"
    if isinstance(read, _Trouble):
        return _failed(_READ, read.error, hint)
    measured = {"seconds": took, "bytes": len(content)}
    if read != content:
        message = "what is read back is not what was written"
        return Finding(_READ, "fail", message, measured, "do not use this store")
    return Finding(_READ, "ok", f"took {duration(took)}", measured)


def _put_another(store: Store, path: str) -> Finding:
    took, put = _timed(lambda: store.put(path, b"another"))
    measured = {"seconds": took}
    if isinstance(put, _Trouble) and isinstance(put.error, IdentityError):
        message = "another object of the same name is refused"
        return Finding(_ONCE, "ok", message, measured)
    if isinstance(put, _Trouble):
        return _failed(_ONCE, put.error, "allow reading objects there")
    return Finding(
        _ONCE,
        "fail",
        "an object was replaced by another of the same name",
        measured,
        "do not use this store: two recordings could overwrite each other",
    )


def _delete(store: Store, path: str) -> Finding:
    took, done = _timed(lambda: store.delete(path))
    if isinstance(done, _Trouble):
        return Finding(
            _DELETE,
            "ok",
            f"not allowed ({done.error}): fine, prune elsewhere",
            {"can_delete": False},
            f"the probe {store.url}/{path} stays; it does no harm",
        )
    message = f"took {duration(took)}"
    return Finding(_DELETE, "ok", message, {"can_delete": True, "seconds": took})


def _timed(call: Callable[[], object]) -> tuple[float, object]:
    began = time.perf_counter()
    try:
        returned = call()
    except FileNotFoundError as error:
        # What was just written is not there.
        returned = _Trouble(VerificationError(str(error)))
    except Error as error:
        returned = _Trouble(error)
    return time.perf_counter() - began, returned


def _failed(name: str, error: Error, hint: str) -> Finding:
    return Finding(name, "fail", str(error), {}, hint)


# What is stored of a source.


def stored(source: str, catalogue: Catalogue, now: int) -> Iterator[Finding]:
    """Yield how recent what can be restored is, and what is missing. now is in ms."""
    yield _newest(source, catalogue, now)
    yield _gaps(catalogue)


def _newest(source: str, catalogue: Catalogue, now: int) -> Finding:
    name, ends = "stored", [found.end_time for found in catalogue.all_ranges()]
    measured: dict[str, float | str | None] = {
        "source": source,
        "stored_bytes": catalogue.stored_bytes,
        "problems": len(catalogue.problems),
    }
    if catalogue.problems:
        message, hint = "; ".join(catalogue.problems), "see kvtape info"
        return Finding(name, "fail", message, measured, hint)
    if not ends:
        message = f"nothing of {source} can be restored yet: no snapshot is complete"
        return Finding(name, "warn", message, measured, "is kvtape record running?")
    age = max(0.0, (now - max(ends)) / 1000)
    measured |= {"newest_time": format_time(max(ends)), "age_seconds": age}
    verdict: Verdict = "ok"
    if age > AGE_WARN:
        verdict = "fail" if age > AGE_FAIL else "warn"
    return Finding(
        name,
        verdict,
        f"{source} can be restored up to {format_time(max(ends))}, {duration(age)} ago",
        measured,
        "is kvtape record running, and does it reach the repository?"
        if verdict != "ok"
        else "",
    )


def _gaps(catalogue: Catalogue) -> Finding:
    gaps = catalogue.gaps
    measured = {"gaps": len(gaps)}
    if not gaps:
        return Finding("gaps", "ok", "none", measured)
    named = [
        f"{format_time(gap.start_time)} to {format_time(gap.end_time)}: {gap.reason}"
        for gap in gaps[-_MOST_GAPS:]
    ]
    if len(gaps) > len(named):
        named.append(f"and {len(gaps) - len(named)} before")
    hint = "no moment within can be restored; kvtape info lists the offsets"
    return Finding("gaps", "fail", "; ".join(named), measured, hint)


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
