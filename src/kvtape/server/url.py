"""Where a server is, and who we are there: redis://[user[:password]@]host[:port].

rediss:// and valkeys:// are the same over TLS. redis+sentinel:// names the Sentinels
that know where the server is, and what they call it.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar
from urllib.parse import unquote, urlsplit

from kvtape.errors import UsageError

_DEFAULT_PORT = 6379
_SENTINEL_PORT = 26379
HIGHEST_PORT = 65535

# The schemes, and whether each means TLS.
_SCHEMES = {"redis": False, "valkey": False, "rediss": True, "valkeys": True}
_SENTINEL = "+sentinel"

# How the address of a server ends that is known by its Sentinels' name.
AT_SENTINEL = "@sentinel"

_ESCAPES = "/ ? # @ : % of a password are written as %2F %3F %23 %40 %3A %25"
_FORM = f"it is redis://[user[:password]@]host[:port], where {_ESCAPES}"
_SENTINEL_FORM = (
    "it is redis+sentinel://[user[:password]@]host[:port][,host[:port]...]/NAME, where "
    f"{_ESCAPES}"
)
_NO_SCHEME = (
    "the server's URL begins with redis:// or valkey://, with rediss:// or valkeys:// "
    "for TLS, or with redis+sentinel://"
)


@dataclass(frozen=True, slots=True)
class Tls:
    """Whom to trust, and who we are; without more, the system's CAs, and nobody.

    server_name is the name that the certificate must bear, if not the URL's host.
    """

    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None
    checks_name: bool = True
    server_name: str | None = None


@dataclass(frozen=True, slots=True)
class ServerUrl:
    """A server and the user to be there. The password is never shown.

    One of our own may listen on a socket of this machine's files instead.
    """

    host: str
    port: int
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    tls: Tls | None = None
    socket: Path | None = None

    @property
    def address(self) -> str:
        """Return host:port, for messages."""
        if self.socket is not None:
            return str(self.socket)
        return format_address(self.host, self.port)

    @property
    def name(self) -> str:
        """Return what a recording of it is called if nobody says."""
        return self.address

    def with_password(self, password: str | None) -> ServerUrl:
        """Return the URL with a password from elsewhere, if it has none itself.

        A user of whom no password is known is taken to need none, and not to be the
        default user.
        """
        return _with_password(self, password)

    def with_tls(self, tls: Tls | None) -> ServerUrl:
        """Return the URL with what is known of TLS, if anything is.

        UsageError if the URL means no TLS: the password would be sent in the clear by
        somebody who took care that it is not.
        """
        return _with_tls(self, tls)


@dataclass(frozen=True, slots=True)
class SentinelUrl:
    """A server by the name that its Sentinels have for it.

    The user and the password are the server's; the Sentinels have their own.
    """

    sentinels: tuple[tuple[str, int], ...]
    name: str
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    tls: Tls | None = None
    sentinel_username: str | None = None
    sentinel_password: str | None = field(default=None, repr=False)

    @property
    def address(self) -> str:
        """Return what it is, whatever the server and the Sentinels are by now."""
        return f"{self.name}{AT_SENTINEL}"

    def with_password(self, password: str | None) -> SentinelUrl:
        """As ServerUrl.with_password, with the server's password."""
        return _with_password(self, password)

    def with_tls(self, tls: Tls | None) -> SentinelUrl:
        """As ServerUrl.with_tls, for the server and the Sentinels."""
        return _with_tls(self, tls)

    def with_sentinel_login(
        self, username: str | None, password: str | None
    ) -> SentinelUrl:
        """Return the URL with the user and the password of the Sentinels."""
        if username is not None and password is None:
            password = ""
        return replace(self, sentinel_username=username, sentinel_password=password)

    def server(self, host: str, port: int) -> ServerUrl:
        """Return the URL of a server that a Sentinel names."""
        return ServerUrl(host, port, self.username, self.password, self.tls)

    @property
    def sentinel_urls(self) -> list[ServerUrl]:
        """The URLs of the Sentinels."""
        login = (self.sentinel_username, self.sentinel_password, self.tls)
        return [ServerUrl(host, port, *login) for host, port in self.sentinels]


