"""The import rules, so that breaking one is a decision and not an accident."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import kvtape

SOURCE = Path(kvtape.__file__).parent
MODULES = sorted(SOURCE.rglob("*.py"))
RECORD = SOURCE / "record"
RECORDING = sorted(RECORD.rglob("*.py"))

# From bottom to top: what each part of the package may import from, besides itself.
# record and restore stand beside each other and know nothing of one another; server
# and storage do, too.
BASIC = {"errors", "signal", "amounts", "progress"}
ENDS = {*BASIC, "replication", "tape", "storage", "server"}
MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "signal": set(),
    "amounts": set(),
    "garbage": set(),
    "progress": set(),
    "replication": {"errors"},
    "tape": {"errors", "replication"},
    "storage": {"errors", "garbage", "replication", "tape"},
    "server": {"errors", "progress", "replication", "tape"},
    "record": ENDS,
    "restore": ENDS,
    # It begins with a restore, if that is asked for.
    "replay": {*ENDS, "restore"},
    "audit": {*BASIC, "replication", "tape", "storage"},
    # The spool's place and what to acknowledge are recording's to say.
    "check": {*ENDS, "record"},
    "watch": {*ENDS, "record"},
    "cli": {*ENDS, "record", "restore", "replay", "audit", "check", "watch"},
    "__main__": {"cli", "errors", "garbage"},
    # The API: everything that the command line stands on.
    "__init__": {*ENDS, "record", "restore", "replay", "audit", "check"},
}

# The same within record, which is large.
TOLD = {"events", "journal", "backoff"}
RECORD_MAY_IMPORT: dict[str, set[str]] = {
    "backoff": set(),
    "events": set(),
    "journal": {"events"},
    "acknowledge": set(),
    "spooling": TOLD,
    "options": {"acknowledge", "spooling"},
    "uploading": {*TOLD, "spooling"},
    "histories": {*TOLD, "spooling", "uploading"},
    "seeding": {*TOLD, "spooling", "histories"},
    "linking": {
        *TOLD,
        *("acknowledge", "options", "spooling", "uploading", "histories", "seeding"),
    },
    "parts": {
        *TOLD,
        *("options", "spooling", "uploading", "histories", "seeding", "linking"),
    },
    "agent": {
        *TOLD,
        *("acknowledge", "options", "spooling", "uploading", "linking", "parts"),
    },
    "fleet": {*TOLD, "options", "agent"},
    "__init__": set(),
}

# These do no I/O, ask no clock and roll no dice, so that all they do can be tested by
# what goes in and what comes out.
PURE = {"errors", "amounts", "progress", "replication", "tape"}
IMPURE = {
    *("trio", "anyio", "asyncio", "threading", "subprocess", "select", "signal"),
    *("fsspec", "socket", "ssl", "os", "io", "pathlib", "shutil", "tempfile", "mmap"),
    *("time", "random", "secrets", "uuid", "logging", "warnings", "sys"),
}
# A file in memory is a value.
HARMLESS = {"io.BytesIO"}

NO_NAMES = {"util", "utils", "helper", "helpers", "common", "types", "constants"}
NO_WORDS = {"manager", "handler", "misc", "interfaces"}

MOST_LINES = 500


def part(module: Path, folder: Path = SOURCE) -> str:
    """Return the part of the package, or of a folder in it, that has a module."""
    return module.relative_to(folder).parts[0].removesuffix(".py")


def imports(module: Path) -> Iterator[str]:
    """Yield what a module imports, as full names."""
    for node in ast.walk(ast.parse(module.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = node.module or ""
            if node.level:
                folders = module.relative_to(SOURCE.parent).parts[: -node.level]
                package = ".".join([*folders, *filter(None, [package])])
            yield from (f"{package}.{alias.name}" for alias in node.names)


def parts_imported(module: Path, folder: Path = SOURCE) -> set[str]:
    """Return the other parts of the package, or of a folder in it, that it imports."""
    package = ".".join(["kvtape", *folder.relative_to(SOURCE).parts, ""])
    names = {name for name in imports(module) if name.startswith(package)}
    # `from kvtape import x` may mean a part or a name of __init__, which has none.
    return {name.removeprefix(package).split(".")[0] for name in names} - {
        part(module, folder)
    }


def name(module: Path) -> str:
    return str(module.relative_to(SOURCE))


def test_every_part_has_its_place_in_a_table() -> None:
    assert {part(module) for module in MODULES} == MAY_IMPORT.keys()
    assert {part(module, RECORD) for module in RECORDING} == RECORD_MAY_IMPORT.keys()


@pytest.mark.parametrize("table", [MAY_IMPORT, RECORD_MAY_IMPORT])
def test_a_table_goes_from_bottom_to_top(table: dict[str, set[str]]) -> None:
    below: set[str] = set()
    for one, may_import in table.items():
        assert may_import <= below
        below.add(one)


@pytest.mark.parametrize("module", MODULES, ids=name)
def test_a_module_imports_only_from_what_lies_below(module: Path) -> None:
    assert parts_imported(module) <= MAY_IMPORT[part(module)]


@pytest.mark.parametrize("module", RECORDING, ids=name)
def test_a_module_of_recording_imports_only_from_what_lies_below(module: Path) -> None:
    assert parts_imported(module, RECORD) <= RECORD_MAY_IMPORT[part(module, RECORD)]


@pytest.mark.parametrize("module", MODULES, ids=name)
def test_a_module_of_a_pure_part_does_no_io(module: Path) -> None:
    if part(module) in PURE:
        roots = {found.split(".")[0] for found in set(imports(module)) - HARMLESS}
        assert not roots & IMPURE


@pytest.mark.parametrize("module", MODULES, ids=name)
def test_a_modules_name_says_what_it_is(module: Path) -> None:
    for word in module.relative_to(SOURCE).with_suffix("").parts:
        assert word not in NO_NAMES
        assert not NO_WORDS & set(word.split("_"))


@pytest.mark.parametrize("module", MODULES, ids=name)
def test_a_module_can_be_read_in_one_sitting(module: Path) -> None:
    assert len(module.read_text().splitlines()) <= MOST_LINES
