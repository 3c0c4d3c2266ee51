"""Looking at everything a restore will use before anything is done with it.

A server that is told to take a restore throws its own data away first, so what is
damaged has to be found before: survey() reads, verifies and translates it all. For a
new folder that is not needed, since a folder that fails is not kept; estimate() then
tells from the facts alone how much there is.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from kvtape.restore.job import Job
from kvtape.storage.reader import read_facts, read_snapshot, read_stream
from kvtape.tape.catalogue import Slice
from kvtape.tape.facts import Facts
from kvtape.tape.rdb import NEED_DATA, Key, RdbReader, UnknownRdbError
from kvtape.tape.translate import Destination, Tally, Translator


def survey(job: Job, destination: Destination) -> Tally:
    """Verify all that a plan uses; return what translating the stream comes to."""
    advance = job.watch.stage("verifying", job.length)
    translator = job.translator(destination)
    for data in job.snapshot(translator.tally):
        advance(len(data))
    for piece in read_stream(job.folder, job.plan.slices):
        translator.translate(piece)
        advance(len(piece.data))
    return translator.tally


def estimate(job: Job) -> Tally:
    """Count what a plan's stream holds, decompressing no more than the ends of it."""
    translator = Translator("file")
    tally = translator.tally
    for slice_ in job.plan.slices:
        for run in _runs(read_facts(job.folder, [slice_])):
            first, last = run[0].start, run[-1].end
            start, end = max(first, slice_.start), min(last, slice_.end)
            for facts in run:
                tally.names |= facts.summary.names.keys()
                tally.highest_db = max(tally.highest_db, facts.summary.highest_db)
            if (start, end) == (first, last):
                tally.commands += sum(facts.summary.commands for facts in run)
            else:
                cut = Slice(slice_.segment, start, end)
                for piece in read_stream(job.folder, [cut]):
                    translator.translate(piece)
    return tally


def _runs(frames: Iterable[Facts]) -> Iterator[list[Facts]]:
    """Group frames such that each group begins and ends at a boundary.

    The last may not end at one; then it is where a plan ends that the stream is cut.
    A large value is in several frames, and a command cannot be read from the middle.
    """
    run: list[Facts] = []
    for facts in frames:
        run.append(facts)
        if facts.boundary == facts.end:
            yield run
            run = []
    if run:
        yield run


def databases_needed(job: Job, tally: Tally, there: int | None = None) -> int:
    """Return how many databases a server certainly holds all with.

    The recorded server's own number is enough, and in most recordings known. Where it
    is not, or more than are there, the whole RDB file is read (how fast is in
    docs/performance.md).
    """
    manifest = job.plan.snapshot.manifest
    known = manifest.server.databases
    if known is not None and (there is None or known <= there):
        return max(known, tally.highest_db + 1)
    return 1 + max(_highest_db(job), manifest.db or 0, tally.highest_db)


def _highest_db(job: Job) -> int:
    reader = RdbReader(values=False)
    highest = 0
    try:
        for piece in read_snapshot(job.folder, job.plan.snapshot):
            reader.receive_data(piece)
            while (event := reader.next_event()) is not NEED_DATA:
                if isinstance(event, Key):
                    highest = max(highest, event.db)
    except UnknownRdbError:
        # Newer than this kvtape; what was read until there has to do.
        return highest
    return highest
