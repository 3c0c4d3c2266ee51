"""What docs/operations says is what kvtape has: options, events, alerts, files."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any, get_args

import pytest
import typer

from kvtape.cli.app import app
from kvtape.cli.config import source_tables
from kvtape.record.events import Event

FOLDER = Path(__file__).parents[1] / "docs"
RUNBOOK = (FOLDER / "operations.md").read_text()
UNIT = FOLDER / "operations" / "kvtape.service"
COMMAND: Any = typer.main.get_command(app)


def test_the_example_configuration_is_one() -> None:
    parent = COMMAND.make_context("kvtape", ["record"])
    path = FOLDER / "operations" / "kvtape.toml"
    context = COMMAND.commands["record"].make_context(
        "record", ["--config", str(path)], parent=parent
    )
    assert context.params["repo"] == "s3://backups/redis"
    assert context.params["spool"] == Path("/var/lib/kvtape/spool")
    assert [table.name for table in source_tables(context)] == ["shop", "users"]
    assert all("url" in table.values for table in source_tables(context))


def test_every_option_that_is_named_exists() -> None:
    options = {
        option
        for verb in COMMAND.commands.values()
        for parameter in verb.params
        for option in parameter.opts
    }
    container = (FOLDER / "operations" / "Containerfile").read_text()
    lines = [line for line in container.splitlines() if "CMD [" in line]
    text = "\n".join([RUNBOOK, (FOLDER / "metrics.md").read_text(), *lines])
    found = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", text + UNIT.read_text()))
    assert found
    assert found <= options


def test_every_event_is_in_the_runbook() -> None:
    names = {kind.name for kind in get_args(Event)}
    assert len(names) == len(get_args(Event))
    table = RUNBOOK.partition("## The log")[2].partition("\n## ")[0]
    first = re.findall(r"^\| (`[^|]+) \|", table, re.MULTILINE)
    assert set(re.findall(r"`([\w-]+)`", " ".join(first))) == names


def test_every_alert_is_in_the_runbook() -> None:
    rules = (FOLDER / "operations" / "alerts.yml").read_text()
    alerts = re.findall(r"alert: (\w+)", rules)
    assert len(alerts) == 4
    assert all(f"*{alert}*" in RUNBOOK for alert in alerts)
    places = re.findall(r'docs/operations.md,\s+"([^"]+)"', rules)
    assert len(places) == 4
    assert all(f"\n### {place}\n" in RUNBOOK for place in places)


def test_the_unit_waits_for_the_stop_and_is_told_of_the_watchdog() -> None:
    unit = UNIT.read_text()
    assert "\nType=notify\n" in unit
    assert re.search(r"^WatchdogSec=\d+$", unit, re.MULTILINE)
    stop = re.search(r"^TimeoutStopSec=(\d+)$", unit, re.MULTILINE)
    assert stop is not None
    assert int(stop[1]) > 20


def test_systemd_finds_nothing_wrong_with_the_unit() -> None:
    program = shutil.which("systemd-analyze")
    if program is None:
        pytest.skip("there is no systemd-analyze")
    done = subprocess.run(
        [program, "verify", str(UNIT)], capture_output=True, text=True, check=False
    )
    if "Failed to connect" in done.stderr or "not found" in done.stderr:
        pytest.skip(done.stderr.strip())
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
