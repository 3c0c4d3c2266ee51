"""Finding the server that Sentinels know by name, and following it when it moves.

A Sentinel may be down, hang, or be behind: one that was cut off with the old primary
still names it, and that server still says that it is a primary. So all Sentinels are
asked at once, and the answer with the newest configuration epoch counts (a failover
raises it; ties go to the most votes). An older answer counts only if most give it. The
server is then asked for its role before it is believed to be what was sought; where it
does not tell (its user lacks +info and +role), the newest answer is taken.

A Sentinel gives an order to nobody here: a link that stands is cut only when another
server was found, and asked, and goes on when all Sentinels are gone.

Asking the Sentinels in turn was decided against: with the first that answers, one that
is behind is not to be told from one that is right.

The names on the wire are of sentinel.c: sentinelCommand, and sentinelEvent for
+switch-master.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from itertools import count
from typing import Literal

import trio

from kvtape.errors import Error, ServerError, UsageError
from kvtape.replication.refusal import RefusedError
from kvtape.replication.replica import LinkError
from kvtape.server.client import Client, ReplyError, connect, open_client
from kvtape.server.info import ServerInfo, ask_info
from kvtape.server.tls import DistrustError
from kvtape.server.url import HIGHEST_PORT, Address, SentinelUrl, ServerUrl

_log = logging.getLogger(__name__)

Prefer = Literal["primary", "replica"]

# How long a Sentinel may take for an answer, and how much longer is waited for the
# others when most have answered; and how long a server may take for its role.
_PATIENCE = 2.0
_GRACE = 0.3
_SERVER_PATIENCE = 5.0

# How often to look again, if the Sentinels name a server that is not what was sought:
# as they do from the death of a primary until the next one is made. In seconds.
_WAITS = (0.5, 1.0, 2.0, 4.0)

# How often a Sentinel is asked, since a message can be missed, and after how long those
# that went away are tried again. Each so many times all of them are asked: over TLS a
# handshake with each takes 25 ms of CPU time where the system's CAs are read for it.
_POLL = 2.0
_BY_ALL = 5

_SWITCH = "+switch-master"

_UNHEALTHY = {"s_down", "o_down", "disconnected"}

_LOGIN = (
    "give the Sentinels' own user and password by --sentinel-user and "
    "--sentinel-password-file or KVTAPE_SENTINEL_PASSWORD (those of the URL are the "
    "server's)"
)


@dataclass(frozen=True, slots=True)
class Answer:
    """What a Sentinel says: where the primary is, since which epoch, and its replicas.

    A replica is known by the fields that SENTINEL REPLICAS shows of it.
    """

    primary: tuple[str, int]
    epoch: int
    replicas: tuple[Mapping[str, str], ...] = ()


class UnknownNameError(ServerError):
    """A Sentinel does not know the name; it knows others, or none."""

    def __init__(self, address: str, known: list[str]) -> None:
        super().__init__(f"{address} knows {', '.join(known) or 'no name'}")


class NotFoundError(RefusedError):
    """What the Sentinels name is not what was sought; it may be soon."""

    def __init__(self, message: str) -> None:
        super().__init__(message, is_passing=True)


class Finder:
    """Finds the server of an address, each time anew, and tells when it has moved.

    A server that is named itself is where it is.
    """

    def __init__(self, address: Address, prefer: Prefer = "primary") -> None:
        if isinstance(address, ServerUrl) and prefer != "primary":
            raise UsageError(
                "--prefer goes with a redis+sentinel:// URL: another one names the "
                "server itself"
            )
        self._address = address
        self._prefer = prefer
        self._last: ServerUrl | None = None
        self._is_primary = True  # whether the last one was found as the primary
        self._is_deaf = False  # whether no Sentinel could be followed
        self._said: set[str] = set()  # since a server was found last

    @property
    def role(self) -> Literal["primary", "replica"]:
        """What the server that was found last was named as."""
        return "primary" if self._is_primary else "replica"

    async def find(self) -> ServerUrl:
        """Return the server to record.

        RefusedError, mostly passing, if none is found; UsageError if no Sentinel knows
        the name.
        """
        if isinstance(self._address, ServerUrl):
            return self._address
        for wait in _WAITS:
            try:
                return await self._find(self._address, is_last=False)
            except NotFoundError as error:
                self._say(logging.INFO, f"{error}; looking again")
            await trio.sleep(wait)
        return await self._find(self._address, is_last=True)

    async def watch(self, url: ServerUrl) -> None:
        """Raise LinkError when the primary that was found has moved from there.

        A replica needs no watching: one that is promoted, or put behind another
        primary, drops those that replicate from it. Then this returns at once.
        """
        if isinstance(self._address, SentinelUrl) and self._is_primary:
            moved = await self._moved(self._address, url)
            raise LinkError(
                f"Sentinel moved {self._address.name} from {url.address} to "
                f"{moved.address}"
            )

    # Finding.

    async def _find(self, address: SentinelUrl, *, is_last: bool) -> ServerUrl:
        answers = await self._ask_all(address)
        if self._prefer == "replica":
            replica = await self._find_replica(address, answers)
            if replica is not None:
                self._is_primary = False
                return self._found(replica)
            if not is_last and any(answer.replicas for answer in answers):
                raise NotFoundError(
                    f"no replica of {address.name} that Sentinel lists is healthy"
                )
            self._say(
                logging.WARNING,
                f"Sentinel lists no healthy replica of {address.name}: recording from "
                "its primary, until that link ends",
            )
        primary = await self._find_primary(address, answers)
        self._is_primary = True
        return self._found(primary)

    def _found(self, url: ServerUrl) -> ServerUrl:
        if url != self._last:
            self._said.clear()
        self._last = url
        return url

    def _say(self, level: int, message: str) -> None:
        """Log what is found each time anew only once: it may stay so for hours."""
        if message not in self._said:
            _log.log(level, "%s", message)
        self._said.add(message)

    async def _find_primary(
        self, address: SentinelUrl, answers: list[Answer]
    ) -> ServerUrl:
        error: ServerError | None = None
        for rank, (host, port) in enumerate(ranked(answers)):
            url = address.server(host, port)
            try:
                role = (await _ask_role(url)).server.role
            except ServerError as why:
                error = error or why
                continue
            # The newest answer is believed where the server does not tell.
            if role == "primary" or (role is None and not rank):
                return url
            error = error or ServerError("that is a replica by now")
        if isinstance(error, DistrustError) or (
            isinstance(error, RefusedError) and not error.is_passing
        ):
            raise error
        host, port = ranked(answers)[0]
        where = address.server(host, port).address
        raise NotFoundError(
            f"the primary of {address.name} is {where}, Sentinel says, but: {error}"
        )

    async def _find_replica(
        self, address: SentinelUrl, answers: list[Answer]
    ) -> ServerUrl | None:
        """Return a healthy replica: the last one again, else the one that has most."""
        for primary in ranked(answers):
            urls = [address.server(*replica) for replica in healthy(answers, primary)]
            for url in sorted(urls, key=lambda url: url != self._last):
                try:
                    info = await _ask_role(url)
                except ServerError as error:
                    self._say(logging.INFO, f"the replica {url.address}: {error}")
                    continue
                is_up = info.fields.get("master_link_status", "up") == "up"
                if info.server.role in ("replica", None) and is_up:
                    return url
        return None

    async def _ask_all(self, address: SentinelUrl) -> list[Answer]:
        """Ask all Sentinels at once; raise what they come down to if none answers."""
        sentinels = address.sentinel_urls
        answers: list[Answer] = []
        errors: dict[str, Error] = {}

        async def ask(sentinel: ServerUrl) -> None:
            try:
                answers.append(await self._ask(sentinel, address))
            except (ServerError, UsageError) as error:
                errors[sentinel.address] = error
            if len(answers) * 2 > len(sentinels):
                nursery.cancel_scope.deadline = trio.current_time() + _GRACE

        async with trio.open_nursery() as nursery:
            for sentinel in sentinels:
                nursery.start_soon(ask, sentinel)
        if not answers:
            raise _no_answer(address, errors)
        for where, error in errors.items():
            _log.debug("the Sentinel %s: %s", where, error)
        return answers

    async def _ask(self, sentinel: ServerUrl, address: SentinelUrl) -> Answer:
        async with _open_sentinel(sentinel) as client:
            with _in_time(sentinel.address):
                primary = await _ask_primary(client, address.name)
                reply = await client.call("SENTINEL", "MASTER", address.name)
                epoch = _number(_fields(reply).get("config-epoch", ""))
                if self._prefer == "primary":
                    return Answer(primary, epoch)
                reply = await client.call("SENTINEL", "REPLICAS", address.name)
                replicas = reply if isinstance(reply, list) else []
                return Answer(primary, epoch, tuple(map(_fields, replicas)))

    # Following.

    async def _moved(self, address: SentinelUrl, url: ServerUrl) -> ServerUrl:
        """Return the new primary, as soon as it is another."""
        while True:
            for sentinel in address.sentinel_urls:
                try:
                    return await self._moved_by(sentinel, address, url)
                except (ServerError, UsageError) as error:
                    _log.debug("the Sentinel %s: %s", sentinel.address, error)
            if not self._is_deaf:
                _log.warning(
                    "no Sentinel of %s answers; the link goes on without", address.name
                )
            self._is_deaf = True
            await trio.sleep(_POLL)

    async def _moved_by(
        self, sentinel: ServerUrl, address: SentinelUrl, url: ServerUrl
    ) -> ServerUrl:
        """Return the new primary; this Sentinel tells when to look at once."""
        async with (
            _open_sentinel(sentinel) as listening,
            _open_sentinel(sentinel) as asking,
        ):
            hears = await _subscribe(listening)
            self._is_deaf = False
            for turn in count(1):
                with _in_time(sentinel.address):
                    primary = await _ask_primary(asking, address.name)
                # Now and then by all of them: this one may be behind.
                if address.server(*primary) != url or turn % _BY_ALL == 0:
                    other = await self._other(address, url)
                    if other is not None:
                        return other
                with trio.move_on_after(_POLL):
                    if not hears:
                        await trio.sleep_forever()
                    await listening.receive()
        raise RuntimeError("there is no last turn")

    async def _other(self, address: SentinelUrl, url: ServerUrl) -> ServerUrl | None:
        """Return the primary if it is another one by now; by all Sentinels, not one."""
        try:
            answers = await self._ask_all(address)
            if address.server(*ranked(answers)[0]) == url:
                return None
            found = await self._find_primary(address, answers)
        except (ServerError, UsageError) as error:
            _log.debug("the link to %s goes on: %s", url.address, error)
            return None
        return None if found == url else found


def ranked(answers: list[Answer]) -> list[tuple[str, int]]:
    """Return the primaries that may be the one, the likeliest first.

    They are those of the newest epoch, by votes, and then the one that most answers
    name.
    """
    newest = max(answer.epoch for answer in answers)
    likely = {answer.primary for answer in answers if answer.epoch == newest}
    votes = Counter(answer.primary for answer in answers)
    by_votes = sorted(votes, key=lambda primary: (-votes[primary], primary))
    most = [primary for primary in by_votes if votes[primary] * 2 > len(answers)]
    return list(dict.fromkeys([one for one in by_votes if one in likely] + most))


def _no_answer(address: SentinelUrl, errors: Mapping[str, Error]) -> Error:
    """Return what it comes down to that no Sentinel has answered."""
    listed = "; ".join(map(str, errors.values()))
    if any(isinstance(error, UnknownNameError) for error in errors.values()):
        return UsageError(
            f"no Sentinel knows the name {address.name!r}, with which the URL ends: "
            f"{listed}"
        )
    for error in errors.values():
        # Nothing of this is mended by waiting.
        if isinstance(error, UsageError | RefusedError):
            return error
    return RefusedError(
        f"no Sentinel of {address.name} answers: {listed}", is_passing=True
    )


def healthy(answers: list[Answer], primary: tuple[str, int]) -> list[tuple[str, int]]:
    """Return the replicas of a primary that are up and follow it, by what they have."""
    offsets: dict[tuple[str, int], int] = {}
    for answer in answers:
        for fields in answer.replicas if answer.primary == primary else ():
            port, offset = fields.get("port", ""), fields.get("slave-repl-offset", "")
            is_up = not _UNHEALTHY & set(fields.get("flags", "").split(","))
            # What poses as a replica, as kvtape does, may have a port that is none.
            is_real = 0 < _number(port) <= HIGHEST_PORT
            if is_up and is_real and fields.get("master-link-status") == "ok":
                replica = (fields.get("ip", ""), int(port))
                offsets[replica] = _number(offset)
    return sorted(offsets, key=lambda replica: (-offsets[replica], replica))


# Talking to a Sentinel, and to a server that it names.


@contextmanager
def _in_time(address: str, patience: float = _PATIENCE) -> Iterator[None]:
    """ServerError if what is within takes too long."""
    with trio.move_on_after(patience) as scope:
        yield
    if scope.cancelled_caught:
        raise ServerError(f"{address} did not answer for {patience:g} s")


@asynccontextmanager
async def _open_sentinel(url: ServerUrl) -> AsyncIterator[Client]:
    """Connect and log in to a Sentinel."""
    with _in_time(url.address):
        stream = await connect(url)
    async with stream:
        client = Client(stream, url)
        try:
            with _in_time(url.address):
                await client.authenticate()
        except RefusedError as error:
            raise RefusedError(
                f"the Sentinel {url.address}: {error}; {_LOGIN}"
            ) from None
        yield client


async def _ask_primary(client: Client, name: str) -> tuple[str, int]:
    """Ask a Sentinel where the primary is."""
    where = client.url.address
    try:
        reply = await client.call("SENTINEL", "GET-MASTER-ADDR-BY-NAME", name)
    except ReplyError as error:
        if "unknown command" in str(error).lower():
            raise RefusedError(
                f"{where} is no Sentinel: those listen on port 26379, most often"
            ) from None
        raise RefusedError(f"the Sentinel {where} refused: {error}") from None
    except RefusedError:
        raise RefusedError(f"the Sentinel {where} wants a password: {_LOGIN}") from None
    match reply:
        case [bytes(host), bytes(port)]:
            return _place(where, host, port)
        case _:
            pass
    masters = await client.call("SENTINEL", "MASTERS")
    known = map(_fields, masters) if isinstance(masters, list) else []
    raise UnknownNameError(where, [fields.get("name", "?") for fields in known])


def _place(sentinel: str, host: bytes, port: bytes) -> tuple[str, int]:
    """Return where a Sentinel says something is; ServerError if that is nowhere."""
    name, number = host.decode("utf-8", "replace"), _number(port.decode("latin-1"))
    if not name or not name.isprintable() or not 0 < number <= HIGHEST_PORT:
        raise ServerError(f"{sentinel} names no address: {host!r}, port {port!r}")
    return name, number


async def _subscribe(client: Client) -> bool:
    """Ask to be told of failovers; return whether that is allowed."""
    with _in_time(client.url.address):
        try:
            await client.call("SUBSCRIBE", _SWITCH)
        except ReplyError:
            return False
    return True


def _fields(reply: object) -> dict[str, str]:
    """Return a flat list of names and values as what it means."""
    words = reply if isinstance(reply, list) else []
    texts = [
        word.decode("utf-8", "replace") if isinstance(word, bytes) else ""
        for word in words
    ]
    return dict(zip(texts[::2], texts[1::2], strict=False))


def _number(text: str) -> int:
    """Return what a count is; 0 if it is none, or longer than any."""
    return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else 0


async def _ask_role(url: ServerUrl) -> ServerInfo:
    """Ask a server for its role, in both ways that it may allow."""
    with _in_time(url.address, _SERVER_PATIENCE):
        async with open_client(url) as client:
            info = await ask_info(client)
            if info.server.role is not None:
                return info
            try:
                reply = await client.call("ROLE")
            except ReplyError:
                return info
            match reply:
                case [bytes(role), *_]:
                    role_name = role.decode("utf-8", "replace")
                    return ServerInfo({**info.fields, "role": role_name})
                case _:
                    return info
