"""A server's URL is read, or refused without a word of its password."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvtape.errors import UsageError
from kvtape.server.tls import Tls
from kvtape.server.url import ServerUrl, format_address, parse_address, parse_url

SECRET = "hunter2"


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("redis://db", ServerUrl("db", 6379)),
        ("valkey://db:7000", ServerUrl("db", 7000)),
        ("redis://db:7000/", ServerUrl("db", 7000)),
        ("redis://[::1]:7000", ServerUrl("::1", 7000)),
        ("redis://[::1]", ServerUrl("::1", 6379)),
        ("redis://:secret@db", ServerUrl("db", 6379, None, "secret")),
        ("redis://me:secret@db", ServerUrl("db", 6379, "me", "secret")),
        ("redis://me@db", ServerUrl("db", 6379, "me")),
        ("redis://:@db", ServerUrl("db", 6379)),
        ("redis://m%40e:s%2F%3A%40%25@db", ServerUrl("db", 6379, "m@e", "s/:@%")),
        ("redis://me:a:b@db:1", ServerUrl("db", 1, "me", "a:b")),
        ("rediss://me@db", ServerUrl("db", 6379, "me", tls=Tls())),
        ("valkeys://[::1]:1", ServerUrl("::1", 1, tls=Tls())),
    ],
)
def test_a_url_is_read(text: str, url: ServerUrl) -> None:
    assert parse_url(text) == url


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "give the server as a URL such as redis://"),
        (f"127.0.0.1:6379:{SECRET}", "give the server as a URL such as redis://"),
        ("http://db", "begins with redis:// or valkey://"),
        (f"{SECRET}://db", "begins with redis:// or valkey://"),
        ("redis+sentinel://a,b/NAME", "Sentinel is not supported yet"),
        ("redis://", "names no host"),
        (f"redis://:{SECRET}@", "names no host"),
        (f"redis://:{SECRET}@:6379", "names no host"),
        ("redis://db:0", "names no host or no port"),
        ("redis://db:port", "cannot be read"),
        ("redis://db:70000", "cannot be read"),
        ("redis://[::1", "cannot be read"),
        (f"redis://:{SECRET}/x@db:1", "cannot be read"),
        (f"redis://:x#{SECRET}@db:1", "cannot be read"),
        (f"redis://me:1?{SECRET}@db:1", "ends before its host"),
        (f"redis://me:1/{SECRET}@db:1", "ends before its host"),
        ("redis://db:6379/3", "replication is of all databases"),
        ("redis://db:6379?db=3", "replication is of all databases"),
        ("redis://db#3", "replication is of all databases"),
    ],
)
def test_what_is_no_url_is_refused_with_the_reason(text: str, why: str) -> None:
    with pytest.raises(UsageError, match=why) as caught:
        parse_url(text)
    assert SECRET not in str(caught.value)


def shown(text: str) -> str:
    """Return what may be shown of a URL, or why it is none."""
    try:
        url = parse_url(text)
    except UsageError as error:
        return str(error)
    return repr(url) + url.address


@given(st.text(max_size=30))
def test_of_any_text_no_password_is_shown(garbage: str) -> None:
    assert SECRET not in shown(f"redis://:{SECRET}{garbage}@db:1")
    assert SECRET not in shown(f"redis://me:{garbage}{SECRET}@")


def test_a_password_from_elsewhere_counts_only_if_the_url_has_none() -> None:
    assert parse_url("redis://db").with_password("x").password == "x"
    assert parse_url("redis://:y@db").with_password("x").password == "y"
    assert parse_url("redis://db").with_password(None).password is None


def test_a_user_without_a_password_logs_in_all_the_same() -> None:
    # Or we would be the default user, which is another.
    assert parse_url("redis://me@db").with_password(None).password == ""


def test_what_is_known_of_tls_is_not_for_a_url_without() -> None:
    tls = Tls(server_name="db.example")
    assert parse_url("rediss://db").with_tls(tls).tls == tls
    assert parse_url("rediss://db").with_tls(None).tls == Tls()
    assert parse_url("redis://db").with_tls(None).tls is None
    with pytest.raises(UsageError, match="need a URL that begins with rediss://"):
        parse_url("redis://db").with_tls(tls)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("7000", ("", 7000)),
        ("0", ("", 0)),
        ("db:7000", ("db", 7000)),
        ("[::1]:7000", ("::1", 7000)),
        (" 7000 ", ("", 7000)),
        (":7000", ("", 7000)),
    ],
)
def test_an_address_is_read(text: str, address: tuple[str, int]) -> None:
    assert parse_address(text) == address


@pytest.mark.parametrize("text", ["", "db", "db:", "db:x", "70000", "²", "-1"])
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"is no address: give \[HOST:\]PORT"):
        parse_address(text)


def test_an_address_is_written_as_it_is_read() -> None:
    for host in ("db", "127.0.0.1", "::1"):
        assert parse_address(format_address(host, 7000)) == (host, 7000)
