"""Whether what a server is about to send belongs to the source that is recorded.

A server that continues a recorded history is the same server's story, whatever its
address: nobody else knows the replication ID. A full resync says nothing of the kind.
At an address that the source was recorded at before it is taken for the same server,
restarted or restored. At another one, an agent that was started with the wrong URL
would put two servers' stories under one name; that takes an operator's word (adopt).

A server that is a replica of one at such an address, or has one there as its replica,
has the same story, too: so an agent of the primary and one of its replica may begin at
once, when neither has stored anything that the other could know it by.

A story that the source knows (a full resync of a recorded history, or of one that INFO
says forked from a recorded one) needs no such word.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

from kvtape.errors import IdentityError
from kvtape.server.info import ServerInfo


@dataclass(slots=True)
class Identity:
    """What is known of a source; address is where it is recorded from now.

    knows tells whether a history is one of the source.
    """

    source: str
    address: str
    addresses: Collection[str]  # where it was recorded until now
    knows: Callable[[str], bool]
    adopt: bool = False
    _has_linked: bool = False

    def confirm(self) -> None:
        """Note that a link stood: what is at the address from now on is the source."""
        self._has_linked = True

    def check(self, info: ServerInfo, announced: str | None = None) -> None:
        """IdentityError if a full resync is none of this source's.

        announced is its history, if the server has said so.
        """
        if self.adopt or self._has_linked or self.address in self.addresses:
            return
        replid = announced or info.replid
        parent = info.fork[0] if info.fork and replid == info.replid else None
        # What it said does not count if it then announced something else.
        if replid == info.replid and info.neighbours & set(self.addresses):
            return
        if any(known is not None and self.knows(known) for known in (replid, parent)):
            return
        raise IdentityError(
            f"the source {self.source} was recorded from "
            f"{' and '.join(sorted(self.addresses))}, and {self.address} knows nothing "
            "of what was recorded: say --adopt if its recording goes on under this "
            "source, or --source NEW if it is another one"
        )
