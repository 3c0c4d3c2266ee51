"""Waits grow to a limit, differ from one agent to the next, and begin anew."""

from __future__ import annotations

import random

from kvtape.record.backoff import Backoff


def test_it_waits_about_twice_as_long_each_time_up_to_half_a_minute() -> None:
    backoff = Backoff()
    for longest in (0.5, 1, 2, 4, 8, 16, 30, 30, 30):
        assert longest / 2 <= backoff.next() <= longest


def test_after_a_success_it_begins_anew() -> None:
    backoff = Backoff()
    for _ in range(10):
        backoff.next()
    backoff.reset()
    assert backoff.next() <= 0.5


def test_two_agents_do_not_come_back_at_the_same_moment() -> None:
    random.seed(1)
    one, other = Backoff(), Backoff()
    assert [one.next() for _ in range(5)] != [other.next() for _ in range(5)]
