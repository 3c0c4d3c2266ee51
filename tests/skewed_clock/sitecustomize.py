"""A wall clock that can be set, for a program that is started with this folder first.

Python imports a module of this name at its start. The file that SKEWED_CLOCK names
holds by how many seconds the clock is wrong now. The real clock of a machine is not
the tests' to set.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

_REREAD = 0.2

_file = Path(os.environ["SKEWED_CLOCK"])
_real = time.time
_skew = 0.0
_read_at = float("-inf")


def _skewed() -> float:
    global _skew, _read_at
    if time.monotonic() - _read_at > _REREAD:
        _skew, _read_at = float(_file.read_text() or 0), time.monotonic()
    return _real() + _skew


time.time = _skewed
