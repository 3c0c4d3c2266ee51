"""Everything that can go wrong, and the exit status each one ends the program with.

An error's message is one sentence for the operator: what happened, to what, and the
next step. The class says who is to blame, and through that the exit status, which is
part of the command line's contract.
"""

from __future__ import annotations

# By the shells' convention for who was interrupted: 128, and the number of SIGINT.
INTERRUPTED = 130


class Error(Exception):
    """A failure that kvtape can explain; anything else that escapes is a bug in it."""

    exit_status = 1


class UsageError(Error):
    """An option, a configuration key or a combination of them makes no sense."""

    exit_status = 2


class PointError(Error):
    """The moment asked for cannot be restored; the message names the nearest ones."""

    exit_status = 3


class VerificationError(Error):
    """Stored bytes are not what was recorded; the message names the file."""

    exit_status = 4


class CheckError(Error):
    """A named check did not pass."""

    exit_status = 5


class IdentityError(Error):
    """Another server's recording, or not a kvtape repository at all."""

    exit_status = 6


class RepositoryError(Error):
    """The repository or the local disk in front of it cannot be read or written.

    is_passing says that it may well work later by itself, as after a time-out.
    """

    exit_status = 7

    def __init__(self, message: str, *, is_passing: bool = False) -> None:
        super().__init__(message)
        self.is_passing = is_passing


class ServerError(Error):
    """A Redis or Valkey server refused, went away, or is unfit for what was asked."""

    exit_status = 8


class ProtocolError(ServerError):
    """The peer said something that the replication protocol does not allow."""


class DestinationError(Error):
    """The place to restore into already holds something."""

    exit_status = 9


def cause_of(error: BaseException) -> BaseException:
    """Return the one error that a group of them comes down to.

    Tasks that fail together fail for one reason, most of the time. A bug counts before
    everything else, since it must not hide; then what is not the server's fault.
    """
    if not isinstance(error, BaseExceptionGroup):
        return error
    causes = [cause_of(inner) for inner in error.exceptions]
    return min(causes, key=_rank)


def _rank(error: BaseException) -> int:
    if isinstance(error, ServerError):
        return 2
    return 1 if isinstance(error, Error | OSError) else 0
