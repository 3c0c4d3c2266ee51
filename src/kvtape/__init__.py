"""Record every write to a Redis or Valkey server, and bring any moment back.

What the command line does, a script can do:

- record: make an Agent of RecordOptions and run it with trio.run(agent.run); stop() has
  it store what it has and return.
- check: run_checks() of CheckOptions, with trio, returns a list of Finding.
- plan: open_job() finds out what a restore to a point takes, and restores nothing. It
  may be given Changes: other expiries, and commands that are undone, of which
  touched_later() tells what came after them on the same keys.
- restore: restore_data_dir() into a folder, restore_into() into a running server, and
  serve() to whoever says REPLICAOF. The first blocks, the others are for trio.
- replay: replay_into() sends what ReplayOptions say into a running server, as a client,
  with trio; a Progress tells meanwhile how far it is.
- rescue: run() of a Rescue, with trio, brings some keys into a server that goes on
  serving; what it found and did is on it, also if it fails.
- compare: fill() of a comparison(), with trio, loads two moments; its differences() and
  prefixes() tell which keys are not the same.
- read: recorded_commands() yields the stream of a plan as commands, all of them.
- ask: open_audit() finds out what is recorded between two points; its commands() yields
  the writes that a Query asks for, and its story() what became of a key.

Every error that is not a bug is an Error, whose exit_status is the command line's.
"""

from __future__ import annotations

from kvtape.audit.history import Beginning, KeyHistory
from kvtape.audit.opened import Audit, open_audit
from kvtape.check.finding import Finding
from kvtape.check.survey import CheckOptions, run_checks
from kvtape.errors import (
    DestinationError,
    Error,
    IdentityError,
    PointError,
    RepositoryError,
    ServerError,
    UsageError,
    VerificationError,
)
from kvtape.record.agent import Agent
from kvtape.record.options import RecordOptions
from kvtape.record.spooling.recorder import Limits
from kvtape.replay.into import ReplayResult, replay_into
from kvtape.replay.options import ReplayOptions
from kvtape.replay.progress import Progress
from kvtape.replay.selection import Selection
from kvtape.restore.changes import Changes
from kvtape.restore.data_dir import layout_for, restore_data_dir
from kvtape.restore.difference import Comparison, Difference, DiffOptions, comparison
from kvtape.restore.into import IntoOptions, restore_into
from kvtape.restore.job import Job, Result, open_job
from kvtape.restore.rescue import Rescue, RescueOptions
from kvtape.restore.serve import ServeOptions, serve
from kvtape.restore.undo import touched_later
from kvtape.server.url import SentinelUrl, ServerUrl, Tls, parse_source, parse_url
from kvtape.storage.commands import Damage, recorded_commands
from kvtape.storage.repository import Repository, open_repository
from kvtape.tape.command_pattern import parse_pattern
from kvtape.tape.commands import RecordedCommand
from kvtape.tape.glob import Glob, parse_glob
from kvtape.tape.key_history import Episode
from kvtape.tape.plan import Plan
from kvtape.tape.point import ToLatest, ToOffset, ToTime
from kvtape.tape.query import Query
from kvtape.tape.span import Hole

__all__ = [
    "Agent",
    "Audit",
    "Beginning",
    "Changes",
    "CheckOptions",
    "Comparison",
    "Damage",
    "DestinationError",
    "DiffOptions",
    "Difference",
    "Episode",
    "Error",
    "Finding",
    "Glob",
    "Hole",
    "IdentityError",
    "IntoOptions",
    "Job",
    "KeyHistory",
    "Limits",
    "Plan",
    "PointError",
    "Progress",
    "Query",
    "RecordOptions",
    "RecordedCommand",
    "ReplayOptions",
    "ReplayResult",
    "Repository",
    "RepositoryError",
    "Rescue",
    "RescueOptions",
    "Result",
    "Selection",
    "SentinelUrl",
    "ServeOptions",
    "ServerError",
    "ServerUrl",
    "Tls",
    "ToLatest",
    "ToOffset",
    "ToTime",
    "UsageError",
    "VerificationError",
    "comparison",
    "layout_for",
    "open_audit",
    "open_job",
    "open_repository",
    "parse_glob",
    "parse_pattern",
    "parse_source",
    "parse_url",
    "recorded_commands",
    "replay_into",
    "restore_data_dir",
    "restore_into",
    "run_checks",
    "serve",
    "touched_later",
]
