"""The options that verbs share, and how their values are read."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from kvtape.cli import rows
from kvtape.cli.config import apply_config
from kvtape.errors import UsageError
from kvtape.server.url import Address, SentinelUrl, Tls, parse_address, parse_source

_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)?")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, None: 1.0}

_SIZE = re.compile(r"(\d+)\s*(B|KiB|MiB|GiB|KB|MB|GB)?", re.IGNORECASE)
_BYTES = {"b": 1, "kib": 2**10, "mib": 2**20, "gib": 2**30}
_BYTES |= {"kb": 10**3, "mb": 10**6, "gb": 10**9}


def parse_duration(text: str, option: str) -> float:
    """Read 200ms, 10s, 5m, 1h, 2d or a number of seconds; return seconds."""
    match = _DURATION.fullmatch(text.strip())
    if match is None:
        raise UsageError(
            f"{option} {text!r} is no duration: give one such as 200ms, 10s or 5m"
        )
    return float(match[1]) * _SECONDS[match[2]]


def bytes_of(argument: str) -> bytes:
    """Return an argument as it was typed: a key need not be UTF-8."""
    return argument.encode(errors="surrogateescape")


def parse_size(text: str, option: str) -> int:
    """Read 64MiB, 1GB or a number of bytes; return bytes."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise UsageError(f"{option} {text!r} is no size: give one such as 64MiB or 1GB")
    return int(match[1]) * _BYTES[(match[2] or "B").lower()]


def parse_rename(text: str) -> tuple[bytes, bytes]:
    """Read OLD=NEW of --rename-prefix."""
    old, separator, new = bytes_of(text).partition(b"=")
    if not separator or old == new:
        raise UsageError(
            f"--rename-prefix {text!r} names no two prefixes: give OLD=NEW, such as "
            "user:=rescued:user:"
        )
    return old, new


def read_password(
    file: Path | None, variable: str = "KVTAPE_PASSWORD", source: str | None = None
) -> str | None:
    """Return the password from a file or the environment, if there is one.

    Of several sources each may have a variable of its own: KVTAPE_PASSWORD_<SOURCE>.
    """
    if file is None:
        own = None
        if source is not None:
            suffix = re.sub(r"[^A-Z0-9]", "_", source.upper())
            own = os.environ.get(f"{variable}_{suffix}")
        return own or os.environ.get(variable) or None
    try:
        password = file.read_text().rstrip("\r\n")
    except OSError as error:
        raise UsageError(
            f"cannot read the password file {file}: {error.strerror}"
        ) from None
    except UnicodeDecodeError:
        raise UsageError(f"the password file {file} is no text") from None
    if not password:
        raise UsageError(f"the password file {file} is empty")
    return password


def parse_announced(text: str | None) -> tuple[str, int] | None:
    """Read the HOST:PORT of --announce."""
    if text is None:
        return None
    host, port = parse_address(text)
    if not host or not port:
        raise UsageError(
            f"--announce {text!r} lacks a host or a port, and it needs both: HOST:PORT "
            "at which this machine is reached"
        )
    return host, port


def tls(
    ca: Path | None,
    cert: Path | None,
    key: Path | None,
    server_name: str | None,
    *,
    any_name: bool,
) -> Tls | None:
    """Return what the options say of TLS; None if they say nothing."""
    if server_name is not None and any_name:
        raise UsageError("give only one of --tls-server-name and --tls-any-name")
    if cert is None and key is not None:
        raise UsageError("--tls-key goes with --tls-cert")
    chosen = Tls(ca, cert, key, not any_name, server_name)
    return None if chosen == Tls() else chosen


def with_sentinel_login(
    address: Address, user: str | None, password_file: Path | None
) -> Address:
    """Return the address with the user and the password of its Sentinels."""
    if isinstance(address, SentinelUrl):
        password = read_password(password_file, "KVTAPE_SENTINEL_PASSWORD")
        return address.with_sentinel_login(user, password)
    if user is not None or password_file is not None:
        raise UsageError(
            "--sentinel-user and --sentinel-password-file go with a redis+sentinel:// "
            "URL"
        )
    return address


