"""Who runs one verb does not wait for what the others need."""

from __future__ import annotations

import subprocess
import sys

import pytest

from kvtape.cli.app import VERBS

MODULES = {f"kvtape.cli.{verb}" for verb in VERBS}

# What each of these has no use for, at least until it runs.
UNUSED = {
    "info": {"trio", "kvtape.record", "kvtape.restore", "kvtape.audit"},
    "audit": {"trio", "kvtape.record", "kvtape.restore"},
    "history": {"trio", "kvtape.record", "kvtape.restore"},
    "diff": {"kvtape.record", "kvtape.audit"},
    "restore": {"kvtape.record", "kvtape.audit"},
    "replay": {"kvtape.record", "kvtape.audit", "kvtape.restore"},
    "check": {"kvtape.restore", "kvtape.audit"},
    "record": {"kvtape.restore", "kvtape.audit"},
    "status": {"kvtape.restore", "kvtape.audit"},
}
# A store that is no folder, metrics, a terminal, and what replays.
RARE = {
    "fsspec",
    "prometheus_client",
    "h11",
    "rich",
    "kvtape.watch.pages",
    "kvtape.replay",
}


def imported(code: str, *arguments: str) -> set[str]:
    """Return all modules that a fresh interpreter has in the end."""
    script = (
        f"import sys\ntry:\n    {code}\n"
        "finally:\n    print(*sys.modules, file=sys.__stderr__)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    return set(done.stderr.splitlines()[-1].split())


def test_the_package_by_itself_imports_none_of_its_parts() -> None:
    found = imported("import kvtape")
    assert {name for name in found if name.startswith("kvtape")} == {"kvtape"}


def test_a_name_of_the_package_is_imported_when_it_is_asked_for() -> None:
    found = imported("from kvtape import ToOffset")
    assert "kvtape.tape.point" in found
    assert not {"trio", "kvtape.server", "kvtape.record", "kvtape.restore"} & found


@pytest.mark.parametrize("arguments", [("--version",), ("reply",)])
def test_no_verb_is_imported_where_none_is_run(arguments: tuple[str, ...]) -> None:
    found = imported("from kvtape.__main__ import main; main()", *arguments)
    assert "kvtape.cli.app" in found
    assert not ({"trio", "kvtape.tape", "kvtape.server"} | MODULES) & found


@pytest.mark.slow
@pytest.mark.parametrize("verb", UNUSED)
def test_a_verb_does_not_import_what_it_has_no_use_for(verb: str) -> None:
    found = imported(f"import kvtape.cli.{verb}")
    unused = UNUSED[verb] | (RARE - {f"kvtape.{verb}"})
    assert f"kvtape.cli.{verb}" in found
    assert not unused & found


def test_a_verb_is_the_only_one_that_is_imported() -> None:
    found = imported("from kvtape.__main__ import main; main()", "info", "--help")
    assert found & MODULES == {"kvtape.cli.info"}
