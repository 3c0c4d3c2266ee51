"""Every option can stand in kvtape.toml, and nothing else can."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest
import typer

from kvtape.cli.app import app
from kvtape.cli.config import apply_config
from kvtape.cli.record import _record_options
from recording import Tape
from verbs import kvtape

COMMAND: Any = typer.main.get_command(app)
VERBS: dict[str, Any] = {
    name: verb
    for name, verb in COMMAND.commands.items()
    if any(parameter.name == "repo" for parameter in verb.params)
}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Run in a folder of its own, where a kvtape.toml may be put."""
    monkeypatch.chdir(tmp_path)
    for name in ("KVTAPE_REPO", "KVTAPE_CONFIG", "KVTAPE_PASSWORD"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def parsed(verb: str, *arguments: str) -> dict[str, Any]:
    """Return a verb's parameters, as it would get them."""
    parent = COMMAND.make_context("kvtape", [verb])
    context = VERBS[verb].make_context(verb, list(arguments), parent=parent)
    parameters: dict[str, Any] = context.params
    return parameters


SAMPLES: dict[Any, tuple[str, object]] = {
    bool: ("true", True),
    int: ("7", 7),
    Path: ('"some/where"', Path("some/where")),
    str: ('"some"', "some"),
    list[int]: ("[7, 0]", [7, 0]),
    list[str]: ('["DEL", "*"]', ["DEL", "*"]),
}


def sample(kind: Any) -> tuple[str, object]:  # noqa: ANN401
    """Return a TOML value that an option of this type can have, and what it means."""
    if get_origin(kind) is not Literal and kind not in SAMPLES:
        [kind] = set(get_args(kind)) - {type(None)}
    if get_origin(kind) is Literal:
        last = get_args(kind)[-1]
        return f'"{last}"', last
    return SAMPLES[kind]


def options() -> Iterator[tuple[str, str, str, str, Any]]:
    """Yield each option: its verb, key and name, a TOML value, and what that means."""
    for verb, command in VERBS.items():
        kinds = get_type_hints(command.callback)
        for parameter in command.params:
            key = max(parameter.opts, key=len).removeprefix("--")
            if parameter.name not in ("config", "help"):
                yield verb, key, parameter.name, *sample(kinds[parameter.name])


OPTIONS = list(options())


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((), False),
        (("--key-filters",), True),
        (("--no-key-filters",), False),
    ],
)
def test_what_is_on_by_default_can_be_off_in_the_file(
    folder: Path, arguments: tuple[str, ...], expected: bool
) -> None:
    given = ("redis://127.0.0.1", "--repo", "repo")
    assert _record_options(parsed("record", *given)).key_filters
    (folder / "kvtape.toml").write_text("[record]\nkey-filters = false\n")
    options = _record_options(parsed("record", *given, *arguments))
    assert options.key_filters is expected


def needed(verb: str) -> str:
    own = {
        "record": 'url = "redis://h"\n',
        "history": 'key = "k"\n',
        "replay": 'into = "redis://h"\n',
    }
    return own.get(verb, "") + 'repo = "r"'


def table(verb: str, key: str, value: str) -> str:
    lines = [line for line in needed(verb).splitlines() if not line.startswith(key)]
    return "\n".join([f"[{verb}]", *lines, f"{key} = {value}"])


@pytest.mark.parametrize(
    ("verb", "key", "name", "value", "meaning"),
    OPTIONS,
    ids=[f"{verb} {key}" for verb, key, *_ in OPTIONS],
)
def test_every_option_can_stand_in_the_file(
    folder: Path, verb: str, key: str, name: str, value: str, meaning: object
) -> None:
    (folder / "kvtape.toml").write_text(table(verb, key, value))
    assert parsed(verb)[name] == meaning
    (folder / "kvtape.toml").rename(folder / "other.toml")
    assert parsed(verb, "--config", "other.toml")[name] == meaning


@pytest.mark.parametrize(
    ("key", "value", "meaning"),
    [("key", '"user:*"', ["user:*"]), ("db", "3", [3]), ("command", '"DEL"', ["DEL"])],
)
def test_what_can_be_given_several_times_can_stand_there_once(
    folder: Path, key: str, value: str, meaning: object
) -> None:
    (folder / "kvtape.toml").write_text(table("audit", key, value))
    assert parsed("audit")[key] == meaning


def test_there_are_options() -> None:
    found = {(verb, key) for verb, key, *_ in OPTIONS}
    assert {("record", "url"), ("record", "ack"), ("restore", "force")} <= found
    assert {("info", "json"), ("info", "source"), ("restore", "to-time")} <= found
    assert set(VERBS) >= {"record", "info", "restore"}


def test_what_several_verbs_have_can_stand_at_the_top(folder: Path) -> None:
    (folder / "kvtape.toml").write_text(
        'repo = "of all"\nsource = "one"\njson = true\n[info]\nsource = "two"\n'
    )
    found = parsed("info")
    assert (found["repo"], found["source"], found["json"]) == ("of all", "two", True)
    found = parsed("restore")
    assert (found["repo"], found["source"], found["json"]) == ("of all", "one", True)
    # record has no --json, and does not mind.
    assert parsed("record", "redis://h")["repo"] == "of all"


