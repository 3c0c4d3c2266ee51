"""What a check found, in a form that people, cron jobs and other programs can take.

Names and the keys of measured are a contract (docs/check.md): a script may look for
them. Each measured key ends in its unit, unless it is a count or a yes or no.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

Verdict = Literal["ok", "warn", "fail", "unknown"]
Measured: TypeAlias = Mapping[str, int | float | str | bool | None]

# From good to bad. What is unknown is worse than a yes, and no reason to be alarmed.
_ORDER: tuple[Verdict, ...] = ("ok", "unknown", "warn", "fail")


@dataclass(frozen=True, slots=True)
class Finding:
    """One named check: the verdict, what was measured, and what to do about it."""

    name: str
    verdict: Verdict
    message: str
    measured: Measured = field(default_factory=dict)
    hint: str = ""


def worst(verdicts: Iterable[Verdict]) -> Verdict:
    """Return what many verdicts come to."""
    return max(verdicts, key=_ORDER.index, default="ok")


def judged(value: float, *, warn: float, fail: float) -> Verdict:
    """Return the verdict on a number that is bad where it is small."""
    if value < fail:
        return "fail"
    return "warn" if value < warn else "ok"
