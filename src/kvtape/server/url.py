"""Where a server is, and who we are there: redis://[user[:password]@]host[:port]."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from urllib.parse import unquote, urlsplit

from kvtape.errors import UsageError

_DEFAULT_PORT = 6379
_SCHEMES = ("redis", "valkey")


@dataclass(frozen=True, slots=True)
class ServerUrl:
    """A server and the user to be there. The password is never shown."""

    host: str
    port: int
    username: str | None = None
    password: str | None = field(default=None, repr=False)

    @property
    def address(self) -> str:
        """Return host:port, for messages."""
        return format_address(self.host, self.port)

    def with_password(self, password: str | None) -> ServerUrl:
        """Return the URL with a password from elsewhere, if it has none itself."""
        if self.password is not None or password is None:
            return self
        return replace(self, password=password)


def parse_url(text: str) -> ServerUrl:
    """Read a server's URL; UsageError, without the password, if it is none."""
    if "://" not in text:
        raise UsageError(
            "give the server as a URL such as redis://127.0.0.1:6379 or "
            "valkey://user@db.example:6379"
        )
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError as error:
        raise UsageError(f"the server's URL is wrong: {error}") from None
    if parts.scheme in ("rediss", "valkeys"):
        raise UsageError(
            "kvtape does not speak TLS yet: record through the server's plain port, or "
            "through a TLS tunnel such as stunnel"
        )
    if parts.scheme not in _SCHEMES:
        raise UsageError(
            f"{parts.scheme}:// is no server's URL: it begins with redis:// or valkey://"
        )
    if not parts.hostname:
        raise UsageError("the server's URL names no host")
    if parts.path.strip("/") or parts.query or parts.fragment:
        raise UsageError(
            "the server's URL ends after the port: replication is of all databases"
        )
    return ServerUrl(
        parts.hostname,
        port or _DEFAULT_PORT,
        unquote(parts.username) if parts.username else None,
        unquote(parts.password) if parts.password is not None else None,
    )


def parse_address(text: str, default_host: str = "") -> tuple[str, int]:
    """Read [HOST:]PORT; port 0 means any free one."""
    host, _, port = text.strip().rpartition(":")
    if not port.isdigit() or int(port) > 65535:
        raise UsageError(f"{text!r} is no address: give [HOST:]PORT")
    return host.strip("[]") or default_host, int(port)


def format_address(host: str, port: int) -> str:
    """Return host:port, with an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
