"""Stamps never go back, whatever is done to the clock, and are never far off."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from kvtape.record.spooling.clock import ReceiptClock

NOON = 1_700_000_000.0


class Clocks:
    """The wall's clock, which can be set, and one that only goes on."""

    def __init__(self) -> None:
        self.wall = NOON
        self.steady = 0.0

    def pass_time(self, seconds: float) -> None:
        """Let time pass on both."""
        self.wall += seconds
        self.steady += seconds

    def receipt_clock(self, not_before: int = 0) -> ReceiptClock:
        """Return a clock that stamps by these."""
        return ReceiptClock(
            not_before, wall=lambda: self.wall, steady=lambda: self.steady
        )


def test_it_tells_the_time_in_milliseconds() -> None:
    clocks = Clocks()
    clock = clocks.receipt_clock()
    assert clock.now() == NOON * 1000
    clocks.pass_time(1.2349)
    assert clock.now() == NOON * 1000 + 1234


def test_without_clocks_of_its_own_it_takes_those_of_the_system() -> None:
    clock = ReceiptClock()
    assert NOON * 1000 < clock.now() <= clock.now()


def test_after_the_clock_was_set_back_it_goes_on_at_half_speed_until_caught_up() -> (
    None
):
    clocks = Clocks()
    clock = clocks.receipt_clock()
    before = clock.now()
    clocks.wall -= 3600
    assert clock.now() == before
    stamps = []
    for _ in range(8):
        clocks.pass_time(1000)
        stamps.append((clock.now() - before) / 1000)
    assert stamps == [500, 1000, 1500, 2000, 2500, 3000, 7000 - 3600, 8000 - 3600]


def test_after_the_clock_was_set_forward_it_follows_at_once() -> None:
    clocks = Clocks()
    clock = clocks.receipt_clock()
    before = clock.now()
    clocks.wall += 3600
    assert clock.now() == before + 3_600_000


def test_it_never_stamps_before_what_is_stored() -> None:
    clocks = Clocks()
    stored = int(NOON * 1000) + 60_000
    clock = clocks.receipt_clock(stored)
    assert clock.now() == stored
    clocks.pass_time(30)
    assert clock.now() == stored + 15_000
    clocks.pass_time(60)
    assert clock.now() == NOON * 1000 + 90_000


@given(
    st.lists(
        st.tuples(st.floats(0, 1e5), st.floats(-1e6, 1e6)), min_size=1, max_size=20
    ),
    st.integers(0, 2**42),
)
def test_whatever_is_done_to_the_clock_stamps_never_go_back(
    turns: list[tuple[float, float]], not_before: int
) -> None:
    clocks = Clocks()
    clock = clocks.receipt_clock(not_before)
    last = not_before
    for passed, set_by in turns:
        clocks.pass_time(passed)
        clocks.wall += set_by
        stamp = clock.now()
        assert stamp >= last
        assert stamp >= int(clocks.wall * 1000)
        last = stamp
