"""A moment is understood in every form that is promised, and otherwise refused."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvtape.errors import UsageError
from kvtape.tape.point import (
    ToOffset,
    ToTime,
    format_time,
    parse_offset,
    parse_time,
)

NOW = 1_777_604_400_123  # 2026-05-01T03:00:00.123Z

REPLID = "8f1c0d6b2e7a4935c1d8e0f7a6b5c4d3e2f10912"


@pytest.mark.parametrize(
    ("text", "point"),
    [
        ("0", ToOffset(0)),
        ("1042", ToOffset(1042)),
        (" 1042\n", ToOffset(1042)),
        ("00001042", ToOffset(1042)),
        ("8f1c:1042", ToOffset(1042, "8f1c")),
        (f"{REPLID}:1042", ToOffset(1042, REPLID)),
        ("1042:1042", ToOffset(1042, "1042")),
        ("9223372036854775807", ToOffset(2**63 - 1)),
    ],
)
def test_an_offset_may_name_its_history(text: str, point: ToOffset) -> None:
    assert parse_offset(text) == point


@pytest.mark.parametrize(
    "text",
    [
        "",
        "-1",
        "1.5",
        "1k",
        "0x10",
        "1 042",
        "٣",
        "8f1:1042",
        "8f1c:",
        ":1042",
        "8f1c 1042",
        f"{REPLID}0:1042",
        "8f-c:1042",
        "1" * 20,
        "latest",
    ],
)
def test_what_is_no_offset_is_refused_with_the_form_it_should_have(text: str) -> None:
    with pytest.raises(UsageError, match="give N or REPLID:N") as caught:
        parse_offset(text)
    assert repr(text) in str(caught.value)


@pytest.mark.parametrize(
    ("text", "time"),
    [
        ("2026-05-01T03:00:00Z", "2026-05-01T03:00:00.000Z"),
        ("2026-05-01t03:00:00z", "2026-05-01T03:00:00.000Z"),
        ("2026-05-01 03:00:00+00:00", "2026-05-01T03:00:00.000Z"),
        ("2026-05-01T03:00:00+02:00", "2026-05-01T01:00:00.000Z"),
        ("2026-05-01T03:00:00-02:30", "2026-05-01T05:30:00.000Z"),
        ("2026-05-01T03:00:00.5Z", "2026-05-01T03:00:00.500Z"),
        ("2026-05-01T03:00:00.0019999Z", "2026-05-01T03:00:00.001Z"),
        ("20260501T030000Z", "2026-05-01T03:00:00.000Z"),
        ("  2026-05-01T03:00Z ", "2026-05-01T03:00:00.000Z"),
        ("now", "2026-05-01T03:00:00.123Z"),
        ("now-7ms", "2026-05-01T03:00:00.116Z"),
        ("now-90s", "2026-05-01T02:58:30.123Z"),
        ("now-15m", "2026-05-01T02:45:00.123Z"),
        ("now-3h", "2026-05-01T00:00:00.123Z"),
        ("now-1d", "2026-04-30T03:00:00.123Z"),
        ("now-999999d", "1970-01-01T00:00:00.000Z"),
        ("0001-01-01T00:00:00+14:00", "1970-01-01T00:00:00.000Z"),
        ("9999-12-31T23:59:59.9999-14:00", "9999-12-31T23:59:59.999Z"),
    ],
)
def test_a_time_has_a_zone_or_is_so_long_ago(text: str, time: str) -> None:
    assert format_time(parse_time(text, NOW).time) == time


@pytest.mark.parametrize(
    "text", ["2026-05-01T03:00:00", "2026-05-01", "20260501T030000"]
)
def test_a_time_without_a_zone_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="has no zone: end it with Z for UTC"):
        parse_time(text, NOW)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "yesterday",
        "03:00",
        "1777604400",
        "2026-02-30T00:00:00Z",
        "2026-05-01T03:00:60Z",
        "now+5m",
        "now-5",
        "now-1.5h",
        "now-5m3s",
        "now-5w",
        "now-1777604400123000d",
        "now - 5m",
        "now-٣m",
    ],
)
def test_what_is_no_time_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(
        UsageError, match="is no time: give one such as 2026-"
    ) as caught:
        parse_time(text, NOW)
    assert repr(text) in str(caught.value)


@given(st.text(), st.integers(0, 10**14))
def test_any_text_is_a_point_or_a_usage_error(text: str, now: int) -> None:
    for read in (parse_offset, lambda text: parse_time(text, now)):
        try:
            point = read(text)
        except UsageError:
            continue
        assert isinstance(point, ToOffset | ToTime)


@given(st.integers(0, 253_402_300_799_999))
def test_a_time_reads_back_as_it_was_printed(time: int) -> None:
    assert parse_time(format_time(time), NOW) == ToTime(time)


@given(st.datetimes(timezones=st.timezones(), min_value=datetime(1970, 1, 2)))  # noqa: DTZ001
def test_a_time_is_the_same_in_every_zone(moment: datetime) -> None:
    in_utc = moment.astimezone(UTC).isoformat()
    assert parse_time(moment.isoformat(), NOW) == parse_time(in_utc, NOW)
