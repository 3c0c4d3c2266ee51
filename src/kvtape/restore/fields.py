"""Making ready for hash fields whose time has passed (kvtape.tape.field_ttl)."""

from __future__ import annotations

import time
from dataclasses import replace

from kvtape.replication.tracker import NO_DB
from kvtape.restore.job import Job
from kvtape.restore.survey import estimate, survey
from kvtape.tape.documents import Manifest
from kvtape.tape.field_ttl import FIRST_RDB_VERSION, NEED_TIMES, FieldTtls
from kvtape.tape.rdb import NEED_DATA, Key, RdbReader, UnknownRdbError
from kvtape.tape.translate import Destination, Tally


def prepare(job: Job, *, force: bool) -> tuple[Job, Tally]:
    """Verify and translate all that a link will need; return what it comes to. Blocks.

    It reads for as long as there is to read, and changes nothing: who calls it in a
    thread may abandon it.
    """
    job = keep_fields(job, force=force)
    return job, survey(job, "link")


def rehearse(job: Job, destination: Destination, *, force: bool) -> Tally:
    """Return what a restore comes to; raise what it would be refused with. Blocks.

    Where something is changed on the way all is read and verified for it; else the
    facts tell, and what is damaged is not found.
    """
    tally = estimate(job)
    hides_fields = _hides_lapsed_fields(job.plan.snapshot.manifest)
    may_be_refused = hides_fields and not NEED_TIMES.isdisjoint(tally.names)
    if job.ttls is None and not job.undo.starts and not may_be_refused:
        return tally
    return survey(keep_fields(job, force=force), destination)


def keep_fields(job: Job, *, force: bool) -> Job:
    """Return the job with a translation that field TTLs pass unharmed. Blocks.

    PointError is raised later, by the translation, for what cannot be told, also of
    expiries that change; with force it is not. The snapshot is read only if the stream
    increments fields or ends their expiries, since that may take long
    (docs/performance.md, Reading RDB files).
    """
    if job.ttls is not None:
        is_lenient = force or job.ttls.is_lenient
        job = replace(job, ttls=replace(job.ttls, is_lenient=is_lenient))
    manifest = job.plan.snapshot.manifest
    if not _hides_lapsed_fields(manifest):
        return job
    needs_snapshot = not NEED_TIMES.isdisjoint(estimate(job).names)
    earliest = _earliest_times(job) if needs_snapshot else {}
    # Once, since a stream is translated twice on its way over a link, and must come to
    # the same both times.
    now = int(time.time() * 1000)

    def fields() -> FieldTtls:
        db = NO_DB if manifest.db is None else manifest.db
        fields = FieldTtls(now, db, is_lenient=force)
        for (key_db, key), when in earliest.items():
            fields.see_key(key_db, key, when)
        return fields

    return replace(job, fields=fields)


def _hides_lapsed_fields(manifest: Manifest) -> bool:
    """Whether what loads such a snapshot is a Redis with field TTLs."""
    is_redis = manifest.rdb_magic == "REDIS"
    return is_redis and manifest.rdb_version >= FIRST_RDB_VERSION


def _earliest_times(job: Job) -> dict[tuple[int, bytes], int]:
    """Return the earliest expiry of a field of each hash that has any, in ms."""
    advance = job.watch.stage("checking", job.plan.snapshot.manifest.bytes)
    found: dict[tuple[int, bytes], int] = {}
    reader = RdbReader(values=False)
    try:
        for data in job.snapshot():
            reader.receive_data(data)
            while (event := reader.next_event()) is not NEED_DATA:
                if isinstance(event, Key) and event.field_expire_ms is not None:
                    found[event.db, event.key] = event.field_expire_ms
            advance(len(data))
    except UnknownRdbError:
        # Newer than this kvtape: the server that loads it decides, and what it holds
        # beyond here is not followed.
        return found
    return found
