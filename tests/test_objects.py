"""An object store that fails says why in a sentence, and never holds half an object.

The store is moto's S3 over HTTP. What it cannot be made to do is done by what stands
between it and us.
"""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Callable
from pathlib import Path

import fsspec
import pytest
from s3fs import S3FileSystem

from kvtape.errors import IdentityError, RepositoryError
from kvtape.storage import objects
from kvtape.storage.objects import FsspecStore
from kvtape.storage.repository import create_repository, open_repository
from kvtape.storage.store import open_store
from object_store import SECRET, BadWay, Bucket

LARGE = random.Random(1).randbytes(60 * 1024 * 1024)


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the client's own tries wait for nothing."""
    monkeypatch.setattr(objects, "_TRIES_OF_BOTOCORE", 1)
    monkeypatch.setattr(objects, "_TRIES_OF_S3FS", 1)


def error_of(call: Callable[[], object]) -> RepositoryError:
    with pytest.raises(RepositoryError) as caught:
        call()
    return caught.value


def calls(store: FsspecStore) -> dict[str, Callable[[], object]]:
    return {
        "list": store.list,
        "read": lambda: store.read("a/one"),
        "write": lambda: store.put("a/one", b"1"),
    }


# What nobody can mend by waiting.


def test_a_bucket_that_does_not_exist_is_to_be_created(bucket: Bucket) -> None:
    store = FsspecStore(f"s3://{bucket.name}-not/tapes")
    top = FsspecStore(f"s3://{bucket.name}-not")
    for verb, call in [*calls(store).items(), *calls(top).items()]:
        error = error_of(call)
        assert str(error).startswith(f"cannot {verb} s3://{bucket.name}-not")
        sentence = f"the bucket s3://{bucket.name}-not does not exist: create it"
        assert sentence in str(error)
        assert not error.is_passing
    error = error_of(lambda: create_repository(f"s3://{bucket.name}-not", 0))
    assert "create it" in str(error)
    error = error_of(lambda: open_repository(f"s3://{bucket.name}-not"))
    assert "create it" in str(error)


@pytest.mark.parametrize(
    ("answer", "sentences"),
    [
        (
            (403, "AccessDenied"),
            {
                "list": "may not list {}/tapes: the credentials lack s3:ListBucket",
                "read": "may not read from {}/tapes/a/one: the credentials are wrong, "
                "or lack s3:GetObject",
                "write": "may not write to {}/tapes/a/one: the credentials lack "
                "s3:PutObject",
            },
        ),
        (
            (403, "InvalidAccessKeyId"),
            dict.fromkeys(
                ("list", "write"),
                "the store refuses the credentials (InvalidAccessKeyId): renew or",
            ),
        ),
        (
            (400, "ExpiredToken"),
            dict.fromkeys(("list", "write"), "refuses the credentials (ExpiredToken)"),
        ),
        (
            (403, "RequestTimeTooSkewed"),
            dict.fromkeys(("list", "write"), "this machine's clock is too far"),
        ),
    ],
    ids=lambda value: value[1] if isinstance(value, tuple) else "",
)
def test_what_is_refused_names_the_next_step(
    bucket: Bucket, way: BadWay, answer: tuple[int, str], sentences: dict[str, str]
) -> None:
    way.trouble = lambda *_: answer
    for verb, sentence in sentences.items():
        error = error_of(calls(FsspecStore(bucket.url))[verb])
        assert sentence.format(f"s3://{bucket.name}") in str(error)
        assert not error.is_passing


