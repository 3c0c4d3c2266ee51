"""What a server says of itself, as far as it may.

INFO needs a permission that replicating does not, so everything here may be unknown:
None. Redis and Valkey share most names; Valkey also says who it is (server_name), since
its redis_version only tells what it is compatible with.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from kvtape.server.client import Client, ReplyError
from kvtape.server.url import format_address
from kvtape.tape.documents import Server
from kvtape.tape.facts import ClockDifference

# The settings by which a primary gives a replica up, kept with the fields of INFO.
LINK_LIMITS = ("client-output-buffer-limit", "repl-timeout")


@dataclass(frozen=True, slots=True)
class ServerInfo:
    """The fields of INFO, by name, as they came."""

    fields: Mapping[str, str]

    @property
    def server(self) -> Server:
        """Who it is."""
        fields = self.fields
        is_valkey = fields.get("server_name") == "valkey" or "valkey_version" in fields
        version = fields.get("valkey_version" if is_valkey else "redis_version")
        role = {"master": "primary", "slave": "replica"}.get(fields.get("role", ""))
        return Server(
            family=None if version is None else "valkey" if is_valkey else "redis",
            version=version,
            run_id=fields.get("run_id"),
            role="primary" if role == "primary" else "replica" if role else None,
            databases=self.number("databases"),
        )

    @property
    def is_clustered(self) -> bool:
        """Whether it runs in cluster mode; False also if unknown."""
        return self.fields.get("cluster_enabled") == "1"

    @property
    def needs_replicas(self) -> bool:
        """Whether min-replicas-to-write is set: the field is there only then."""
        return "min_slaves_good_slaves" in self.fields

    @property
    def offset(self) -> int | None:
        """How long its stream is: what a replica would have to have."""
        return self.number("master_repl_offset")

    def clock_ahead(self, before: int, after: int) -> ClockDifference | None:
        """Return how far its clock is ahead, given ours before and after asking (ms).

        None if it does not tell, and for a replica, whose clock decides nothing. All
        servers update the time that they show before each command: server.c:call.
        """
        micros = self.number("server_time_usec")
        if micros is None or self.server.role != "primary":
            return None
        # Ours are cut to whole ms, so each may be later than it says by less than one.
        return ClockDifference(micros // 1000 - after - 1, -(-micros // 1000) - before)

    @property
    def has_backlog(self) -> bool:
        """Whether it keeps its stream; False also if unknown."""
        return self.fields.get("repl_backlog_active") == "1"

    def headroom(self, offset: int) -> int | None:
        """How many bytes may still be written before an offset cannot be continued.

        None if unknown, or if it cannot be now.
        """
        first = self.number("repl_backlog_first_byte_offset")
        length = self.number("repl_backlog_histlen")
        size = self.number("repl_backlog_size")
        if first is None or length is None or size is None or offset + 1 < first:
            return None
        return offset + 1 - first + max(0, size - length)

    @property
    def neighbours(self) -> set[str]:
        """The addresses of its primary and of its replicas, as it knows them."""
        fields = self.fields
        found = set()
        if "master_host" in fields and (port := self.number("master_port")):
            found.add(format_address(fields["master_host"], port))
        for words in self._replicas():
            if words.get("port", "").isdigit():
                found.add(format_address(words.get("ip", ""), int(words["port"])))
        return found

    def _replicas(self) -> Iterator[dict[str, str]]:
        for name, value in self.fields.items():
            if name.startswith("slave") and name.removeprefix("slave").isdigit():
                yield dict(part.partition("=")[::2] for part in value.split(","))

    @property
    def replica_ports(self) -> list[int]:
        """The ports that its replicas announced; empty also if unknown."""
        ports = [words.get("port", "") for words in self._replicas()]
        return [int(port) for port in ports if port.isdigit()]

    @property
    def keys(self) -> int:
        """How many keys it holds."""
        return sum(
            int(fields.split(",")[0].removeprefix("keys="))
            for name, fields in self.fields.items()
            if name.startswith("db") and fields.startswith("keys=")
        )

    @property
    def databases(self) -> list[int]:
        """The databases that hold keys."""
        return [
            int(name.removeprefix("db"))
            for name, fields in self.fields.items()
            if name.removeprefix("db").isdigit() and fields.startswith("keys=")
        ]

    @property
    def replid(self) -> str | None:
        """The replication ID that it goes on under."""
        return self.fields.get("master_replid")

    @property
    def fork(self) -> tuple[str, int] | None:
        """The history that its own forked from, and the last offset that both share.

        As replication.c:shiftReplicationId leaves them, and since 7.0 a restart from an
        RDB file; the offset that INFO shows is that of the first byte that may differ.
        """
        parent = self.fields.get("master_replid2")
        second = self.number("second_repl_offset")
        # Without one, INFO shows zeros and -1.
        if parent is None or second is None or second < 1:
            return None
        return parent, second - 1

    @property
    def data_memory(self) -> int | None:
        """How much memory its data takes, with what overhead cannot be told apart."""
        used = self.number("used_memory")
        if used is None:
            return None
        startup = self.number("used_memory_startup") or 0
        backlog = self.number("mem_replication_backlog") or 0
        return max(0, used - startup - backlog)

    def can_continue(self, replid: str, offset: int) -> bool | None:
        """Whether PSYNC from an offset would be answered with +CONTINUE.

        As replication.c:masterTryPartialResynchronization decides. None if unknown.
        """
        if "master_replid" not in self.fields:
            return None
        knows = self.fields.get("master_replid") == replid
        second = self.number("second_repl_offset")
        if self.fields.get("master_replid2") == replid and second is not None:
            knows = knows or offset + 1 <= second
        first = self.number("repl_backlog_first_byte_offset")
        length = self.number("repl_backlog_histlen")
        if not knows or first is None or length is None:
            return False
        is_active = self.fields.get("repl_backlog_active") == "1"
        return is_active and first <= offset + 1 <= first + length

    def number(self, name: str) -> int | None:
        """Return a field that is a number."""
        value = self.fields.get(name, "")
        return int(value) if value.lstrip("-").isdigit() else None

    @property
    def errors(self) -> dict[str, int]:
        """How often each kind of error was answered, to clients and on a link."""
        return {
            name.removeprefix("errorstat_"): int(value.removeprefix("count="))
            for name, value in self.fields.items()
            if name.startswith("errorstat_")
        }


async def ask(client: Client) -> ServerInfo:
    """Ask a server for everything; what it does not allow is left out."""
    info = await ask_info(client)
    # Not a field of INFO; kept with them, since a restore has to know it.
    databases = await ask_setting(client, "databases") if info.fields else None
    if databases is None:
        return info
    return ServerInfo({**info.fields, "databases": databases})


async def ask_with_limits(client: Client) -> ServerInfo:
    """Ask a server for everything, and for what it cuts a link for."""
    info = await ask(client)
    if "databases" not in info.fields:
        return info
    settings = {name: await ask_setting(client, name) for name in LINK_LIMITS}
    known = {name: value for name, value in settings.items() if value is not None}
    return ServerInfo({**info.fields, **known})


async def ask_info(client: Client, section: str = "everything") -> ServerInfo:
    """Ask for INFO alone, which answers no error that it would then count."""
    fields: dict[str, str] = {}
    try:
        reply = await client.call("INFO", section)
    except ReplyError:
        reply = b""
    if isinstance(reply, bytes):
        for line in reply.decode("utf-8", "replace").splitlines():
            name, colon, value = line.partition(":")
            if colon and not line.startswith("#"):
                fields[name] = value
    return ServerInfo(fields)


async def ask_hello(client: Client) -> ServerInfo:
    """Ask for what every user may: family, release, role and mode, as INFO's fields.

    HELLO needs no permission (its command flag is no_auth), so this is known of users
    that may do nothing but replicate; tried on Redis 6.2 to 8.0 and Valkey 8.0 to 9.1.
    """
    try:
        reply = await client.call("HELLO")
    except ReplyError:
        return ServerInfo({})
    words = reply if isinstance(reply, list) else []
    said = {
        str(name, "utf-8", "replace"): str(value, "utf-8", "replace")
        for name, value in zip(words[::2], words[1::2], strict=False)
        if isinstance(name, bytes) and isinstance(value, bytes)
    }
    family = said.get("server", "redis")
    fields = {
        "server_name": family,
        f"{family}_version": said.get("version"),
        "role": {"replica": "slave"}.get(said.get("role", ""), said.get("role")),
        "redis_mode": said.get("mode"),
        "cluster_enabled": str(int(said["mode"] == "cluster"))
        if "mode" in said
        else "",
    }
    return ServerInfo({name: value for name, value in fields.items() if value})


async def ask_setting(client: Client, name: str) -> str | None:
    """Ask for a setting (CONFIG GET); None if it is not allowed or not known."""
    try:
        reply = await client.call("CONFIG", "GET", name)
    except ReplyError:
        return None
    match reply:
        case [_, bytes(value)]:
            return value.decode("utf-8", "replace")
        case _:
            return None