def test_what_is_said_counts_more_than_the_file(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "kvtape.toml").write_text('repo = "of the file"\n')
    assert parsed("info")["repo"] == "of the file"
    monkeypatch.setenv("KVTAPE_REPO", "of the environment")
    assert parsed("info")["repo"] == "of the environment"
    assert parsed("info", "--repo", "said")["repo"] == "said"


def test_the_file_may_be_named_by_the_environment(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "kvtape.toml").write_text('repo = "not this"\n')
    (folder / "other.toml").write_text('repo = "this"\n')
    monkeypatch.setenv("KVTAPE_CONFIG", "other.toml")
    assert parsed("info")["repo"] == "this"


@pytest.mark.parametrize(
    ("content", "named", "allowed"),
    [
        ('rep = "x"', "the unknown key rep;", "repo, scratch, sentinel-password-file,"),
        ("[record]\nflush = 1", "the unknown key flush in [record]", "flush-interval"),
        ("[info]\nack = 1", "the unknown key ack in [info]", "json, repo, source"),
        (
            "[recrod]\nack = 1",
            "the unknown key [recrod]",
            "[info], [record], [replay], [restore]",
        ),
        ("record = 1", "the unknown key record", "repo"),
        ("upload-interval = 1", "the unknown key upload-interval;", "repo"),
        ("[info]\nconfig = 1", "the unknown key config in [info]", "json"),
        ("[info]\nto_time = 1", "the unknown key to_time in [info]", "json"),
    ],
)
@pytest.mark.parametrize("verb", ["info", "restore"])
def test_an_unknown_key_is_named_with_the_allowed_ones(
    folder: Path, content: str, named: str, allowed: str, verb: str
) -> None:
    # Also where it is of another verb: a misspelt backup is no backup.
    (folder / "kvtape.toml").write_text(content)
    outcome = kvtape(verb, "--repo", "x")
    assert (outcome.status, outcome.out) == (2, "")
    assert "kvtape.toml has" in outcome.err
    assert named in outcome.err
    assert allowed in outcome.err


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"repo = ", "kvtape.toml is no TOML: "),
        (b"repo = '\xff'", "kvtape.toml is no TOML: "),
        (b"a = 1\na = 2", "kvtape.toml is no TOML: "),
    ],
)
def test_a_file_that_is_no_toml_is_named(
    folder: Path, content: bytes, said: str
) -> None:
    (folder / "kvtape.toml").write_bytes(content)
    outcome = kvtape("info", "--repo", "x")
    assert outcome.status == 2
    assert said in outcome.err


def test_a_file_that_cannot_be_read_is_named(folder: Path) -> None:
    outcome = kvtape("info", "--repo", "x", "--config", "nosuch.toml")
    assert outcome.status == 2
    assert "cannot read nosuch.toml: No such file" in outcome.err
    (folder / "kvtape.toml").mkdir()
    outcome = kvtape("info", "--repo", "x")
    assert outcome.status == 2
    assert "cannot read kvtape.toml: Is a directory" in outcome.err


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("full-resyncs-per-hour = 0", "full-resyncs-per-hour"),
        ("full-resyncs-per-hour = 'many'", "full-resyncs-per-hour"),
        ("ack = 'loud'", "'loud' is not one of"),
        ("flush-interval = 'soon'", "--flush-interval 'soon' is no duration"),
        ("segment-size = 'big'", "'big' is no size"),
        ("stop-timeout = true", "'True' is no duration"),
    ],
)
def test_a_value_is_looked_at_as_if_it_was_said(
    folder: Path, line: str, said: str
) -> None:
    (folder / "kvtape.toml").write_text(f"[record]\nurl = 'redis://h'\n{line}\n")
    outcome = kvtape("record", "--repo", "x")
    assert outcome.status == 2
    assert said in outcome.err


def test_numbers_will_do_for_durations_and_sizes(folder: Path) -> None:
    (folder / "kvtape.toml").write_text(
        "[record]\nflush-interval = 0.5\nsegment-size = 1000\n"
    )
    found = parsed("record", "redis://h", "--repo", "x")
    assert (found["flush_interval"], found["segment_size"]) == ("0.5", "1000")


def test_where_there_is_no_file_nothing_is_set(folder: Path) -> None:
    context = COMMAND.make_context("kvtape", ["info"])
    assert apply_config(context, None) is None
    Tape(folder / "repo").snapshot()
    assert kvtape("info", "--repo", "repo").status == 0


def test_status_is_about_what_record_does(folder: Path) -> None:
    (folder / "kvtape.toml").write_text(
        '[record]\nspool = "of-record"\nsource = "shop"\nack = "hidden"\n'
        '[status]\nsource = "own"\n'
    )
    found = parsed("status")
    assert (found["spool"], found["source"]) == (Path("of-record"), "own")
