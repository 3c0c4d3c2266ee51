"""What can happen beside a production server, one function to hurt and one to heal.

A fault says how long it may last (s). Those that break what the agent cannot mend
(a server that came back empty) cost a gap, and say so by `costs_gap`; after any other
one the recording has to go on as if nothing had happened.
"""

from __future__ import annotations

import itertools
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from scenes import SPOOL_SIZE, Scene
from scribe import connect
from sentinels import DOWN_AFTER_MS, Deployment
from switch import Switch

_BALLAST: Final = "ballast"
_PAGE: Final = 4096
_SLOW: Final = 20_000


def _nothing(scene: Scene) -> None:
    del scene


@dataclass(frozen=True, slots=True)
class Fault:
    """A fault by name. hurt() begins it and heal() ends it."""

    name: str
    hurt: Callable[[Scene], None]
    heal: Callable[[Scene], None] = _nothing
    lasts: tuple[float, float] = (0.2, 4.0)
    costs_gap: bool = False


def faults_of(scene: Scene) -> list[Fault]:
    """Return what can happen in a scene."""
    found = [*_AGENT, *_SERVER, _STORE_GONE]
    found += _LINK if scene.link is not None else _SENTINEL
    if scene.spool_disk is not None:
        found.append(_DISK_FULL)
    if scene.store.process is not None:
        found += _S3
    return found


def _link(scene: Scene) -> Switch:
    assert scene.link is not None
    return scene.link


def _open_link(scene: Scene) -> None:
    _link(scene).heal()
    _link(scene).turn_to(scene.servers[0].port)


def _deployment(scene: Scene) -> Deployment:
    assert scene.deployment is not None
    return scene.deployment


def _store_link(scene: Scene) -> Switch:
    assert scene.store.link is not None
    return scene.store.link


def _signal_server(number: signal.Signals) -> Callable[[Scene], None]:
    return lambda scene: scene.primary.signal(number)


def _ask(scene: Scene, *words: str) -> None:
    with connect(scene.primary.port) as plain:
        plain.ask(*words)


def _stop_agent(scene: Scene) -> None:
    scene.agent.signal(signal.SIGSTOP)


def _continue_agent(scene: Scene) -> None:
    scene.agent.signal(signal.SIGCONT)


def _lose_backlog(scene: Scene) -> None:
    """Keep the agent away until the backlog has passed it."""
    _link(scene).turn_to(None)
    _ask(scene, "CONFIG", "SET", "repl-backlog-size", "16kb")


def _find_backlog_lost(scene: Scene) -> None:
    _ask(scene, "CONFIG", "SET", "repl-backlog-size", "16mb")
    _open_link(scene)


def _save_and_restart(scene: Scene) -> None:
    """Restart the server with its data, as an upgrade does."""
    with connect(scene.primary.port) as plain:
        plain.send(("SHUTDOWN", "SAVE"))
        scene.primary.wait_for_end()
    scene.primary.start()


