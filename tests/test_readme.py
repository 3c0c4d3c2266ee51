"""What the README says is run here, word for word but for ports and times.

Its first two commands, which set a machine up, are run by .ci/run.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import zstandard

from servers import Server, StartServer

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()

TIMEOUT = 60
POLL = 0.05


def blocks(kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


COMMANDS = [
    line.removeprefix("$ kvtape ")
    for block in blocks("console")
    for line in block.splitlines()
]


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    return os.environ | {"XDG_STATE_HOME": str(tmp_path / "state")}


@pytest.fixture
def kvtape(
    tmp_path: Path, environment: dict[str, str]
) -> Iterator[Callable[[str], subprocess.Popen[str]]]:
    """Start kvtape with a line of arguments, in a folder of its own."""
    started: list[subprocess.Popen[str]] = []

    def start(line: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "kvtape", *shlex.split(line)],
            cwd=tmp_path,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def read_until(process: subprocess.Popen[str], words: str) -> str:
    """Read what a process says, up to the line with these words."""
    assert process.stdout is not None
    said = ""
    for line in process.stdout:
        said += line
        if words in line:
            return said
    pytest.fail(f"it ended without {words!r}: {said}")


def finish(process: subprocess.Popen[str]) -> str:
    said, _ = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 0, said
    return said


def test_the_readme_has_the_two_commands_that_ci_runs() -> None:
    setups = [line for block in blocks("sh") for line in block.splitlines()]
    assert len(setups) == 2
    assert setups[0].endswith("kvtape demo")
    assert setups[1] == "tools/check"


@pytest.mark.slow
def test_the_demo_restores_every_key_in_under_a_minute(
    kvtape: Callable[[str], subprocess.Popen[str]],
) -> None:
    said = finish(kvtape("demo"))
    said = said.replace("\n", " ")
    assert "are what they were before the FLUSHALL" in said
    assert "brought them back into it: all 100 are what they were" in said


@pytest.mark.slow
@pytest.mark.parametrize("server_name", ["valkey-9.1"], indirect=True)
def test_the_commands_of_the_readme_do_what_it_says(
    tmp_path: Path,
    server_name: str,
    start_server: StartServer,
    kvtape: Callable[[str], subprocess.Popen[str]],
) -> None:
    source, target, follower = (start_server(server_name) for _ in range(3))
    check, record, *others = [
        line.replace(":6379", f":{source.port}").replace(":6380", f":{target.port}")
        for line in COMMANDS
    ]
    assert record.startswith("record ")
    finish(kvtape(check))
    with source.client() as client:
        client.set("before", "the snapshot")
        recording = kvtape(record)
        read_until(recording, "is complete")
        client.set("user:42:cart", "full")
        client.delete("user:42:cart")
        client.set("after", "it")
        wait_until_spooled(tmp_path, b"after")
    recording.send_signal(signal.SIGTERM)
    finish(recording)
    described = json.loads(finish(kvtape("info --repo backups --json")))
    moment = described["restorable"][0]["end_time"]
    for line in others:
        if "--serve" in line:
            serve(kvtape(line.replace("7000", "0")), follower)
        else:
            finish(kvtape(line.replace("now-15m", moment)))
    for server in (target, follower):
        with server.client() as client:
            assert client.get("before") == b"the snapshot"
            assert client.get("after") == b"it"
    assert (tmp_path / "restored" / "redis.conf").exists()
    printed = run_python(tmp_path, blocks("python")[0])
    assert "(b'SET', b'after', b'it')" in printed


def wait_until_spooled(folder: Path, word: bytes) -> None:
    """Wait until the segment that is being written holds a word."""
    deadline = time.monotonic() + TIMEOUT
    while time.monotonic() < deadline:
        for segment in folder.glob("state/kvtape/*/recording/stream.seg"):
            frames = zstandard.ZstdDecompressor().stream_reader(
                segment.read_bytes(), read_across_frames=True
            )
            if word in frames.read():
                return
        time.sleep(POLL)
    pytest.fail("nothing was recorded")


def serve(serving: subprocess.Popen[str], follower: Server) -> None:
    """Follow what is served until all is there, and end it."""
    said = read_until(serving, "say REPLICAOF")
    port = re.search(r"REPLICAOF \S+ (\d+)", said)
    assert port is not None
    with follower.client() as client:
        client.replicaof("127.0.0.1", port[1])
        read_until(serving, "has everything")
        client.replicaof("NO", "ONE")
    serving.send_signal(signal.SIGTERM)
    finish(serving)


def run_python(folder: Path, code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=True,
    )
    return done.stdout