Address = ServerUrl | SentinelUrl

_Url = TypeVar("_Url", ServerUrl, SentinelUrl)


def _with_password(url: _Url, password: str | None) -> _Url:
    if password is None and url.username is not None:
        password = ""
    if url.password is not None or password is None:
        return url
    return replace(url, password=password)


def _with_tls(url: _Url, tls: Tls | None) -> _Url:
    if tls is None:
        return url
    if url.tls is None:
        raise UsageError(
            "the --tls options need a URL that begins with rediss:// or valkeys://"
        )
    return replace(url, tls=tls)


def parse_source(text: str) -> Address:
    """Read the URL of a server or of its Sentinels; UsageError if it is neither."""
    scheme, separator, rest = text.partition("://")
    plain = scheme.removesuffix(_SENTINEL)
    if not separator or plain == scheme or plain not in _SCHEMES:
        return parse_url(text)
    if "?" in rest or "#" in rest:
        raise UsageError(f"the Sentinels' URL ends after the name: {_SENTINEL_FORM}")
    authority, _, name = rest.partition("/")
    name = unquote(name.removesuffix("/"))
    if "@" in name or "/" in name or not name:
        raise UsageError(
            "the Sentinels' URL ends with the name that they have for the server: "
            f"{_SENTINEL_FORM}"
        )
    login, _, hosts = authority.rpartition("@")
    username, _, password = login.partition(":")
    return SentinelUrl(
        tuple(map(_sentinel, hosts.split(","))),
        name,
        unquote(username) or None,
        unquote(password) or None,
        Tls() if _SCHEMES[plain] else None,
    )


def _sentinel(text: str) -> tuple[str, int]:
    """Read host[:port]."""
    host, _, port = text.strip().rpartition(":")
    if not host or text.endswith("]"):
        host, port = text, str(_SENTINEL_PORT)
    is_port = port.isascii() and port.isdigit() and 0 < int(port) <= HIGHEST_PORT
    host = host.strip().removeprefix("[").removesuffix("]")
    if not host or not is_port:
        raise UsageError(f"the Sentinels' URL cannot be read: {_SENTINEL_FORM}")
    return host, int(port)


def parse_url(text: str) -> ServerUrl:
    """Read a server's URL; UsageError, without its password, if it is none."""
    scheme, separator, _ = text.partition("://")
    if not separator:
        raise UsageError(
            "give the server as a URL such as redis://127.0.0.1:6379 or "
            "valkey://user@db.example:6379"
        )
    if scheme.removesuffix(_SENTINEL) in _SCHEMES and scheme not in _SCHEMES:
        raise UsageError("name the server itself here, not its Sentinels")
    if scheme not in _SCHEMES:
        raise UsageError(_NO_SCHEME)
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        # What it says quotes what may be a part of the password.
        raise UsageError(f"the server's URL cannot be read: {_FORM}") from None
    if not parts.hostname or port == 0:
        raise UsageError(f"the server's URL names no host or no port: {_FORM}")
    if "@" in text.rpartition(parts.netloc)[2]:
        raise UsageError(f"the server's URL ends before its host: {_FORM}")
    if parts.path.strip("/") or parts.query or parts.fragment:
        raise UsageError(
            "the server's URL ends after the port: replication is of all databases"
        )
    return ServerUrl(
        parts.hostname,
        port or _DEFAULT_PORT,
        unquote(parts.username) if parts.username else None,
        unquote(parts.password) if parts.password else None,
        Tls() if _SCHEMES[scheme] else None,
    )


def parse_address(text: str, default_host: str = "") -> tuple[str, int]:
    """Read [HOST:]PORT; port 0 means any free one."""
    host, _, port = text.strip().rpartition(":")
    if not (port.isascii() and port.isdigit()) or int(port) > HIGHEST_PORT:
        raise UsageError(f"{text!r} is no address: give [HOST:]PORT")
    return host.strip("[]") or default_host, int(port)


def format_address(host: str, port: int) -> str:
    """Return host:port, with an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
