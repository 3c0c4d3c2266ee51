"""What Prometheus scrapes: the statuses of all sources, as metric families.

docs/metrics.md lists the names, and a test keeps it in step. Nothing is registered
anywhere: a collector reads the statuses when somebody asks, so that there is one truth
and no state of a library between. What is unknown is left out, but for what an alert
compares with: a source of which nothing is stored is at risk for ever (+Inf).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.registry import Collector, CollectorRegistry

from kvtape.record.journal import Durations
from kvtape.watch.status import VERSION, Status

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4


@dataclass(frozen=True, slots=True)
class Reading:
    """One source, as it is read at a scrape."""

    status: Status
    uploads: Durations
    snapshot_time: int | None = None  # ms


def _seconds(value: float | None) -> float:
    return math.inf if value is None else value


# Name, help, and what of a status it shows; None is left out.
_GAUGES: tuple[tuple[str, str, Callable[[Status], float | None]], ...] = (
    (
        "kvtape_recording",
        "1 while the stream flows from the server, else 0.",
        lambda status: float(status.is_recording),
    ),
    (
        "kvtape_gap_open",
        "1 while the server can no longer continue what is recorded, and the snapshot "
        "that ends the gap is not complete.",
        lambda status: float(status.open_gap is not None),
    ),
    (
        "kvtape_received_offset",
        "Replication offset up to which the stream was received.",
        lambda status: status.received_offset,
    ),
    (
        "kvtape_spooled_offset",
        "Replication offset up to which the stream is synced in the spool.",
        lambda status: status.spooled_offset,
    ),
    (
        "kvtape_stored_offset",
        "Replication offset up to which the stream is in the repository.",
        lambda status: status.stored_offset,
    ),
    (
        "kvtape_rpo_seconds",
        "How far back the oldest write may lie that would be lost if this machine were "
        "gone now; +Inf while nothing is stored.",
        lambda status: _seconds(status.lag_seconds),
    ),
    (
        "kvtape_backlog_headroom_seconds",
        "How long an outage the server's backlog covers at the present write rate.",
        lambda status: status.headroom_seconds,
    ),
    (
        "kvtape_spool_bytes",
        "Size of what is in the spool.",
        lambda status: status.spool_bytes,
    ),
    (
        "kvtape_spool_limit_bytes",
        "Size at which the spool is full.",
        lambda status: status.spool_limit,
    ),
    (
        "kvtape_queued_files",
        "Files that wait in the spool to be uploaded.",
        lambda status: status.queue_length,
    ),
    (
        "kvtape_last_snapshot_duration_seconds",
        "How long the last snapshot took, from its announcement to the disk.",
        lambda status: None if (s := status.last_snapshot) is None else s.seconds,
    ),
    (
        "kvtape_last_snapshot_bytes",
        "Size of the RDB file of the last snapshot.",
        lambda status: None if (s := status.last_snapshot) is None else s.bytes,
    ),
)

# Name, help, label, and the counts by that label.
_COUNTERS: tuple[tuple[str, str, str, Callable[[Status], dict[str, int]]], ...] = (
    (
        "kvtape_full_resyncs",
        "Full resyncs that the server began.",
        "reason",
        lambda status: {"first": 0, "backlog": 0, "history": 0} | status.full_resyncs,
    ),
    (
        "kvtape_partial_resyncs",
        "Links over which the server continued.",
        "reason",
        lambda status: (
            {"start": 0, "reconnect": 0, "failover": 0} | status.partial_resyncs
        ),
    ),
    (
        "kvtape_upload_errors",
        "Tries to store a file that failed.",
        "kind",
        lambda status: {"passing": 0, "lasting": 0} | status.upload_errors,
    ),
)


class _Statuses(Collector):
    def __init__(self, readings: Sequence[Reading]) -> None:
        self._readings = readings

    def collect(self) -> Iterator[Metric]:
        yield InfoMetricFamily(
            "kvtape_build", "The version of kvtape.", {"version": VERSION}
        )
        yield self._sources()
        for name, text, value_of in _GAUGES:
            yield self._gauge(name, text, value_of)
        for name, text, label, counts_of in _COUNTERS:
            counter = CounterMetricFamily(name, text, labels=["source", label])
            for status in self._statuses():
                for value, count in counts_of(status).items():
                    counter.add_metric([status.source, value], count)
            yield counter
        gaps = CounterMetricFamily(
            "kvtape_gaps", "Gaps found in what is recorded.", labels=["source"]
        )
        for status in self._statuses():
            if status.spool is not None:
                # Before that, those of earlier runs would look like new ones.
                gaps.add_metric([status.source], status.gaps_total)
        yield gaps
        yield self._snapshot_times()
        yield self._uploads()

    def _statuses(self) -> Iterable[Status]:
        return [reading.status for reading in self._readings]

    def _sources(self) -> Metric:
        info = InfoMetricFamily(
            "kvtape_source", "What is recorded, and how.", labels=["source"]
        )
        for status in self._statuses():
            facts = {
                "address": status.address,
                "server": status.server or "",
                "role": status.role or "",
                "ack": status.ack or "",
                "repository": status.repository or "",
            }
            info.add_metric([status.source], facts)
        return info

    def _gauge(
        self, name: str, text: str, value_of: Callable[[Status], float | None]
    ) -> Metric:
        gauge = GaugeMetricFamily(name, text, labels=["source"])
        for status in self._statuses():
            value = value_of(status)
            if value is not None:
                gauge.add_metric([status.source], value)
        return gauge

    def _snapshot_times(self) -> Metric:
        gauge = GaugeMetricFamily(
            "kvtape_last_snapshot_timestamp_seconds",
            "When the server announced the last snapshot.",
            labels=["source"],
        )
        for reading in self._readings:
            if reading.snapshot_time is not None:
                gauge.add_metric([reading.status.source], reading.snapshot_time / 1000)
        return gauge

    def _uploads(self) -> Metric:
        histogram = HistogramMetricFamily(
            "kvtape_upload_seconds",
            "How long a file took to be stored, with its copy in the spool deleted.",
            labels=["source"],
        )
        for reading in self._readings:
            durations, total, buckets = reading.uploads, 0, []
            bounds = [*map(str, durations.bounds), "+Inf"]
            for bound, count in zip(bounds, durations.counts, strict=True):
                total += count
                buckets.append((bound, total))
            histogram.add_metric([reading.status.source], buckets, durations.total)
        return histogram


def exposition(readings: Sequence[Reading]) -> bytes:
    """Return the text format of Prometheus, of the type CONTENT_TYPE."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Statuses(readings))
    return generate_latest(registry)
