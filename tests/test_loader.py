"""The nearest server that can is chosen to load a recording, and it is said why."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from kvtape.errors import ServerError
from kvtape.restore.loader import Loader, choose_loader, loaders_at_hand
from kvtape.server.scratch import embedded_program
from kvtape.tape.documents import Manifest
from kvtape.tape.documents import Server as Identity
from kvtape.tape.names import SnapshotName
from recording import IDENTITIES
from servers import SERVERS, binary
from stored import A, manifest

VERSIONS = {
    "redis-6.2": ("REDIS", 9),
    "redis-7.0": ("REDIS", 10),
    "redis-8.0": ("REDIS", 12),
    "valkey-8.0": ("REDIS", 11),
    "valkey-8.1": ("REDIS", 11),
    "valkey-9.1": ("VALKEY", 80),
}


def manifest_of(name: str) -> Manifest:
    magic, version = VERSIONS[name]
    return msgspec.structs.replace(
        manifest(SnapshotName(A, 0, 0)),
        rdb_magic=magic,
        rdb_version=version,
        server=IDENTITIES[name],
    )


def loader(name: str, *, is_named: bool = False) -> Loader:
    return Loader(Path(name), IDENTITIES[name], f"/bin/{name}", is_named)


ALL = [loader(name) for name in reversed(SERVERS)]


@pytest.mark.parametrize("name", SERVERS)
def test_the_release_that_was_recorded_is_the_best(name: str) -> None:
    chosen, reason = choose_loader(ALL, manifest_of(name))
    assert chosen == loader(name)
    assert reason.startswith("it is the release that was recorded, ")


@pytest.mark.parametrize(
    ("name", "there", "best", "reason"),
    [
        ("redis-7.0", ["valkey-8.0", "redis-8.0"], "redis-8.0", "of the family"),
        ("redis-7.0", ["valkey-9.1", "valkey-8.0"], "valkey-8.0", "loads what Redis 7"),
        ("redis-6.2", ["redis-8.0", "redis-7.0"], "redis-7.0", "of the family"),
        ("valkey-8.1", ["valkey-8.0", "valkey-9.1"], "valkey-9.1", "of the family"),
        ("valkey-8.1", ["valkey-8.0", "redis-8.0"], "valkey-8.0", "of the family"),
        ("redis-7.0", ["redis-6.2", "valkey-9.1"], "valkey-9.1", "loads what Redis 7"),
    ],
)
def test_else_it_is_the_nearest_that_loads_it(
    name: str, there: list[str], best: str, reason: str
) -> None:
    chosen, why = choose_loader([loader(each) for each in there], manifest_of(name))
    assert chosen == loader(best)
    assert reason in why


@pytest.mark.parametrize(
    ("name", "there", "why", "fits"),
    [
        ("valkey-9.1", "valkey-8.1", "cannot load RDB version 80", "Valkey 9.0 or"),
        ("valkey-9.1", "redis-8.0", "cannot load RDB version 80", "Valkey 9.0 or"),
        ("redis-8.0", "valkey-9.1", "cannot load RDB version 12", "Redis 7.4 or"),
        (
            "redis-7.0",
            "redis-6.2",
            "cannot load RDB version",
            "Redis 7.0 or later, or Valkey",
        ),
        (
            "valkey-8.0",
            "redis-8.0",
            "need not know the commands",
            "Valkey 8.0 or later",
        ),
    ],
)
def test_one_that_is_unfit_is_refused_with_what_would_fit(
    name: str, there: str, why: str, fits: str
) -> None:
    with pytest.raises(ServerError, match=why) as caught:
        choose_loader([loader(there, is_named=True)], manifest_of(name))
    message = str(caught.value)
    assert f"(--scratch PROGRAM) {fits}" in message or fits in message
    assert ("'kvtape[embedded]' has one" in message) == (
        "Valkey" in fits or "V" in fits
    )


def test_of_a_recording_of_nobody_knows_whom_the_file_decides() -> None:
    for name, best in (("redis-7.0", "redis-7.0"), ("valkey-9.1", "valkey-9.1")):
        manifest = msgspec.structs.replace(manifest_of(name), server=Identity())
        chosen, reason = choose_loader(ALL, manifest)
        assert chosen == loader(best)
        assert reason.startswith("it loads what a server that writes")


def test_what_says_nothing_of_itself_is_refused() -> None:
    unknown = Loader(Path("/bin/other"), Identity(), "named: /bin/other", is_named=True)
    with pytest.raises(ServerError, match="does not tell by --version which server"):
        choose_loader([unknown], manifest_of("redis-7.0"))


def test_no_server_at_all_is_told_with_what_to_install() -> None:
    with pytest.raises(ServerError, match=r"there is no server .*'kvtape\[embedded\]'"):
        choose_loader([], manifest_of("redis-7.0"))


def test_all_that_are_at_hand_are_looked_at(
    monkeypatch: pytest.MonkeyPatch, server_name: str
) -> None:
    program = binary(server_name)
    assert program is not None
    monkeypatch.setenv("PATH", str(program.parent))
    on_path, embedded = loaders_at_hand()
    assert on_path == Loader(program, IDENTITIES[server_name], str(program))
    assert embedded.program == embedded_program()
    assert embedded.server.family == "valkey"
    [named] = loaders_at_hand(str(program))
    assert named.server == IDENTITIES[server_name]
    assert named.is_named
