"""Reading segments in several processes, and having the results in order.

Segments begin at boundaries and know their database, so each can be read by itself.
Python's threads share one interpreter, and parsing is all interpreter; so a process for
each core reads every n-th segment and sends what it makes of it, part by part, through
a pipe. The reader takes from the pipes in turn. A pipe that is full stops its process,
so nothing piles up, however slowly the results are used.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import TypeVar

from kvtape.errors import Error, RepositoryError
from kvtape.garbage import collect_seldom
from kvtape.storage.repository import SourceFolder
from kvtape.tape.catalogue import Slice

Result = TypeVar("Result")

# Makes something of a slice, part by part. It must be picklable, and so the parts.
Job = Callable[[SourceFolder, Slice], Iterator[Result]]

# A process takes a third of a second to start, as long as it takes to parse so much.
_WORTH_A_PROCESS = 32 * 1024 * 1024


def processes_for(slices: Sequence[Slice]) -> int:
    """Return how many processes are worth starting to read slices; 1 is this one."""
    length = sum(slice_.end - slice_.start for slice_ in slices)
    cores = len(os.sched_getaffinity(0))
    return max(1, min(cores, len(slices), length // _WORTH_A_PROCESS))


def in_order(
    folder: SourceFolder, slices: Sequence[Slice], job: Job[Result], processes: int = 1
) -> Generator[Result]:
    """Yield what a job makes of slices, in their order.

    With more than one process, whoever calls this from a script must do so under
    `if __name__ == "__main__"`, as with all of multiprocessing.
    """
    if processes <= 1:
        for slice_ in slices:
            yield from job(folder, slice_)
        return
    with ExitStack() as stack:
        workers = [
            _start(stack, folder, slices[number::processes], job)
            for number in range(processes)
        ]
        for number in range(len(slices)):
            yield from _results(*workers[number % processes])


def _start(
    stack: ExitStack, folder: SourceFolder, slices: Sequence[Slice], job: Job[Result]
) -> tuple[Connection, BaseProcess]:
    # Not forked: a store may have threads of its own, which a fork would not.
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(
        target=_work, args=(folder, slices, job, theirs), daemon=True
    )
    process.start()
    theirs.close()
    stack.callback(process.join)
    stack.callback(process.terminate)
    stack.callback(ours.close)
    return ours, process


def _results(pipe: Connection, process: BaseProcess) -> Iterator[Result]:
    """Yield the results of one slice."""
    while True:
        try:
            kind, content = pipe.recv()
        except EOFError:
            process.join()
            if process.exitcode is not None and process.exitcode >= 0:
                # It has said on stderr what is wrong with it.
                raise RuntimeError(
                    "a process that reads the recording failed"
                ) from None
            raise RepositoryError(
                "a process that reads the recording was killed, as happens where "
                "memory runs out; try again, or with less at once"
            ) from None
        if kind == "error":
            raise content
        if kind == "end":
            return
        yield content


def _work(
    folder: SourceFolder, slices: Sequence[Slice], job: Job[Result], pipe: Connection
) -> None:
    # Ctrl-C goes to all processes of a terminal; ours ends when nobody reads any more.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    collect_seldom()
    try:
        for slice_ in slices:
            for result in job(folder, slice_):
                pipe.send(("result", result))
            pipe.send(("end", None))
    except BrokenPipeError:
        return
    except Error as error:
        pipe.send(("error", error))
