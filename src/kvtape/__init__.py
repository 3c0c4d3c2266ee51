"""Record every write to a Redis or Valkey server, and bring any moment back.

What the command line does, a script can do:

- record: make an Agent of RecordOptions and run it with trio.run(agent.run); stop() has
  it store what it has and return.
- check: run_checks() of CheckOptions, with trio, returns a list of Finding.
- plan: open_job() finds out what a restore to a point takes, and restores nothing.
- restore: restore_data_dir() into a folder, restore_into() into a running server, and
  serve() to whoever says REPLICAOF. The first blocks, the others are for trio.
- read: recorded_commands() yields the stream as commands.

Every error that is not a bug is an Error, whose exit_status is the command line's.
"""

from __future__ import annotations

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
from kvtape.restore.data_dir import layout_for, restore_data_dir
from kvtape.restore.into import IntoOptions, restore_into
from kvtape.restore.job import Job, Result, open_job
from kvtape.restore.serve import ServeOptions, serve
from kvtape.server.tls import Tls
from kvtape.server.url import SentinelUrl, ServerUrl, parse_source, parse_url
from kvtape.storage.commands import recorded_commands
from kvtape.storage.repository import Repository, open_repository
from kvtape.tape.commands import RecordedCommand
from kvtape.tape.plan import Plan
from kvtape.tape.point import ToLatest, ToOffset, ToTime

__all__ = [
    "Agent",
    "CheckOptions",
    "DestinationError",
    "Error",
    "Finding",
    "IdentityError",
    "IntoOptions",
    "Job",
    "Limits",
    "Plan",
    "PointError",
    "RecordOptions",
    "RecordedCommand",
    "Repository",
    "RepositoryError",
    "Result",
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
    "layout_for",
    "open_job",
    "open_repository",
    "parse_source",
    "parse_url",
    "recorded_commands",
    "restore_data_dir",
    "restore_into",
    "run_checks",
    "serve",
]
