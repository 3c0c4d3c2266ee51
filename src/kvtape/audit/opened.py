"""A recording, opened to be asked: what is there of it between two points."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass

from kvtape.audit.history import KeyHistory
from kvtape.audit.search import Search, last_found, search
from kvtape.errors import VerificationError
from kvtape.progress import NoWatch, Watch
from kvtape.storage.commands import Damage
from kvtape.storage.repository import SourceFolder, open_repository
from kvtape.tape.catalogue import Catalogue
from kvtape.tape.commands import RecordedCommand
from kvtape.tape.key_history import Place
from kvtape.tape.point import Point
from kvtape.tape.query import Query
from kvtape.tape.span import Span, choose_span


@dataclass(frozen=True, slots=True)
class Audit:
    """What is recorded between two points, to be asked any number of times.

    span.holes is what is missing in between. All calls block, and raise
    VerificationError for what is damaged. With more than one process, whoever calls
    them from a script must do so under `if __name__ == "__main__"`.
    """

    folder: SourceFolder
    catalogue: Catalogue
    span: Span

    def commands(
        self, query: Query | None = None, processes: int = 1
    ) -> Generator[RecordedCommand]:
        """Yield the commands that are asked for, in order; None is all writes."""
        job = Search(query or Query(), list)
        for part in search(self.folder, self.span, job, processes):
            if isinstance(part.content, Damage):
                raise VerificationError(part.content.reason)
            yield from part.content or ()

    def last(self, count: int, query: Query | None = None) -> list[RecordedCommand]:
        """Return the last so many of them, in order, reading from the end."""
        found, damaged = last_found(self.folder, self.span, query or Query(), count)
        for damage in damaged:
            raise VerificationError(damage.reason)
        return found

    def story(
        self, place: Place, watch: Watch | None = None, processes: int | None = 1
    ) -> KeyHistory:
        """Return the story of a key: of its database and its name.

        By itself (None) it starts as many processes as are worth it.
        """
        watch = NoWatch() if watch is None else watch
        folder, catalogue, span = self.folder, self.catalogue, self.span
        return KeyHistory(folder, catalogue, span, place, watch, processes)


def open_audit(
    repository: str,
    source: str | None = None,
    start: Point | None = None,
    end: Point | None = None,
) -> Audit:
    """Find out what is recorded between two points; None is as far as there is.

    Blocks; nothing of the stream is read. Raises PointError for what is not recorded,
    RepositoryError, IdentityError, UsageError.
    """
    folder = open_repository(repository).source(source)
    catalogue = folder.catalogue()
    return Audit(folder, catalogue, choose_span(catalogue, start, end))
