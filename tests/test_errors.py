"""The exit statuses are a contract, and of many errors the one that matters is told."""

from __future__ import annotations

import inspect

import pytest

from kvtape import errors
from kvtape.errors import (
    CheckError,
    DestinationError,
    Error,
    IdentityError,
    PointError,
    ProtocolError,
    RepositoryError,
    ServerError,
    UsageError,
    VerificationError,
    cause_of,
)
from kvtape.replication.refusal import RefusedError
from kvtape.replication.replica import LinkError

EXIT_STATUSES: dict[type[Error], int] = {
    Error: 1,
    UsageError: 2,
    PointError: 3,
    VerificationError: 4,
    CheckError: 5,
    IdentityError: 6,
    RepositoryError: 7,
    ServerError: 8,
    ProtocolError: 8,
    DestinationError: 9,
}


def test_every_error_has_the_exit_status_that_scripts_rely_on() -> None:
    defined = [
        member
        for _, member in inspect.getmembers(errors, inspect.isclass)
        if issubclass(member, Error)
    ]
    assert {error: error.exit_status for error in defined} == EXIT_STATUSES


@pytest.mark.parametrize("error", [RefusedError, LinkError, ProtocolError])
def test_what_a_server_does_wrong_ends_with_one_status(error: type[Error]) -> None:
    assert issubclass(error, ServerError)
    assert error.exit_status == ServerError.exit_status


def test_an_error_alone_is_its_own_cause() -> None:
    error = UsageError("--count must be a number")
    assert cause_of(error) is error


def test_a_group_of_one_comes_down_to_it_however_deep() -> None:
    error = ServerError("gone")
    assert cause_of(ExceptionGroup("", [ExceptionGroup("", [error])])) is error


def test_a_bug_counts_before_everything_else() -> None:
    bug = KeyError("replid")
    group = ExceptionGroup(
        "", [ServerError("gone"), ExceptionGroup("", [RepositoryError("full"), bug])]
    )
    assert cause_of(group) is bug


@pytest.mark.parametrize("error", [RepositoryError("full"), OSError(28, "full")])
def test_what_is_not_the_servers_fault_counts_before_what_is(error: Exception) -> None:
    assert cause_of(ExceptionGroup("", [ServerError("gone"), error])) is error


def test_of_two_errors_of_one_kind_the_first_is_told() -> None:
    first, second = LinkError("first"), RefusedError("second")
    assert cause_of(ExceptionGroup("", [first, second])) is first


def test_an_interrupt_counts_as_much_as_a_bug() -> None:
    interrupt = KeyboardInterrupt()
    group = BaseExceptionGroup("", [ServerError("gone"), interrupt])
    assert cause_of(group) is interrupt
