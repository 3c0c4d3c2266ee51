"""What the errors of a store mean: one sentence, and whether waiting may help.

Every backend of fsspec has exceptions of its own, and wraps those of an HTTP client and
of a cloud's own library in turn. What is looked at is the whole chain of causes, and in
it only what needs none of these packages: a code and a status, where there is one; the
class, by name; errno. What is not recognised counts as passing, since to ask again does
no harm, and to give up may.
"""

from __future__ import annotations

import contextlib
import errno
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from urllib.parse import unquote

from kvtape.errors import IdentityError, RepositoryError

# What S3 says of credentials, and other stores by status 401.
_CREDENTIALS = frozenset(
    {
        *("InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken"),
        *("InvalidToken", "TokenRefreshRequired", "AuthenticationFailed"),
        *("InvalidSecurity", "MissingSecurityHeader", "NotSignedUp"),
    }
)
_NO_CREDENTIALS = frozenset(
    {"NoCredentialsError", "PartialCredentialsError", "DefaultCredentialsError"}
)
_NO_BUCKET = frozenset({"NoSuchBucket", "ContainerNotFound"})
_FORBIDDEN = frozenset({"AccessDenied", "AllAccessDisabled", "AccountProblem"})

# Statuses that ask to come again: a time-out, a race with another writer, too much at
# once. Of those from 500 on, only these are for ever: not implemented, no such version
# of HTTP, no room.
_PASSING = frozenset({408, 409, 425, 429})
_FINAL = frozenset({501, 505, 507})

# As codes, where s3fs leaves no status behind.
_BUSY = frozenset(
    {
        *("SlowDown", "InternalError", "ServiceUnavailable", "RequestTimeout"),
        *("Throttling", "ThrottlingException", "RequestLimitExceeded"),
        *("OperationAborted", "ConditionalRequestConflict"),
    }
)

# errno that only somebody's hand changes.
_BY_HAND = frozenset(
    {
        *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR),
        *(errno.ENAMETOOLONG, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.ENOENT),
        *(errno.EINVAL, errno.ELOOP),
    }
)

# What an HTTP client's classes are called whose errors come from the network, and the
# service of a cloud that hands out credentials when it stumbles.
_NETWORK = frozenset(
    {
        *("HTTPClientError", "ClientConnectionError", "ClientPayloadError"),
        *("ResponseParserError", "IncompleteRead", "TransportError"),
        *("MetadataRetrievalError", "CredentialRetrievalError"),
    }
)

# A mistake in a URL, a profile or a configuration file.
_MISTAKES = ("BotoCoreError", "ValueError", "TypeError", "LookupError", "ImportError")

_RIGHTS = {
    "read": "s3:GetObject",
    "list": "s3:ListBucket",
    "write": "s3:PutObject",
    "delete": "s3:DeleteObject",
}
_VERBS = {"read": "read from", "list": "list", "write": "write to", "delete": "delete"}


@dataclass(frozen=True, slots=True)
class Trouble:
    """What went wrong; sentence is None where the error's own words are the best."""

    is_passing: bool
    sentence: str | None = None


def judge(error: BaseException, what: str, verb: str) -> Trouble:
    """Tell what an error of a store means. verb is read, list, write or delete."""
    chain = list(_chain(error))
    codes = {code for link in chain for code in _codes(link)}
    statuses = {status for link in chain if (status := _status(link)) is not None}
    names = {kind.__name__ for link in chain for kind in type(link).__mro__}
    return (
        _known(codes, statuses, names, what, verb)
        or _by_status(codes, statuses)
        or Trouble(_may_pass(chain, names))
    )


def is_code(error: BaseException, *codes: str) -> bool:
    """Whether a store answered with one of these codes."""
    return any(code in codes for link in _chain(error) for code in _codes(link))


def is_no_bucket(error: BaseException) -> bool:
    """Whether it is the bucket that is not there, and not an object in it."""
    return is_code(error, *_NO_BUCKET)


