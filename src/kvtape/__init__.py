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

from importlib import import_module
from typing import TYPE_CHECKING

# A script waits for what it uses, and the command line for none of it: a name is
# imported when it is first asked for. Type checkers see it here.
if TYPE_CHECKING:
    from kvtape.audit.history import Beginning as Beginning
    from kvtape.audit.history import KeyHistory as KeyHistory
    from kvtape.audit.history import Unread as Unread
    from kvtape.audit.opened import Audit as Audit
    from kvtape.audit.opened import open_audit as open_audit
    from kvtape.check.finding import Finding as Finding
    from kvtape.check.survey import CheckOptions as CheckOptions
    from kvtape.check.survey import run_checks as run_checks
    from kvtape.errors import DestinationError as DestinationError
    from kvtape.errors import Error as Error
    from kvtape.errors import IdentityError as IdentityError
    from kvtape.errors import PointError as PointError
    from kvtape.errors import RepositoryError as RepositoryError
    from kvtape.errors import ServerError as ServerError
    from kvtape.errors import UsageError as UsageError
    from kvtape.errors import VerificationError as VerificationError
    from kvtape.record.agent import Agent as Agent
    from kvtape.record.options import RecordOptions as RecordOptions
    from kvtape.record.spooling.recorder import Limits as Limits
    from kvtape.replay.into import ReplayResult as ReplayResult
    from kvtape.replay.into import replay_into as replay_into
    from kvtape.replay.options import ReplayOptions as ReplayOptions
    from kvtape.replay.progress import Progress as Progress
    from kvtape.replay.selection import Selection as Selection
    from kvtape.restore.changes import Changes as Changes
    from kvtape.restore.data_dir import layout_for as layout_for
    from kvtape.restore.data_dir import restore_data_dir as restore_data_dir
    from kvtape.restore.difference import Comparison as Comparison
    from kvtape.restore.difference import Difference as Difference
    from kvtape.restore.difference import DiffOptions as DiffOptions
    from kvtape.restore.difference import comparison as comparison
    from kvtape.restore.into import IntoOptions as IntoOptions
    from kvtape.restore.into import restore_into as restore_into
    from kvtape.restore.job import Job as Job
    from kvtape.restore.job import Result as Result
    from kvtape.restore.job import open_job as open_job
    from kvtape.restore.rescue import Rescue as Rescue
    from kvtape.restore.rescue import RescueOptions as RescueOptions
    from kvtape.restore.serve import ServeOptions as ServeOptions
    from kvtape.restore.serve import serve as serve
    from kvtape.restore.undo import touched_later as touched_later
    from kvtape.server.url import SentinelUrl as SentinelUrl
    from kvtape.server.url import ServerUrl as ServerUrl
    from kvtape.server.url import Tls as Tls
    from kvtape.server.url import parse_source as parse_source
    from kvtape.server.url import parse_url as parse_url
    from kvtape.storage.commands import Damage as Damage
    from kvtape.storage.commands import recorded_commands as recorded_commands
    from kvtape.storage.repository import Repository as Repository
    from kvtape.storage.repository import open_repository as open_repository
    from kvtape.tape.command_pattern import parse_pattern as parse_pattern
    from kvtape.tape.commands import RecordedCommand as RecordedCommand
    from kvtape.tape.glob import Glob as Glob
    from kvtape.tape.glob import parse_glob as parse_glob
    from kvtape.tape.key_history import Episode as Episode
    from kvtape.tape.plan import Plan as Plan
    from kvtape.tape.point import ToLatest as ToLatest
    from kvtape.tape.point import ToOffset as ToOffset
    from kvtape.tape.point import ToTime as ToTime
    from kvtape.tape.query import Query as Query
    from kvtape.tape.span import Hole as Hole

# Each public name, and the module of kvtape that has it.
_PLACES = {
    "Agent": "record.agent",
    "Audit": "audit.opened",
    "Beginning": "audit.history",
    "Changes": "restore.changes",
    "CheckOptions": "check.survey",
    "Comparison": "restore.difference",
    "Damage": "storage.commands",
    "DestinationError": "errors",
    "DiffOptions": "restore.difference",
    "Difference": "restore.difference",
    "Episode": "tape.key_history",
    "Error": "errors",
    "Finding": "check.finding",
    "Glob": "tape.glob",
    "Hole": "tape.span",
    "IdentityError": "errors",
    "IntoOptions": "restore.into",
    "Job": "restore.job",
    "KeyHistory": "audit.history",
    "Limits": "record.spooling.recorder",
    "Plan": "tape.plan",
    "PointError": "errors",
    "Progress": "replay.progress",
    "Query": "tape.query",
    "RecordOptions": "record.options",
    "RecordedCommand": "tape.commands",
    "ReplayOptions": "replay.options",
    "ReplayResult": "replay.into",
    "Repository": "storage.repository",
    "RepositoryError": "errors",
    "Rescue": "restore.rescue",
    "RescueOptions": "restore.rescue",
    "Result": "restore.job",
    "Selection": "replay.selection",
    "SentinelUrl": "server.url",
    "ServeOptions": "restore.serve",
    "ServerError": "errors",
    "ServerUrl": "server.url",
    "Tls": "server.url",
    "ToLatest": "tape.point",
    "ToOffset": "tape.point",
    "ToTime": "tape.point",
    "Unread": "audit.history",
    "UsageError": "errors",
    "VerificationError": "errors",
    "comparison": "restore.difference",
    "layout_for": "restore.data_dir",
    "open_audit": "audit.opened",
    "open_job": "restore.job",
    "open_repository": "storage.repository",
    "parse_glob": "tape.glob",
    "parse_pattern": "tape.command_pattern",
    "parse_source": "server.url",
    "parse_url": "server.url",
    "recorded_commands": "storage.commands",
    "replay_into": "replay.into",
    "restore_data_dir": "restore.data_dir",
    "restore_into": "restore.into",
    "run_checks": "check.survey",
    "serve": "restore.serve",
    "touched_later": "restore.undo",
}

__all__ = list(_PLACES)


# A type checker that saw this would find every misspelt name to be fine.
if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        """Import a public name; from now on it is there."""
        if name not in _PLACES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        found = getattr(import_module(f"{__name__}.{_PLACES[name]}"), name)
        globals()[name] = found
        return found


def __dir__() -> list[str]:
    return sorted(globals().keys() | _PLACES)
