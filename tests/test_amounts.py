"""How amounts are written for people."""

from __future__ import annotations

import pytest

from kvtape.amounts import duration, setting, size


@pytest.mark.parametrize(
    ("length", "shown"),
    [
        *((0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (2**20, "1.0 MiB")),
        *((1.5 * 2**30, "1.5 GiB"), (2**42, "4096.0 GiB")),
    ],
)
def test_a_size_is_written_with_its_unit(length: float, shown: str) -> None:
    assert size(length) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        *((0, "0 s"), (0.0003, "0.3 ms"), (1.54, "1.5 s"), (43, "43 s")),
        *((119, "119 s"), (120, "2 min"), (7199, "120 min"), (7200, "2 h")),
        (200_000, "2 d"),
    ],
)
def test_a_duration_is_written_in_the_unit_that_suits_it(
    seconds: float, shown: str
) -> None:
    assert duration(seconds) == shown


@pytest.mark.parametrize(
    ("count", "shown"),
    [(512 * 2**20, "512mb"), (2**30, "1gb"), (1024, "1kb"), (1000, "1000"), (0, "0")],
)
def test_a_setting_is_written_as_a_server_takes_it(count: int, shown: str) -> None:
    assert setting(count) == shown
