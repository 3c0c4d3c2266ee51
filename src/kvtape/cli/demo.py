"""kvtape demo: the whole story, on servers of its own, in under a minute."""

from __future__ import annotations

import logging
import math
import random
import time
from pathlib import Path
from typing import Annotated

import trio
import typer
from rich.console import Console

from kvtape.cli.runner import run
from kvtape.errors import UsageError, VerificationError
from kvtape.record.agent import Agent
from kvtape.record.options import RecordOptions
from kvtape.record.spooling.recorder import Limits
from kvtape.restore.data_dir import layout_for, restore_data_dir
from kvtape.restore.job import Job, open_job
from kvtape.restore.rescue import Rescue, RescueOptions
from kvtape.server.client import Client, open_client
from kvtape.server.contents import Contents, read_contents
from kvtape.server.info import ask
from kvtape.server.scratch import find_program, scratch_folder, scratch_server
from kvtape.server.url import ServerUrl
from kvtape.storage.commands import recorded_commands
from kvtape.tape.documents import server_name
from kvtape.tape.glob import parse_glob
from kvtape.tape.point import ToLatest, ToOffset, format_time

_SOURCE = "shop"

_POLL = 0.02

_NO_FILES = ("--save", "", "--appendonly", "no", "--repl-diskless-sync-delay", "0")

# How long the shop is open before the accident, and after it, in seconds.
_BEFORE = 4.0
_AFTER = 1.0

_ITEMS = 100
_PRICES = b"price:*"

_EPILOGUE = """
The same with your own server:

  kvtape record redis://HOST:6379 --repo DIR       until Ctrl-C; then go on any time
  kvtape info --repo DIR                           what can be restored
  kvtape restore --repo DIR --to-time now-15m --data-dir NEW
  kvtape restore --repo DIR --to-offset N --into redis://HOST:6380
  kvtape restore --repo DIR --to-offset N --into redis://HOST:6379 --key 'price:*'
"""

# A transfer between two accounts, as an application would do it in a script.
_TRANSFER = """
redis.call('DECRBY', KEYS[1], ARGV[1])
redis.call('INCRBY', KEYS[2], ARGV[1])
return redis.call('XADD', KEYS[3], '*', 'amount', ARGV[1])
"""


