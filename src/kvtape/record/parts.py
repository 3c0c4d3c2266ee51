"""What a recording is made of, put together from what is stored of its source.

Starting is crash recovery: where to go on, which histories are known, and what is in
the repository for certain are read back from the spool and the repository, and each
part is told what it has to know of that. Where the repository is out of reach, the
spool alone may say where to go on; what only the repository knows is then found out
when it is back.

All calls block.
"""

from __future__ import annotations

from dataclasses import dataclass

from kvtape.record.histories.commits import Commits
from kvtape.record.histories.identity import Identity
from kvtape.record.histories.resyncs import FullResyncs
from kvtape.record.histories.rewind import Rewinder
from kvtape.record.journal import Journal
from kvtape.record.linking.linker import Linker
from kvtape.record.options import RecordOptions
from kvtape.record.seeding.seeder import Seeder, origin_of
from kvtape.record.spooling.clock import ReceiptClock
from kvtape.record.spooling.position import (
    Position,
    catalogue_of,
    last_restorable,
    recover,
    root,
    spooled_position,
    stored_catalogue,
    stored_position,
)
from kvtape.record.spooling.recorder import Recorder
from kvtape.record.uploading.held import note_not_spooled, note_stored
from kvtape.record.uploading.stored import Stored, stored_before
from kvtape.record.uploading.uploader import Uploader
from kvtape.replication.replica import Announced
from kvtape.server.sentinel import Finder
from kvtape.signal import Signal
from kvtape.storage.repository import Repository, SourceFolder
from kvtape.storage.spool import Spool
from kvtape.tape.catalogue import Catalogue
from kvtape.tape.names import GapName, HistoryName


@dataclass(frozen=True, slots=True)
class Place:
    """Where a recording goes, and whether the repository there answers now."""

    repository: Repository
    folder: SourceFolder
    spool: Spool
    is_reached: bool


@dataclass(frozen=True, slots=True)
class Parts:
    """What writes to the spool, what uploads from it, and what keeps the link."""

    recorder: Recorder
    uploader: Uploader
    linker: Linker


@dataclass(frozen=True, slots=True)
class _Found:
    """What is known of a source at the start; addresses are where it was recorded."""

    position: Position | None
    stored: Catalogue
    addresses: set[str]


@dataclass(frozen=True, slots=True)
class Assembler:
    """Puts recordings together; announced is where the primary is told that we are."""

    options: RecordOptions
    finder: Finder
    journal: Journal
    queued: Signal
    announced: Announced

    def assemble(self, place: Place) -> Parts | None:
        """Open the spool, and make all that writes to it and reads from it.

        None if the repository is not reached and nothing here says where to go on.
        """
        place.spool.open(place.repository.id, place.folder.name)
        found = self._find(place)
        if found is None:
            return None
        self._note(place, found)
        recorder = Recorder(place.spool, self.options.limits, self.queued)
        uploader = self._uploader(place, found)
        linker = self._linker(place, found, recorder, uploader)
        if found.position is not None:
            recorder.follow(found.position)
        return Parts(recorder, uploader, linker)

    def _find(self, place: Place) -> _Found | None:
        folder, spool = place.folder, place.spool
        position = recover(spool)
        if place.is_reached:
            stored = stored_catalogue(folder, spool)
            position = position or stored_position(stored, folder, spool)
            addresses = {place.repository.sources()[folder.name].address}
            addresses |= {h.address for h in stored.histories.values() if h.address}
            return _Found(position, stored, addresses)
        position = position or spooled_position(folder, spool)
        options = self.options
        # Whether a snapshot leads up to it is not known, and with another origin of
        # snapshots it must be.
        has_origin = options.snapshot_from is not None or options.snapshot_file
        if position is None or has_origin:
            return None
        # Nor is where the source was recorded; the spool vouches for it.
        return _Found(position, catalogue_of(folder, spool, {}), {options.url.address})

    def _note(self, place: Place, found: _Found) -> None:
        """Tell the journal what is there already."""
        position, histories = found.position, found.stored.histories
        if place.is_reached:
            note_stored(self.journal, found.stored, place.spool)
        elif position is not None:
            note_not_spooled(self.journal, position, place.spool)
        if position is not None and position.replid in histories:
            self.journal.history_reason = histories[position.replid].reason

    def _uploader(self, place: Place, found: _Found) -> Uploader:
        spool, folder = place.spool, place.folder
        if place.is_reached:
            there = stored_before(found.stored, spool.queued())
            return Uploader(spool, folder, self.queued, there)
        # What is in the repository, the uploader finds out when it can be asked.
        return Uploader(spool, folder, self.queued, Stored(), place.repository)

    def _linker(
        self, place: Place, found: _Found, recorder: Recorder, uploader: Uploader
    ) -> Linker:
        options, spool, position = self.options, place.spool, found.position
        clock = ReceiptClock(position.time if position else 0)
        is_rooted, since = True, 0
        if position is not None and place.is_reached:
            is_rooted, since = root(found.stored, position, spool)
        commits = _commits(spool, found.stored, is_rooted=is_rooted)
        resyncs = FullResyncs(spool, options.full_resyncs_per_hour)
        linker = Linker(
            options,
            self.finder,
            spool,
            recorder,
            clock,
            commits,
            resyncs,
            Identity(
                place.folder.name,
                options.url.address,
                found.addresses,
                commits.knows,
                options.adopt,
            ),
            Rewinder(recorder, place.folder, spool, uploader.learn),
            self.queued,
            uploader,
            self.announced,
        )
        origin = origin_of(options.snapshot_from, options.snapshot_file)
        if origin is not None:
            linker.seeder = Seeder(
                origin, spool, recorder, clock, commits, resyncs, self.queued, since
            )
        return linker


def _commits(spool: Spool, stored: Catalogue, *, is_rooted: bool) -> Commits:
    known = [HistoryName(replid).path for replid in stored.histories]
    gaps = (GapName(g.replid, g.start_offset, g.end_offset) for g in stored.gaps)
    known += [name.path for name in gaps]
    runs = {s.name.replid: s.manifest.server.run_id for s in stored.snapshots}
    before = None if is_rooted else last_restorable(stored)
    return Commits(spool, known, runs, is_rooted=is_rooted, before=before)