def _known(
    codes: set[str], statuses: set[int], names: set[str], what: str, verb: str
) -> Trouble | None:
    if codes & _NO_BUCKET:
        scheme, _, rest = what.partition("://")
        bucket = f"{scheme}://{rest.partition('/')[0]}"
        return Trouble(
            is_passing=False,
            sentence=f"cannot {verb} {what}: the bucket {bucket} does not exist: "
            "create it, or correct the URL",
        )
    if names & _NO_CREDENTIALS:
        return Trouble(
            is_passing=False,
            sentence=f"cannot {verb} {what}: no credentials were found: set "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a profile or an instance "
            "role, as for every program that uses this store",
        )
    if "RequestTimeTooSkewed" in codes:
        return Trouble(
            is_passing=False,
            sentence=f"cannot {verb} {what}: this machine's clock is too far from the "
            "store's: set it right",
        )
    if codes & _CREDENTIALS or 401 in statuses:
        code = ", ".join(sorted(codes & _CREDENTIALS)) or "401"
        return Trouble(
            is_passing=False,
            sentence=f"cannot {verb} {what}: the store refuses the credentials "
            f"({code}): renew or correct them",
        )
    if codes & _FORBIDDEN or 403 in statuses:
        needs = f"lack {_RIGHTS[verb]}" if what.startswith("s3") else "do not allow it"
        if not codes & _FORBIDDEN:
            # An answer to HEAD has no body that could say more than the status.
            needs = f"are wrong, or {needs}"
        return Trouble(
            is_passing=False,
            sentence=f"may not {_VERBS[verb]} {what}: the credentials {needs}",
        )
    return None


def _by_status(codes: set[str], statuses: set[int]) -> Trouble | None:
    if codes & _BUSY or statuses & _PASSING:
        return Trouble(is_passing=True)
    worst = max(statuses, default=0)
    if worst >= 400:
        return Trouble(is_passing=worst >= 500 and worst not in _FINAL)
    return None


def _may_pass(chain: list[BaseException], names: set[str]) -> bool:
    network = (TimeoutError, ConnectionError, socket.gaierror)
    if names & _NETWORK or any(isinstance(link, network) for link in chain):
        return True
    if names & set(_MISTAKES):
        return False
    numbers = {link.errno for link in chain if isinstance(link, OSError)}
    is_refused = any(isinstance(link, PermissionError) for link in chain)
    return not (is_refused or numbers & _BY_HAND)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _codes(error: BaseException) -> Iterator[str]:
    """Yield the code that a cloud's library keeps of an answer."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):
        yield str(response.get("Error", {}).get("Code"))
    for name in ("code", "error_code"):
        if isinstance(code := getattr(error, name, None), str):
            yield code


def _status(error: BaseException) -> int | None:
    """Return the status of HTTP that an error stands for, wherever it keeps it."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):
        found = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        return found if isinstance(found, int) else None
    for name in ("status_code", "status", "code"):
        found = getattr(error, name, None)
        if isinstance(found, int) and 300 <= found < 600:
            return found
    return None


@contextlib.contextmanager
def translated(what: str, verb: str, passwords: Sequence[str] = ()) -> Iterator[None]:
    """Make every error of a store one of ours, but that there is nothing to read."""
    try:
        yield
    except (IdentityError, RepositoryError):
        raise
    except Exception as error:  # each backend of fsspec has exceptions of its own
        is_absent = isinstance(error, FileNotFoundError) and not is_no_bucket(error)
        if is_absent and verb == "read":
            raise
        trouble = judge(error, what, verb)
        sentence = (
            trouble.sentence or f"cannot {verb} {what}: {reason(error, passwords)}"
        )
        raise RepositoryError(sentence, is_passing=trouble.is_passing) from error


def reason(error: BaseException, passwords: Sequence[str] = ()) -> str:
    """Return what an error says, in one line and without the secrets of a URL."""
    said = (error.strerror if isinstance(error, OSError) else None) or str(error)
    line = " ".join(said.split()) or type(error).__name__
    for password in passwords:
        for secret in {password, unquote(password)} - {""}:
            line = line.replace(secret, "***")
    return line
