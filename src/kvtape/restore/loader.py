"""Which server of this machine loads a recorded moment, and why that one.

A recording is commands, so it takes a server to make a state of it. The nearest to the
recorded one is the best: another may keep values in types that the target of a rescue
does not know. Redis up to 7.2 may also be loaded by a Valkey, which began as that; the
other way round, what Valkey added would be unknown. Whatever it is, it must load
without an error (kvtape.restore.state), so a wrong choice is found out.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kvtape.errors import ServerError
from kvtape.restore.fit import loads, recorded_server, release_of, what_loads
from kvtape.server.scratch import PROGRAMS, embedded_program, find_program, identify
from kvtape.tape.documents import Manifest, Server, server_name


@dataclass(frozen=True, slots=True)
class Loader:
    """A program that can be started, which server it is, and how it was found."""

    program: Path
    server: Server
    found: str
    is_named: bool = False

    def choice(self, reason: str) -> str:
        """Return which it is, and the reason why, for messages."""
        return f"{self.name} ({self.found}): {reason}"

    @property
    def name(self) -> str:
        """What it is, for messages."""
        return server_name(self.server) or f"the program {self.program}"


def loaders_at_hand(named: str | None = None) -> list[Loader]:
    """Return the named program, or all that there are. Blocks.

    ServerError if there is none.
    """
    if named is not None:
        program = find_program(named)
        found = f"named: {program}"
        return [Loader(program, identify(program), found, is_named=True)]
    on_path = [Path(path) for name in PROGRAMS if (path := shutil.which(name))]
    all_found = [Loader(path, identify(path), str(path)) for path in on_path]
    if (embedded := embedded_program()) is not None:
        all_found.append(Loader(embedded, identify(embedded), "the embedded one"))
    return all_found


def choose_loader(loaders: Sequence[Loader], manifest: Manifest) -> tuple[Loader, str]:
    """Return the best server for a snapshot and what follows it, and why it is.

    ServerError, with what would fit, if none is fit.
    """
    fit = [each for each in loaders if _unfit(each, manifest) is None]
    recorded = recorded_server(manifest)
    if not fit:
        reasons = [reason for each in loaders if (reason := _unfit(each, manifest))]
        raise ServerError(
            f"{'; '.join(reasons) or 'there is no server to load the recording with'}: "
            f"install or name (--scratch PROGRAM) {_what_fits(manifest)}"
        )
    best = min(fit, key=lambda each: _distance(each.server, manifest))
    if best.is_named:
        return best, f"it was named, and loads what {recorded} wrote"
    match _distance(best.server, manifest)[0]:
        case 0:
            return best, f"it is the release that was recorded, {recorded}"
        case 1:
            return best, f"it is of the family of what was recorded, {recorded}"
        case _:
            return best, f"it loads what {recorded} wrote"


def _distance(server: Server, manifest: Manifest) -> tuple[int, bool, tuple[int, int]]:
    """Return how far a server is from the recorded one; rather newer than older."""
    recorded = manifest.server
    release = release_of(server.version or "0")
    if server.family != recorded.family:
        return 2, False, release
    own = release_of(recorded.version or "0")
    return int(release != own), release < own, release


def _unfit(loader: Loader, manifest: Manifest) -> str | None:
    server, recorded = loader.server, manifest.server
    if server.family is None:
        return f"{loader.program} does not tell by --version which server it is"
    version = manifest.rdb_version
    if not loads(server, version, manifest.rdb_magic):
        return (
            f"{loader.name} ({loader.found}) cannot load RDB version {version} of "
            f"{recorded_server(manifest)}"
        )
    if recorded.family == "valkey" and server.family == "redis":
        return (
            f"{loader.name} ({loader.found}) need not know the commands of "
            f"{recorded_server(manifest)}"
        )
    return None


def _what_fits(manifest: Manifest) -> str:
    version, magic = manifest.rdb_version, manifest.rdb_magic
    fitting = what_loads(version, magic)
    if manifest.server.family == "valkey" and loads(_FIRST_VALKEY, version, magic):
        fitting = "Valkey 8.0 or later"
    is_embedded = "Valkey" in fitting
    return fitting + " (pip install 'kvtape[embedded]' has one)" * is_embedded


_FIRST_VALKEY = Server("valkey", "8.0.0")