def login_of(params: Mapping[str, Any]) -> tuple[str | None, Tls | None]:
    """Return the password and the TLS that the parameters of one source say."""
    chosen = tls(
        params["tls_ca"],
        params["tls_cert"],
        params["tls_key"],
        params["tls_server_name"],
        any_name=params["tls_any_name"],
    )
    return read_password(params["password_file"], source=params["source"]), chosen


def address_of(params: Mapping[str, Any]) -> Address:
    """Return where one source is to be found, and who we are there."""
    password, chosen = login_of(params)
    address = parse_source(params["url"]).with_tls(chosen).with_password(password)
    return with_sentinel_login(
        address, params["sentinel_user"], params["sentinel_password_file"]
    )


Repo = Annotated[
    str,
    typer.Option(
        "--repo",
        envvar="KVTAPE_REPO",
        metavar="REPO",
        help="The repository: a path, or an fsspec URL such as s3://bucket/folder.",
        show_default=False,
    ),
]

Source = Annotated[
    str | None,
    typer.Option(
        "--source",
        metavar="NAME",
        help="Which recorded server. May be left out where the repository holds one.",
        show_default=False,
    ),
]

Config = Annotated[
    Path | None,
    typer.Option(
        "--config",
        envvar="KVTAPE_CONFIG",
        metavar="FILE",
        is_eager=True,
        callback=apply_config,
        help="Options from a file; kvtape.toml in this folder is read if it is there.",
        show_default=False,
    ),
]

Json = Annotated[
    bool, typer.Option("--json", help="Print one JSON document instead of text.")
]

JsonLines = Annotated[
    bool, typer.Option("--json", help="Print JSON, one document a line.")
]

Values = Annotated[
    rows.Values,
    typer.Option(
        help="What to show of all words but names and keys: all, a hash (short values "
        "can be guessed from it), or only the length.",
    ),
]

SkipDamaged = Annotated[
    bool,
    typer.Option(
        "--skip-damaged",
        help="Leave out what is damaged, say so, and end with status 4.",
    ),
]

Processes = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        min=1,
        help="How many processes read; by default one for each core, if there is "
        "enough to read.",
        show_default=False,
    ),
]

Scratch = Annotated[
    str | None,
    typer.Option(
        metavar="PROGRAM",
        help="The server to load the recording with; by default the nearest to the "
        "recorded one on PATH, or the embedded one (extra: embedded).",
        show_default=False,
    ),
]

OnError = Literal["stop", "continue"]

PasswordFile = Annotated[
    Path | None,
    typer.Option(
        "--password-file",
        metavar="FILE",
        help="The server's password; KVTAPE_PASSWORD is the other safe way.",
        show_default=False,
    ),
]

Announce = Annotated[
    str | None,
    typer.Option(
        metavar="HOST:PORT",
        help="Listen there for a primary or Sentinel that takes kvtape for a replica, "
        "and tell them that it cannot be promoted. They must be able to connect to it.",
        show_default=False,
    ),
]


TlsCa = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="The CA that the server's certificate must be signed by (PEM); by default "
        "those that this machine trusts.",
        show_default=False,
    ),
]

TlsCert = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="The client certificate (PEM), if the server wants one.",
        show_default=False,
    ),
]

TlsKey = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Its key (PEM, not encrypted), if it is not in the same file.",
        show_default=False,
    ),
]

TlsServerName = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="The name that the server's certificate must bear, if it is not the host "
        "of the URL.",
        show_default=False,
    ),
]

TlsAnyName = Annotated[
    bool,
    typer.Option(
        "--tls-any-name",
        help="Take a certificate of any name that the CA has signed. Whoever holds one "
        "can then pose as the server.",
    ),
]


SentinelUser = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="The user to be at the Sentinels; the URL's is the server's.",
        show_default=False,
    ),
]

SentinelPasswordFile = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="The Sentinels' own password; KVTAPE_SENTINEL_PASSWORD is the other way.",
        show_default=False,
    ),
]

PreferRole = Annotated[
    Literal["primary", "replica"],
    typer.Option(
        help="Which server to record. Where no replica is healthy it is the primary, "
        "until that link ends.",
    ),
]

Verbose = Annotated[
    bool, typer.Option("--verbose", "-v", help="Say more of what happens.")
]
