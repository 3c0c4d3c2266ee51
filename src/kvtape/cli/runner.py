"""Running async code for a verb: one error out, and signals."""

from __future__ import annotations

import signal
from collections.abc import Awaitable, Callable
from typing import TypeVar

import trio
import typer

from kvtape.errors import INTERRUPTED, cause_of

Returned = TypeVar("Returned")


def run(main: Callable[[], Awaitable[Returned]]) -> Returned:
    """Run to the end; of a group of errors, raise the one that counts."""
    try:
        return trio.run(main)
    except BaseExceptionGroup as group:
        raise cause_of(group) from group


def run_unless_signal(main: Callable[[], Awaitable[Returned]]) -> Returned:
    """Run to the end. SIGINT and SIGTERM cancel it, so that it can clean up."""
    returned: list[Returned] = []
    scope = trio.CancelScope()

    async def work() -> None:
        with scope:
            returned.append(await main())

    run_until_signal(work, scope.cancel)
    if not returned:
        raise typer.Exit(INTERRUPTED)
    return returned[0]


def run_until_signal(
    main: Callable[[], Awaitable[None]], stop: Callable[[], None]
) -> None:
    """Run until it returns. SIGINT and SIGTERM call stop; a second one ends it now."""
    run(lambda: _run_until_signal(main, stop))


async def _run_until_signal(
    main: Callable[[], Awaitable[None]], stop: Callable[[], None]
) -> None:
    has_ended = False
    async with trio.open_nursery() as nursery:

        async def work() -> None:
            nonlocal has_ended
            await main()
            has_ended = True
            nursery.cancel_scope.cancel()

        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            nursery.start_soon(work)
            async for _ in signals:
                stop()
                break
            async for _ in signals:
                nursery.cancel_scope.cancel()
                break
    if not has_ended:
        raise typer.Exit(INTERRUPTED)