def test_that_there_are_no_credentials_is_said(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    for call in calls(FsspecStore(bucket.url)).values():
        error = error_of(call)
        assert "no credentials were found: set AWS_ACCESS_KEY_ID" in str(error)
        assert not error.is_passing


def test_no_secret_is_in_any_message(
    bucket: Bucket, way: BadWay, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    in_url = f"s3://key:{SECRET}@{bucket.name}/tapes"
    said = [str(error_of(call)) for call in calls(FsspecStore(in_url)).values()]
    for answer in [(403, "SignatureDoesNotMatch"), (500, "InternalError"), "reset"]:
        way.trouble = lambda *_, answer=answer: answer
        store = FsspecStore(bucket.url)
        said += [str(error_of(call)) for call in calls(store).values()]
    assert len(said) == 12
    assert SECRET not in "\n".join([*said, caplog.text])


# What passes.


@pytest.mark.parametrize(
    "answer",
    [
        (500, "InternalError"),
        (502, "BadGateway"),
        (503, "SlowDown"),
        (503, "ServiceUnavailable"),
        (504, "GatewayTimeout"),
        (429, "TooManyRequests"),
        (409, "ConditionalRequestConflict"),
        "reset",
    ],
    ids=str,
)
def test_what_may_pass_is_said_to_and_does(
    bucket: Bucket, way: BadWay, answer: object
) -> None:
    store = FsspecStore(bucket.url)
    way.trouble = lambda *_: answer
    for verb, call in calls(store).items():
        error = error_of(call)
        assert str(error).startswith(f"cannot {verb} s3://{bucket.name}/tapes")
        assert error.is_passing
    way.trouble = lambda *_: None
    store.put("a/one", b"1")
    assert store.list() == {"a/one": 1}


def test_where_nobody_listens_it_may_pass(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    for endpoint in ("http://127.0.0.1:1", "http://nowhere.invalid"):
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        S3FileSystem.clear_instance_cache()
        for call in calls(FsspecStore(bucket.url)).values():
            assert error_of(call).is_passing


def test_a_store_that_never_answers_is_given_up_and_may_pass(
    bucket: Bucket, way: BadWay
) -> None:
    store = FsspecStore(bucket.url)
    # As s3fs has it, the wait for an answer is 15 s.
    store._filesystem.read_timeout = 0.1
    may_go_on = threading.Event()
    way.trouble = lambda *_: may_go_on
    for call in calls(store).values():
        assert error_of(call).is_passing
    may_go_on.set()


# What is written.


def test_of_two_who_write_at_the_same_moment_one_is_told(
    bucket: Bucket, way: BadWay
) -> None:
    store, other = FsspecStore(bucket.url), open_store(bucket.url)
    others = b"other"

    def write_first(method: str, path: str) -> object:
        if method == "PUT" and not bucket.keys():
            bucket.client.put_object(Bucket=bucket.name, Key="tapes/a/one", Body=others)
        return None

    way.trouble = write_first
    with pytest.raises(IdentityError, match="a/one is there already and holds"):
        store.put("a/one", b"ours")
    assert other.read("a/one") == others
    others = b"ours"
    bucket.client.delete_object(Bucket=bucket.name, Key="tapes/a/one")
    store.put("a/one", b"ours")


def test_a_store_without_the_condition_is_looked_at_before(
    bucket: Bucket, way: BadWay
) -> None:
    store = FsspecStore(bucket.url)
    answers = [(501, "NotImplemented")]
    way.trouble = lambda method, _: (
        answers.pop() if method == "PUT" and answers else None
    )
    store.put("a/one", b"1")
    store.put("a/one", b"1")
    with pytest.raises(IdentityError, match="a/one is there already and holds"):
        store.put("a/one", b"2")
    assert sum(request.startswith("PUT") for request in way.requests) == 2


def test_a_write_whose_answer_was_lost_is_found_done(
    bucket: Bucket, way: BadWay
) -> None:
    store = FsspecStore(bucket.url)
    way.trouble = lambda method, _: "reset after" if method == "PUT" else None
    assert error_of(lambda: store.put("a/one", b"1")).is_passing
    assert bucket.keys() == ["tapes/a/one"]
    way.trouble = lambda *_: None
    store.put("a/one", b"1")


@pytest.mark.slow
def test_a_large_object_goes_in_parts_and_is_there_whole_or_not_at_all(
    bucket: Bucket, way: BadWay, tmp_path: Path
) -> None:
    file = tmp_path / "file"
    file.write_bytes(LARGE)
    store = FsspecStore(bucket.url)
    way.trouble = lambda _, path: (500, "X") if "partNumber=3" in path else None
    assert error_of(lambda: store.put("a/large", file)).is_passing
    assert bucket.keys() == []
    assert bucket.unfinished_uploads() == []
    # As after a power cut: nobody says that it is given up.
    way.trouble = lambda method, path: (
        "reset" if "partNumber=3" in path or method == "DELETE" else None
    )
    assert error_of(lambda: store.put("a/large", file)).is_passing
    assert store.list() == {}
    assert bucket.unfinished_uploads() == ["tapes/a/large"]
    way.trouble = lambda *_: None
    way.requests.clear()
    store.put("a/large", file)
    assert sum("partNumber=" in request for request in way.requests) == 4
    assert store.read("a/large") == LARGE


def test_a_large_object_is_not_written_over_another(
    bucket: Bucket, way: BadWay, tmp_path: Path
) -> None:
    file = tmp_path / "file"
    file.write_bytes(LARGE[: 33 * 1024 * 1024])

    def write_first(method: str, path: str) -> object:
        if method == "POST" and "uploadId=" in path:
            bucket.client.put_object(Bucket=bucket.name, Key="tapes/a", Body=b"1")
        return None

    way.trouble = write_first
    store = FsspecStore(bucket.url)
    with pytest.raises(IdentityError, match="tapes/a is there already and holds"):
        store.put("a", file)
    assert store.read("a") == b"1"
    assert bucket.unfinished_uploads() == []


# Listings.


def test_a_listing_that_fails_in_part_is_none(bucket: Bucket, way: BadWay) -> None:
    store = FsspecStore(bucket.url)
    for path in ("a/one", "b/two"):
        store.put(path, b"1")
    way.trouble = lambda _, path: (500, "X") if "tapes%2Fb%2F" in path else None
    assert error_of(lambda: store.list(depth=2)).is_passing


def test_a_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> object:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec, "url_to_fs", fail)
    for url, extra in {
        "s3://bucket/a": "s3",
        "gs://bucket/a": "gcs",
        "abfs://bucket/a": "azure",
    }.items():
        error = error_of(lambda url=url: open_store(url))  # type: ignore[misc]
        assert str(error) == (
            f"{url} needs a package that is not installed: "
            f"pip install 'kvtape[{extra}]'"
        )
