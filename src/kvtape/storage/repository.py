"""The repository: a store that says of itself what it is, with one folder a source."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from kvtape.errors import IdentityError, RepositoryError, UsageError
from kvtape.storage.store import Store, open_store
from kvtape.tape import catalogue, documents
from kvtape.tape.catalogue import Catalogue
from kvtape.tape.names import REPOSITORY_DOCUMENT, SOURCE_DOCUMENT, SOURCE_NAME


@dataclass(frozen=True, slots=True)
class Repository:
    """An existing repository. All calls block."""

    store: Store
    id: str

    def confirm(self) -> None:
        """Make sure that it is this one that is there; IdentityError if not."""
        found = _read(self.store).id
        if found != self.id:
            raise IdentityError(
                f"{self.store.url} is another repository than the one that the spool "
                "was begun for: correct --repo, or give this recording another --spool"
            )

    def sources(self) -> dict[str, documents.Source]:
        """Return what is recorded here, by name."""
        found = {}
        for path in self.store.list(depth=2):
            name, _, rest = path.partition("/")
            if rest == SOURCE_DOCUMENT:
                document, where = self.store.read(path), f"{self.store.url}/{path}"
                found[name] = documents.decode(documents.Source, document, where)
        return found

    def source(self, name: str | None = None) -> SourceFolder:
        """Return one source's folder; name may be left out where there is but one."""
        sources = self.sources()
        if not sources:
            raise UsageError(
                f"{self.store.url} holds no source yet: kvtape record begins one"
            )
        if name is None:
            if len(sources) != 1:
                raise UsageError(
                    f"{self.store.url} holds {_listed(sources)}: say which by --source"
                )
            name = next(iter(sources))
        elif name not in sources:
            raise UsageError(
                f"{self.store.url} holds no source {name!r}, but {_listed(sources)}"
            )
        return SourceFolder(self.store, name)

    def add_source(self, source: documents.Source) -> SourceFolder:
        """Create a source's folder, if it is not there."""
        if SOURCE_NAME.fullmatch(source.name) is None:
            raise UsageError(
                f"{source.name!r} cannot be a source's name: use letters, digits, "
                "dots, dashes and underscores"
            )
        if source.name not in self.sources():
            path = f"{source.name}/{SOURCE_DOCUMENT}"
            # Another agent may begin with it at the same moment.
            with suppress(IdentityError):
                self.store.put(path, documents.encode(source))
        return SourceFolder(self.store, source.name)


@dataclass(frozen=True, slots=True)
class SourceFolder:
    """What is stored of one source. Paths are those of kvtape.tape.names."""

    store: Store
    name: str

    @property
    def url(self) -> str:
        """Where it is, for messages."""
        return f"{self.store.url}/{self.name}"

    def list(self, prefix: str = "") -> dict[str, int]:
        """Return the path and length of everything that is stored.

        prefix is empty or a folder with its /.
        """
        own = f"{self.name}/"
        listing = self.store.list(f"{own}{prefix}")
        return {path.removeprefix(own): size for path, size in listing.items()}

    def read(self, path: str) -> bytes:
        """Return a whole object."""
        return self.store.read(f"{self.name}/{path}")

    def read_range(self, path: str, start: int, end: int) -> bytes:
        """Return the bytes [start, end) of an object, or what it has of them."""
        return self.store.read_range(f"{self.name}/{path}", start, end)

    def open(self, path: str) -> BinaryIO:
        """Open an object for reading."""
        return self.store.open(f"{self.name}/{path}")

    def put(self, path: str, source: Path | bytes) -> None:
        """Write an object."""
        self.store.put(f"{self.name}/{path}", source)

    def delete(self, path: str) -> None:
        """Delete an object."""
        self.store.delete(f"{self.name}/{path}")

    def catalogue(self) -> Catalogue:
        """Return what the folder holds now."""
        listing = self.list()
        return catalogue.build(listing, read_documents(self, listing))


def read_documents(
    folder: SourceFolder, listing: Mapping[str, int]
) -> dict[str, bytes]:
    """Return the documents that a catalogue of this listing needs, by path."""
    return {path: folder.read(path) for path in catalogue.documents_of(listing)}


def open_repository(url: str) -> Repository:
    """Open a repository that is there."""
    return _read(open_store(url))


def _read(store: Store) -> Repository:
    try:
        content = store.read(REPOSITORY_DOCUMENT)
    except FileNotFoundError:
        if store.list(depth=2):
            raise IdentityError(
                f"{store.url} is no kvtape repository: it has no {REPOSITORY_DOCUMENT}"
            ) from None
        raise RepositoryError(
            f"there is no repository at {store.url}; kvtape record creates one"
        ) from None
    where = f"{store.url}/{REPOSITORY_DOCUMENT}"
    document = documents.decode(documents.Repository, content, where)
    if document.format != documents.FORMAT_VERSION:
        raise IdentityError(
            f"{store.url} has format version {document.format}, and this kvtape knows "
            f"{documents.FORMAT_VERSION}: use a newer kvtape"
        )
    return Repository(store, document.id)


def create_repository(url: str, now: int) -> Repository:
    """Open a repository, and create it where there is nothing yet. now is in ms."""
    store = open_store(url)
    if not store.list(depth=2):
        document = documents.Repository(
            documents.FORMAT_VERSION, uuid.uuid4().hex, created=now
        )
        # Another agent may create it at the same moment; then it is theirs.
        with suppress(IdentityError):
            store.put(REPOSITORY_DOCUMENT, documents.encode(document))
    return open_repository(url)


def _listed(sources: Mapping[str, object]) -> str:
    return f"the sources {', '.join(sorted(sources))}"
