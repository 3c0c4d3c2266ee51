"""What a server's refusal means, and what the operator does about it.

Servers refuse in their own words, some of which name the wrong cause. Each is
translated here, once, into a sentence with the next step. The texts are those of
networking.c, acl.c and replication.c:syncCommand of Redis 6.2 to 8.0 and Valkey 8.0 to
9.1; what none of them says is passed on as it came.
"""

from __future__ import annotations

from kvtape.errors import ServerError


class RefusedError(ServerError):
    """The server does not let us replicate from it.

    is_passing tells whether it will later, with nobody doing anything: a server that
    loads its data refuses so, a wrong password does not.
    """

    def __init__(self, message: str, *, is_passing: bool = False) -> None:
        super().__init__(message)
        self.is_passing = is_passing


# The first word of an error reply, and what it means whatever was asked.
_BY_CODE = {
    "NOAUTH": "it wants a password: give it in the URL, by --password-file or in "
    "KVTAPE_PASSWORD",
    "WRONGPASS": "the user name or the password is wrong, or the user is disabled",
    "NOPERM": "the user may not replicate: allow it by ACL SETUSER <user> +psync "
    "+replconf",
    "DENIED": "it is in protected mode: set a password there, or bind it to an address",
}

# The same, where nothing is wrong but the moment.
_PASSING = {
    "LOADING": "it is loading its data",
    "NOMASTERLINK": "it is a replica that has lost its own primary, or a FAILOVER is "
    "under way",
    "MASTERDOWN": "it is a replica that has lost its own primary",
    "BUSY": "it is busy with a script; SCRIPT KILL ends one that has written nothing",
}

# Part of an error text that begins with ERR, and what it means.
_BY_TEXT = {
    "without any password configured": "no password is configured for its default user:"
    " leave the password out, or name the user",
    "no password is set": "no password is set there: leave the password out",
    "invalid password": "the password is wrong",
    "unknown command": "it does not know {name}: a managed service that blocks "
    "replication, a Sentinel, a proxy, or not Redis or Valkey at all; record from a "
    "server that one can replicate from",
    "unrecognized replconf option": "it does not know {command}: it is older than "
    "Redis 6.2, or only looks like it",
}

_PASSING_TEXT = {
    "max number of clients": "it has reached its maxclients",
    "bgsave failed": "it could not fork to make the snapshot; its log says why, most "
    "often too little memory or vm.overcommit_memory",
    "can't sync while not connected": "it is a replica that has lost its own primary",
}


# The longest part of a reply that is quoted. What protected mode says fills a page.
_QUOTED = 200


def refused(reply: str, command: str, secret: str = "") -> RefusedError:
    """Return the error for an error reply (without its -) to one of our commands.

    The secret is the password that was sent with it: it is not quoted.
    """
    meaning, is_passing = _meaning(reply, command)
    return RefusedError(
        f"the server refused: {meaning} ({quoted(reply, secret)})",
        is_passing=is_passing,
    )


def _meaning(reply: str, command: str) -> tuple[str, bool]:
    """Return what a refusal means, and whether it passes."""
    code, text = reply.partition(" ")[0], reply.lower()
    # Codes first: protected mode's text also says that no password is set.
    if code in _PASSING:
        return _PASSING[code], True
    if code in _BY_CODE:
        return _BY_CODE[code], False
    for part, meaning in _PASSING_TEXT.items():
        if part in text:
            return meaning, True
    for part, meaning in _BY_TEXT.items():
        if part in text:
            name = command.partition(" ")[0]
            return meaning.format(command=command, name=name), False
    return f"it refused {command}", False


def quoted(reply: str, secret: str = "") -> str:
    """Return what a server said, fit for a message: one line, short, no secret.

    A server that does not know a command repeats what came with it, and with AUTH came
    the password, of which it may show only the first part.
    """
    shown = reply.partition(", with args beginning with")[0]
    if secret:
        shown = shown.replace(secret, "***")
    return repr(shown if len(shown) <= _QUOTED else shown[:_QUOTED] + "...")


def not_a_server(line: bytes) -> RefusedError | None:
    """Return the error for a first line that no Redis or Valkey server says."""
    if line.startswith(b"HTTP/"):
        return RefusedError("the port speaks HTTP, not Redis: check host and port")
    # A TLS record of type alert (21) or handshake (22), version 3.x.
    if line[:2] in (b"\x15\x03", b"\x16\x03"):
        return RefusedError("the port speaks TLS: use a URL that begins with rediss://")
    return None


def closed_without_a_word() -> RefusedError:
    """Return the error for a server that hangs up before it has said anything."""
    return RefusedError(
        "the server closed the connection without a word: the port may speak TLS (the "
        "URL then begins with rediss://), or a firewall or proxy may stand in between"
    )
