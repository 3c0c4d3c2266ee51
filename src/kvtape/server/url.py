"""Where a server is, and who we are there: redis://[user[:password]@]host[:port].

rediss:// and valkeys:// are the same over TLS.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from urllib.parse import unquote, urlsplit

from kvtape.errors import UsageError
from kvtape.server.tls import Tls

_DEFAULT_PORT = 6379
_HIGHEST_PORT = 65535

# The schemes, and whether each means TLS.
_SCHEMES = {"redis": False, "valkey": False, "rediss": True, "valkeys": True}

_FORM = (
    "it is redis://[user[:password]@]host[:port], where / ? # @ : % of a password are "
    "written as %2F %3F %23 %40 %3A %25"
)
_NO_SCHEME = (
    "the server's URL begins with redis:// or valkey://, or with rediss:// or "
    "valkeys:// for TLS"
)
_NO_SENTINEL = "Sentinel is not supported yet: name the server itself"
_OTHER_SCHEMES = {
    "redis+sentinel": _NO_SENTINEL,
    "valkey+sentinel": _NO_SENTINEL,
}


@dataclass(frozen=True, slots=True)
class ServerUrl:
    """A server and the user to be there. The password is never shown."""

    host: str
    port: int
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    tls: Tls | None = None

    @property
    def address(self) -> str:
        """Return host:port, for messages."""
        return format_address(self.host, self.port)

    def with_password(self, password: str | None) -> ServerUrl:
        """Return the URL with a password from elsewhere, if it has none itself.

        A user of whom no password is known is taken to need none, and not to be the
        default user.
        """
        if password is None and self.username is not None:
            password = ""
        if self.password is not None or password is None:
            return self
        return replace(self, password=password)

    def with_tls(self, tls: Tls | None) -> ServerUrl:
        """Return the URL with what is known of TLS, if anything is.

        UsageError if the URL means no TLS: the password would be sent in the clear by
        somebody who took care that it is not.
        """
        if tls is None:
            return self
        if self.tls is None:
            raise UsageError(
                "the --tls options need a URL that begins with rediss:// or valkeys://"
            )
        return replace(self, tls=tls)


def parse_url(text: str) -> ServerUrl:
    """Read a server's URL; UsageError, without its password, if it is none."""
    scheme, separator, _ = text.partition("://")
    if not separator:
        raise UsageError(
            "give the server as a URL such as redis://127.0.0.1:6379 or "
            "valkey://user@db.example:6379"
        )
    if scheme not in _SCHEMES:
        raise UsageError(_OTHER_SCHEMES.get(scheme, _NO_SCHEME))
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
    if not (port.isascii() and port.isdigit()) or int(port) > _HIGHEST_PORT:
        raise UsageError(f"{text!r} is no address: give [HOST:]PORT")
    return host.strip("[]") or default_host, int(port)


def format_address(host: str, port: int) -> str:
    """Return host:port, with an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
