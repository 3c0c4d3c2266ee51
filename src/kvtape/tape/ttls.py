"""What becomes of expiries when a moment is brought back later than it was.

Kept as they are, what has passed by now expires at once. Moved, what had an hour left
at the point has an hour left now. Dropped, what was there at the point stays for good.

What had passed at the point was not there any more, even if the server had not deleted
it yet, as it deletes most of that only when somebody asks for it. So an expiry that is
dropped is one that lies behind the point; what lies before it is left as it is, and
what has it is gone after the restore as it was at the point. Until then it is there,
as on the server, so that what the stream does to it (a PERSIST) does what it did.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

Mode: TypeAlias = Literal["keep", "shift", "drop"]

MOST: Final = 2**63 - 1
"""The latest time (ms) that a server takes for a key, and Valkey for a field."""

MOST_OF_REDIS_FIELDS: Final = 2**46 - 1
"""The latest that Redis takes for a field (t_hash.c:HFE_MAX_ABS_TIME_MSEC)."""


class InexactError(Exception):
    """Why an expiry cannot be changed as asked for; to follow the name of its key."""


@dataclass(frozen=True, slots=True)
class Ttls:
    """How expiries change, in ms.

    They are moved by shift, or dropped where that is None. point is when the last byte
    before the point was received, and most_of_fields the latest time that a field of a
    hash can have. With is_lenient what would be later is as late as can be.
    """

    shift: int | None
    point: int
    most_of_fields: int = MOST
    is_lenient: bool = False

    @property
    def moved_by(self) -> int:
        """By how much times are others than they were."""
        return self.shift or 0

    def of_key(self, time: int) -> int | None:
        """Return the time that a key's expiry becomes; None for no expiry."""
        return self._changed(time, MOST)

    def of_field(self, time: int) -> int | None:
        """Return the same for a field of a hash."""
        return self._changed(time, self.most_of_fields)

    def _changed(self, time: int, most: int) -> int | None:
        if self.shift is None:
            return time if time <= self.point else None
        # Times before 1970 are as good as its first ms, and servers refuse them.
        moved = max(1, time + self.shift)
        if moved <= most:
            return moved
        if self.is_lenient:
            return most
        raise InexactError(
            "has an expiry that would be later than any that servers take"
        )
