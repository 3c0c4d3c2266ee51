"""kvtape.toml: any option of any verb, without typing it.

What several verbs share stands at the top, what one verb has under its name:

    repo = "s3://backups/redis"
    [record]
    url = "redis://127.0.0.1:6379"
    flush-interval = "1s"

Several servers are recorded by one process from tables of their own; what is the same
for all of them stands in [record]:

    [sources.shop]
    url = "redis://10.0.0.5"
    [sources.users]
    url = "redis://10.0.0.6"

An unknown key is an error: a misspelt option that is silently not set is how backups
turn out not to be there.
"""

from __future__ import annotations

import tomllib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

from kvtape.errors import UsageError
from kvtape.tape.names import SOURCE_NAME

DEFAULT = Path("kvtape.toml")

# Options that must not stand in a file, or make no sense there.
_NOT_IN_A_FILE = {"config", "help"}

_SOURCES = "sources"

# What is of the process, and cannot differ between its sources.
_OF_THE_PROCESS = {"source", "metrics", "ready-max-lag", "log-format", "verbose"}

# Verbs that are about what another verb does: its options are theirs, where they have
# them, and their own table stands over it.
_ABOUT = {"status": "record", "check": "record"}


def apply_config(context: typer.Context, path: Path | None) -> Path | None:
    """Make a file's values the defaults of the command that is about to run."""
    if path is None and not DEFAULT.exists():
        return None
    found = path or DEFAULT
    try:
        content = tomllib.loads(found.read_text())
    except OSError as error:
        raise UsageError(f"cannot read {found}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{found} is no TOML: {error}") from None
    tables = _take_sources(context, found, content)
    context.default_map = _as_lists(context, _defaults(context, found, content))
    if isinstance(context.obj, SourceTable):
        context.default_map |= context.obj.values
    context.meta[_SOURCES] = tables
    return found


@dataclass(frozen=True, slots=True)
class SourceTable:
    """A [sources.NAME] table: values by the names of the parameters of record.

    As the obj of a context, it is laid over the defaults there.
    """

    name: str
    values: dict[str, object]


def source_tables(context: typer.Context) -> list[SourceTable]:
    """Return the [sources.NAME] tables of the file that was read."""
    tables: list[SourceTable] = context.meta.get(_SOURCES, [])
    return tables


def params_of(context: typer.Context, table: SourceTable) -> dict[str, Any]:
    """Return the parameters that the running verb, record or check, has for a source.

    What stands on the command line is laid over its table, and that over the rest.
    """
    given = {
        name: value
        for name, value in context.params.items()
        if is_from(context, name, "COMMANDLINE")
    }
    spool, path = context.params["spool"], context.params["config"]
    arguments = [] if path is None else ["--config", str(path)]
    try:
        parsed = context.command.make_context(
            context.command.name, arguments, parent=context.parent, obj=table
        )
    except typer.BadParameter as error:
        raise UsageError(f"[sources.{table.name}]: {error.format_message()}") from None
    params = parsed.params | given | {"source": table.name}
    if spool is not None and "spool" not in table.values:
        # Each needs a folder of its own.
        params["spool"] = spool / table.name
    if params["url"] is None:
        raise UsageError(f"[sources.{table.name}] has no url")
    return params


def is_from(context: typer.Context, name: str, origin: str) -> bool:
    """Whether a parameter's value is from the command line, a file or elsewhere."""
    found = context.get_parameter_source(name)
    return found is not None and found.name == origin


def _take_sources(
    context: typer.Context, path: Path, content: dict[str, object]
) -> list[SourceTable]:
    """Take the [sources] tables out of a file's content."""
    tables = content.pop(_SOURCES, {})
    verbs = getattr(context.find_root().command, "commands", {})
    allowed = _keys(verbs["record"])
    allowed = {key: allowed[key] for key in allowed.keys() - _OF_THE_PROCESS}
    if not isinstance(tables, dict):
        raise UsageError(f"{path} has sources as a value: write [sources.NAME] tables")
    found = []
    for name, table in tables.items():
        if not SOURCE_NAME.fullmatch(name):
            raise UsageError(
                f"{path} has [sources.{name}], and a source's name is made of letters, "
                "digits, dots, - and _"
            )
        if not isinstance(table, dict):
            raise UsageError(f"{path} has {name} in [sources], which is no table")
        for key in table.keys() - allowed.keys():
            raise _unknown(path, f"{key} in [sources.{name}]", allowed)
        values = {allowed[key]: value for key, value in table.items()}
        found.append(SourceTable(name, values))
    return found


def _defaults(
    context: typer.Context, path: Path, content: dict[str, object]
) -> dict[str, object]:
    """Return the file's values by the names of the running command's parameters."""
    root = context.find_root()
    verbs = getattr(root.command, "commands", {})
    allowed = {verb: _keys(command) for verb, command in verbs.items()}
    # What needs no repository needs no file, and would not read one.
    allowed = {verb: keys for verb, keys in allowed.items() if "repo" in keys}
    shared = _shared(allowed.values())
    own = context.command.name or ""
    defaults: dict[str, object] = {}
    for key, value in content.items():
        if isinstance(value, dict):
            if key not in allowed:
                raise _unknown(path, f"[{key}]", [f"[{verb}]" for verb in allowed])
            for name in value.keys() - allowed[key].keys():
                raise _unknown(path, f"{name} in [{key}]", allowed[key])
        elif key not in shared:
            raise _unknown(path, key, shared)
        elif key in allowed[own]:
            defaults[allowed[own][key]] = value
    for table in (_ABOUT.get(own, own), own):
        mine = content.get(table, {})
        if isinstance(mine, dict):
            known = mine.keys() & allowed[own].keys()
            defaults |= {allowed[own][key]: mine[key] for key in known}
    return defaults


def _as_lists(context: typer.Context, defaults: dict[str, object]) -> dict[str, object]:
    """Return defaults in which one value is a list where there may be several."""
    several = {
        parameter.name
        for parameter in context.command.params
        if getattr(parameter, "multiple", False)
    }
    return {
        name: [value] if name in several and not isinstance(value, list) else value
        for name, value in defaults.items()
    }


def _keys(command: object) -> dict[str, str]:
    """Return the keys that set a command's parameters, and the parameters' names."""
    keys = {}
    for parameter in getattr(command, "params", []):
        # An argument's only "option" is its own name.
        longest = max(parameter.opts, key=len)
        key = longest.removeprefix("--")
        if key not in _NOT_IN_A_FILE:
            keys[key] = parameter.name
    return keys


def _shared(keys: Iterable[Iterable[str]]) -> list[str]:
    """Return the keys that more than one verb has."""
    counts = Counter(key for command in keys for key in command)
    return sorted(key for key, count in counts.items() if count > 1)


def _unknown(path: Path, key: str, allowed: Iterable[str]) -> UsageError:
    return UsageError(
        f"{path} has the unknown key {key}; allowed there: {', '.join(sorted(allowed))}"
    )
