"""A server's URL is read, or refused without a word of its password."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvtape.errors import UsageError
from kvtape.server.url import (
    SentinelUrl,
    ServerUrl,
    Tls,
    format_address,
    parse_address,
    parse_source,
    parse_url,
)

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
        ("redis+sentinel://a,b/NAME", "name the server itself here"),
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


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("redis+sentinel://h/x", SentinelUrl((("h", 26379),), "x")),
        ("valkey+sentinel://h:1/x/", SentinelUrl((("h", 1),), "x")),
        (
            "redis+sentinel://a,b:1,[::1],[::2]:3/x%2Dy",
            SentinelUrl((("a", 26379), ("b", 1), ("::1", 26379), ("::2", 3)), "x-y"),
        ),
        (
            "rediss+sentinel://me:s%2F%40@h/x",
            SentinelUrl((("h", 26379),), "x", "me", "s/@", Tls()),
        ),
        (
            "valkeys+sentinel://:a:b@h/x",
            SentinelUrl((("h", 26379),), "x", None, "a:b", Tls()),
        ),
        ("redis://db", ServerUrl("db", 6379)),
    ],
)
def test_a_url_of_sentinels_is_read(text: str, url: SentinelUrl) -> None:
    assert parse_source(text) == url


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("redis+sentinel://", "ends with the name"),
        ("redis+sentinel://h", "ends with the name"),
        ("redis+sentinel://h/", "ends with the name"),
        ("redis+sentinel://h/x/y", "ends with the name"),
        (f"redis+sentinel://:{SECRET}/x@h/y", "ends with the name"),
        (f"redis+sentinel://:x?{SECRET}@h/y", "ends after the name"),
        ("redis+sentinel://h/x?db=1", "ends after the name"),
        (f"redis+sentinel://:{SECRET}@/x", "cannot be read"),
        ("redis+sentinel://h,/x", "cannot be read"),
        ("redis+sentinel://h:x/x", "cannot be read"),
        ("redis+sentinel://h:70000/x", "cannot be read"),
        ("redis+sentinel://h:0/x", "cannot be read"),
        ("http+sentinel://h/x", "begins with redis:// or valkey://"),
        (f"redis:{SECRET}", "give the server as a URL"),
    ],
)
def test_what_is_no_url_of_sentinels_is_refused(text: str, why: str) -> None:
    with pytest.raises(UsageError, match=why) as caught:
        parse_source(text)
    assert SECRET not in str(caught.value)


def test_a_url_of_sentinels_has_two_logins_and_an_address_that_stays() -> None:
    url = parse_source("redis+sentinel://me@a,b/x").with_password("server")
    assert isinstance(url, SentinelUrl)
    url = url.with_sentinel_login("you", "sentinel")
    assert url.server("db", 1) == ServerUrl("db", 1, "me", "server")
    assert url.sentinel_urls[1] == ServerUrl("b", 26379, "you", "sentinel")
    assert (url.address, url.name) == ("x@sentinel", "x")
    assert "server'" not in repr(url)
    assert "sentinel'" not in repr(url)


def shown(text: str) -> str:
    """Return what may be shown of a URL, or why it is none."""
    try:
        url = parse_source(text)
    except UsageError as error:
        return str(error)
    return repr(url) + url.address


@given(st.text(max_size=30))
def test_of_any_text_no_password_is_shown(garbage: str) -> None:
    assert SECRET not in shown(f"redis://:{SECRET}{garbage}@db:1")
    assert SECRET not in shown(f"redis://me:{garbage}{SECRET}@")
    assert SECRET not in shown(f"redis+sentinel://:{SECRET}{garbage}@db:1/x")


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