def _fill_disk(scene: Scene) -> None:
    assert scene.spool_disk is not None
    # Unbuffered, or closing it would try once more.
    with (scene.spool_disk / _BALLAST).open("wb", buffering=0) as ballast:
        try:
            for _ in range(SPOOL_SIZE // _PAGE + 1):
                ballast.write(bytes(_PAGE))
        except OSError:
            return  # which is what it is for


def _empty_disk(scene: Scene) -> None:
    assert scene.spool_disk is not None
    (scene.spool_disk / _BALLAST).unlink()


def _fail(scene: Scene, each: int) -> None:
    """Have the store answer 503 to each request, or to each so many."""
    assert scene.store.way is not None
    count = itertools.count()
    scene.store.way.trouble = lambda *_: (
        (503, "SlowDown") if next(count) % each == 0 else None
    )


def _succeed(scene: Scene) -> None:
    assert scene.store.way is not None
    scene.store.way.trouble = lambda *_: None


def _signal_store(number: signal.Signals) -> Callable[[Scene], None]:
    def send(scene: Scene) -> None:
        assert scene.store.process is not None
        scene.store.process.send_signal(number)

    return send


def _kill_primary(scene: Scene) -> None:
    """Kill the primary; it comes back empty when another one has its place."""
    victim = scene.primary
    victim.kill()
    _deployment(scene).wait_for_failover(victim)
    victim.start()


def _fail_over_to_one_behind(scene: Scene) -> None:
    """Have the primary die when the replicas lack what the recorder has."""
    deployment, victim = _deployment(scene), scene.primary
    replicas = [server for server in deployment.servers if server is not victim]
    for replica in replicas:
        replica.signal(signal.SIGSTOP)
    # Less than what Sentinels take for death, and enough for some hundred writes.
    time.sleep(DOWN_AFTER_MS / 2000)
    victim.kill()
    for replica in replicas:
        replica.signal(signal.SIGCONT)
    deployment.wait_for_failover(victim)
    victim.start()


def _hang_primary(scene: Scene) -> None:
    """Stop the primary until it is taken for dead, and let it go on as if it were."""
    victim = scene.primary
    victim.signal(signal.SIGSTOP)
    _deployment(scene).wait_for_failover(victim)
    victim.signal(signal.SIGCONT)


def _kill_sentinel(scene: Scene) -> None:
    _deployment(scene).sentinels[0].kill()


def _start_sentinel(scene: Scene) -> None:
    _deployment(scene).sentinels[0].start()


_AGENT: Final = (
    Fault(
        "agent killed",
        lambda scene: scene.agent.kill(),
        lambda scene: scene.agent.start(),
    ),
    Fault(
        "agent restarted",
        lambda scene: scene.agent.stop(),
        lambda scene: scene.agent.start(),
        (0.0, 1.0),
    ),
    Fault("agent stopped", _stop_agent, _continue_agent),
    Fault("clock set back", lambda scene: scene.skew_clock(-600)),
    Fault("clock set ahead", lambda scene: scene.skew_clock(90)),
)

_LINK: Final = (
    Fault("link cut", lambda scene: _link(scene).cut()),
    Fault("link refused", lambda scene: _link(scene).turn_to(None), _open_link),
    Fault("link half open", lambda scene: _link(scene).stop(), _open_link, (1.0, 15.0)),
    Fault("link slow", lambda scene: _link(scene).slow_down(_SLOW), _open_link),
    Fault(
        "backlog too short",
        _lose_backlog,
        _find_backlog_lost,
        # The writer writes for a second, and then asks for a promise in vain.
        (4.0, 6.0),
        costs_gap=True,
    ),
    Fault(
        "server killed, comes back empty",
        lambda scene: scene.primary.kill(),
        lambda scene: scene.primary.start(),
        (0.2, 2.0),
        costs_gap=True,
    ),
    Fault("server restarted with its data", _save_and_restart, costs_gap=True),
    Fault(
        "server stopped", _signal_server(signal.SIGSTOP), _signal_server(signal.SIGCONT)
    ),
)

# A Sentinel that was away may overrule the others, and name a server that has lost
# everything: then all servers lose it, and there is nothing to go on with.
_SENTINEL: Final = (
    Fault("SENTINEL FAILOVER", lambda scene: _deployment(scene).fail_over()),
    Fault("primary killed", _kill_primary, costs_gap=True),
    Fault("primary killed, replicas behind", _fail_over_to_one_behind, costs_gap=True),
    Fault("primary taken for dead", _hang_primary, costs_gap=True),
    Fault("Sentinel killed", _kill_sentinel, _start_sentinel),
    Fault(
        "Sentinel hangs",
        lambda scene: _deployment(scene).sentinels[0].pause(),
        lambda scene: _deployment(scene).sentinels[0].resume(),
    ),
)

_SERVER: Final = (
    Fault(
        "CLIENT KILL", lambda scene: _ask(scene, "CLIENT", "KILL", "TYPE", "replica")
    ),
)

_STORE_GONE: Final = Fault(
    "store gone",
    lambda scene: scene.store.fail(),
    lambda scene: scene.store.heal(),
    (1.0, 8.0),
)

_S3: Final = (
    Fault(
        "store hangs",
        _signal_store(signal.SIGSTOP),
        _signal_store(signal.SIGCONT),
        (1.0, 8.0),
    ),
    Fault(
        "store slow",
        lambda scene: _store_link(scene).slow_down(_SLOW),
        lambda scene: _store_link(scene).heal(),
        (2.0, 8.0),
    ),
    Fault("store fails", lambda scene: _fail(scene, 1), _succeed, (1.0, 8.0)),
    Fault("every third request fails", lambda scene: _fail(scene, 3), _succeed),
    Fault("store's links cut", lambda scene: _store_link(scene).cut()),
)

_DISK_FULL: Final = Fault("spool's disk full", _fill_disk, _empty_disk, (1.0, 4.0))