def demo(
    server: Annotated[
        str | None,
        typer.Option(
            metavar="PROGRAM",
            help="Another server to run it on, such as redis-server. By default the "
            "embedded one (extra: embedded).",
            show_default=False,
        ),
    ] = None,
    keep: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Leave everything in this folder, to look at it.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Tell the whole story on a server of its own, in under a minute.

    Records a busy server, runs FLUSHALL on it, finds the moment before, restores it,
    and compares every key. Then it brings the lost prices back into the busy server
    itself, which never stops.
    """
    program = find_program(server)
    logging.getLogger("kvtape").addHandler(logging.NullHandler())
    if keep is None:
        with scratch_folder("kvtape-demo-") as folder:
            run(lambda: _Story(program, folder).tell())
    else:
        keep.mkdir(parents=True, exist_ok=True)
        run(lambda: _Story(program, keep).tell())


class _Story:
    """One demo: the narrator's console, the folders, the time."""

    def __init__(self, program: Path, folder: Path) -> None:
        self._console = Console(highlight=False, soft_wrap=True)
        self._program = program
        self._folder = folder
        self._repository = folder / "repository"
        self._begun = time.monotonic()

    def _say(self, line: str) -> None:
        passed = time.monotonic() - self._begun
        self._console.print(f"[dim]{passed:5.1f} s[/dim]  {line}")

    async def tell(self) -> None:
        """Tell it all, in two acts."""
        shop = self._folder / "shop"
        shop.mkdir()
        async with scratch_server(self._program, shop, _NO_FILES) as url:
            before = await self._record(url)
            job = await trio.to_thread.run_sync(self._find_the_accident)
            await self._restore(job, before)
            await self._rescue(job, url, before)
        self._epilogue()

    async def _restore(self, job: Job, before: Contents) -> None:
        """Bring all of it back, beside the shop."""
        restored = self._folder / "restored"
        layout = layout_for(job.plan.snapshot.manifest)
        result = await trio.to_thread.run_sync(restore_data_dir, job, restored, layout)
        self._say(
            f"restored that moment into a new folder: the snapshot, and "
            f"{result.commands} commands on top of it"
        )
        configuration = [str(restored / "redis.conf")]
        async with (
            scratch_server(self._program, restored, configuration) as url,
            open_client(url) as client,
        ):
            self._say("started a server on the folder")
            self._compare(before, await read_contents(client))

    async def _rescue(self, job: Job, url: ServerUrl, before: Contents) -> None:
        """Bring the prices back into the shop, which is open all the while."""
        scratch, globs = str(self._program), (parse_glob(_PRICES),)
        rescue = Rescue(job, RescueOptions(url, globs, scratch=scratch))
        async with open_client(url) as client, trio.open_nursery() as nursery:
            shop = _Shop(client)
            nursery.start_soon(shop.trade, math.inf)
            await rescue.run(dry_run=True)
            self._say(
                f"of the prices, {rescue.found['missing'].count} are missing in the "
                "shop itself, which lives on"
            )
            rescue = Rescue(job, rescue.options)
            await rescue.run()
            nursery.cancel_scope.cancel()
        async with open_client(url) as client:
            after = await read_contents(client)
        prices = {key for key in before if key[1].startswith(_PRICES[:-1])}
        if any(before[key] != after.get(key) for key in prices):
            raise VerificationError("a price is not what it was")
        self._say(
            f"[green]brought them back into it: all {len(prices)} are what they were"
            f"[/green], and it took {shop.writes} writes meanwhile"
        )

    async def _record(self, url: ServerUrl) -> Contents:
        """Open the shop, record it, have the accident; return what was there before."""
        async with open_client(url) as client:
            server = (await ask(client)).server
            if (server.version or "").startswith("6."):
                raise UsageError(
                    "the demo compares expiries by PEXPIRETIME, which Redis 6 does not "
                    "have: run it on Redis 7 or later, or Valkey"
                )
            self._say(
                f"started {server_name(server)} on port {url.port}: our shop, which "
                "keeps nothing on disk"
            )
            limits = Limits(upload_interval=1.0)
            agent = Agent(
                RecordOptions(
                    url,
                    str(self._repository),
                    _SOURCE,
                    self._folder / "spool",
                    limits=limits,
                )
            )
            async with trio.open_nursery() as nursery:
                nursery.start_soon(agent.run)
                await _until_online(agent)
                self._say("kvtape record: posing as its replica, snapshot taken")
                before = await self._have_the_accident(client)
                agent.stop()
        self._say(
            f"stopped recording: everything up to offset {agent.recorder.durable} is "
            "stored"
        )
        return before

    async def _have_the_accident(self, client: Client) -> Contents:
        shop = _Shop(client)
        await shop.open()
        await shop.trade(_BEFORE)
        before = await read_contents(client)
        self._say(
            f"{shop.writes} writes later it holds {len(before)} keys: carts that "
            "expire, accounts, orders, prices"
        )
        await client.call("FLUSHALL")
        size = await client.call("DBSIZE")
        self._say(f"[red]somebody runs FLUSHALL[/red]: {size} keys are left")
        await shop.trade(_AFTER)
        self._say("and the shop goes on, as shops do")
        return before

    def _find_the_accident(self) -> Job:
        repository = str(self._repository)
        whole = open_job(repository, _SOURCE, ToLatest())
        commands = recorded_commands(whole.folder, whole.plan)
        flush = next((each for each in commands if each.name == b"FLUSHALL"), None)
        if flush is None:
            raise VerificationError("the FLUSHALL is not in the recording")
        self._say(
            f"found it in the recording: FLUSHALL at offset {flush.start}, received "
            f"{format_time(flush.time)}"
        )
        return open_job(repository, _SOURCE, ToOffset(flush.start, flush.replid))

    def _compare(self, before: Contents, after: Contents) -> None:
        now = time.time() * 1000
        expired = {
            key for key, content in before.items() if 0 <= content.expires <= now
        }
        different = [
            key
            for key in before.keys() | after.keys()
            if before.get(key) != after.get(key) and key not in expired
        ]
        if different:
            raise VerificationError(
                f"{len(different)} keys are not what they were, such as {different[0]}"
            )
        self._say(
            f"[green]compared every key: all {len(before) - len(expired)} are what "
            f"they were before the FLUSHALL[/green], and {len(expired)} carts have "
            "expired since"
        )

    def _epilogue(self) -> None:
        self._console.print(_EPILOGUE)


class _Shop:
    """Something that writes: every kind of write that an application does."""

    def __init__(self, client: Client) -> None:
        self.writes = 0
        self._client = client
        # The story is the same every time it is told.
        self._random = random.Random(7)

    async def open(self) -> None:
        """Write down what everything costs, once."""
        for number in range(_ITEMS):
            price = self._random.randrange(100, 10_000)
            await self._call("HSET", f"price:item:{number}", "cents", price)

    async def trade(self, duration: float) -> None:
        """Write for so many seconds."""
        end = trio.current_time() + duration
        while trio.current_time() < end:
            await self._visit()

    async def _visit(self) -> None:
        number = self._random.randrange(2000)
        customer, item = f"user:{number}", f"item:{self._random.randrange(_ITEMS)}"
        # Some carts are forgotten within seconds, the others within hours.
        patience = 1500 if number % 10 == 0 else 3_600_000
        await self._call("SET", f"cart:{number}", item, "PX", patience)
        await self._call("HSET", customer, "last", item, "visits", number)
        await self._call("ZINCRBY", "bestsellers", 1, item)
        await self._call("LPUSH", "recent", item)
        await self._call("LTRIM", "recent", 0, 99)
        await self._call("MULTI")
        await self._call("INCR", "orders")
        await self._call("SADD", f"bought:{item}", customer)
        await self._call("EXEC")
        accounts = (f"account:{number}", "account:shop", "payments")
        await self._call("EVAL", _TRANSFER, len(accounts), *accounts, number)

    async def _call(self, *words: str | int) -> None:
        await self._client.call(*words)
        self.writes += 1


async def _until_online(agent: Agent) -> None:
    # Nobody but a demo waits for this, and an agent need not know of demos.
    while agent.session is None or not agent.session.is_online:  # noqa: ASYNC110
        await trio.sleep(_POLL)
