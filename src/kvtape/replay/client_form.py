"""What a replica takes from its primary, and a server does not take from a client.

A primary streams XADD and XTRIM with the trimming that it did: `MAXLEN ~ 100 LIMIT 10`
becomes `MAXLEN = 90 LIMIT 10`. A client may say LIMIT with ~ only; on a link it is
ignored (t_stream.c:streamParseAddOrTrimArgsOrReply). So it is left out.
"""

from __future__ import annotations

from collections.abc import Sequence

_TRIMMING = frozenset({b"MAXLEN", b"MINID"})

# The fewest words that such a command has with a LIMIT.
LEAST_WORDS = {b"XADD": 10, b"XTRIM": 7}

# What may stand before the trimming, besides the key.
_FLAGS = frozenset({b"NOMKSTREAM", b"KEEPREF", b"DELREF", b"ACKED"})


def client_form(words: Sequence[bytes]) -> list[bytes] | None:
    """Return what a client sends for the same effect; None if that is the same."""
    if len(words) < LEAST_WORDS.get(words[0].upper(), len(words) + 1):
        return None
    at = 2
    while words[at].upper() in _FLAGS:
        at += 1
    if words[at].upper() not in _TRIMMING or words[at + 1] != b"=":
        return None
    limit = at + 3
    if words[limit].upper() != b"LIMIT":
        return None
    return [*words[:limit], *words[limit + 2 :]]
