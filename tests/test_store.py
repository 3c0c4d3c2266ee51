"""Every store keeps the same promises: whole objects, written once, one kind of error.

One suite runs over a folder given as a path and as a URL, over fsspec's store in
memory, whose upload is atomic, and over fsspec's local files, which stand for all
stores that need a rename.
"""

from __future__ import annotations

import io
import os
import random
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from faulty_disk import FaultyDisk, KilledError
from kvtape.errors import IdentityError, RepositoryError, UsageError
from kvtape.storage.objects import FsspecStore
from kvtape.storage.store import LocalStore, Store, open_store
from object_store import Bucket
from small_disk import SIZE, small_disk

MAKERS: dict[str, Callable[[Path], Store]] = {
    "path": lambda folder: open_store(str(folder / "repo")),
    "file": lambda folder: open_store(f"file://{folder}/repo"),
    "memory": lambda _: open_store(f"memory://{uuid.uuid4().hex}/repo"),
    "renaming": lambda folder: FsspecStore(f"file://{folder}/repo"),
}

# Larger than any piece that is copied at once.
LARGE = random.Random(1).randbytes(2 * 1024 * 1024 + 7)


@pytest.fixture(params=[*MAKERS, "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """Return each kind of store, empty: not even its folder is there."""
    if request.param == "s3":
        bucket: Bucket = request.getfixturevalue("bucket")
        return open_store(bucket.url)
    return MAKERS[request.param](tmp_path)


@contextmanager
def without_rights() -> Iterator[None]:
    """Be a user that permissions count for; the superuser passes them all."""
    is_root = os.geteuid() == 0
    if is_root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if is_root:
            os.seteuid(0)


# What every store promises.


def test_a_store_that_is_not_there_is_empty(store: Store) -> None:
    assert store.list() == {}
    assert store.list("a/") == {}


def test_what_is_put_is_listed_and_read_back(store: Store, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(LARGE)
    store.put("kvtape.json", b"{}")
    store.put("a/b/c.seg", file)
    store.put("a/empty", b"")
    assert store.list() == {"kvtape.json": 2, "a/b/c.seg": len(LARGE), "a/empty": 0}
    assert store.read("a/b/c.seg") == LARGE
    with store.open("a/b/c.seg") as stored:
        assert stored.read(10) == LARGE[:10]
        stored.seek(len(LARGE) - 5)
        assert stored.read() == LARGE[-5:]
        assert stored.seek(-7, io.SEEK_END) == stored.tell() == len(LARGE) - 7
        assert stored.read(3) == LARGE[-7:-4]


@pytest.mark.parametrize(
    ("start", "end"),
    [(0, 1), (0, 10), (3, 3), (3, 7), (9, 10), (7, 12), (0, 99), (10, 12), (11, 12)],
)
def test_a_range_of_an_object_is_what_it_has_of_it(
    store: Store, start: int, end: int
) -> None:
    store.put("a/one", b"0123456789")
    assert store.read_range("a/one", start, end) == b"0123456789"[start:end]


def test_a_range_of_an_empty_object_is_empty(store: Store) -> None:
    store.put("a/empty", b"")
    assert store.read_range("a/empty", 0, 5) == b""


def test_a_range_of_a_large_object_is_all_of_that_range(store: Store) -> None:
    store.put("a/large", LARGE)
    assert store.read_range("a/large", 5, len(LARGE) - 3) == LARGE[5:-3]


def test_a_listing_goes_as_deep_as_it_is_asked_to(store: Store) -> None:
    for path in ("top", "a/one", "a/b/two", "a/b/c/three", "ab/four"):
        store.put(path, b"x")
    assert set(store.list("a/")) == {"a/one", "a/b/two", "a/b/c/three"}
    assert set(store.list(depth=1)) == {"top"}
    assert set(store.list(depth=2)) == {"top", "a/one", "ab/four"}
    assert set(store.list("a/", depth=1)) == {"a/one"}
    assert set(store.list("a/", depth=2)) == {"a/one", "a/b/two"}


def test_a_listing_shows_at_once_what_another_wrote(store: Store) -> None:
    store.put("a/one", b"1")
    assert set(store.list()) == {"a/one"}
    again = (
        open_store(store.url)
        if isinstance(store, LocalStore) or not store.url.startswith("file:")
        else FsspecStore(store.url)
    )
    again.put("a/two", b"2")
    assert set(store.list()) == {"a/one", "a/two"}


def test_an_object_that_is_not_there_is_not_found(store: Store) -> None:
    store.put("a/one", b"1")
    with pytest.raises(FileNotFoundError):
        store.read("a/two")
    with pytest.raises(FileNotFoundError):
        store.read_range("a/two", 0, 5)
    with pytest.raises(FileNotFoundError):
        store.open("b/two")


def test_putting_the_same_again_is_fine(store: Store, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(LARGE)
    store.put("a/one", LARGE)
    store.put("a/one", file)
    store.put("a/one", LARGE)
    assert store.list() == {"a/one": len(LARGE)}


@pytest.mark.parametrize(
    "other", [b"", LARGE[:-1], LARGE + b"x", LARGE[:-1] + b"x"], ids=len
)
def test_putting_something_else_is_refused_and_overwrites_nothing(
    store: Store, tmp_path: Path, other: bytes
) -> None:
    file = tmp_path / "file"
    file.write_bytes(other)
    store.put("a/one", LARGE)
    for source in (other, file):
        with pytest.raises(IdentityError, match="a/one is there already and holds"):
            store.put("a/one", source)
    assert store.read("a/one") == LARGE
    assert store.list() == {"a/one": len(LARGE)}


def test_what_is_deleted_is_gone_and_nothing_else(store: Store) -> None:
    for path in ("a/b/one", "a/two", "top"):
        store.put(path, b"x")
    for path in ("a/b/one", "a/b/one", "a/b/nosuch", "no/such", "nosuch"):
        store.delete(path)
        assert store.list() == {"a/two": 1, "top": 1}
    store.delete("a/two")
    store.delete("top")
    assert store.list() == {}
    store.put("a/b/one", b"other")
    assert store.read("a/b/one") == b"other"


def test_a_folder_keeps_no_empty_folders(tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "repo")
    for path in ("a/b/c/one", "a/two"):
        store.put(path, b"x")
    store.delete("a/b/c/one")
    assert [path.name for path in (tmp_path / "repo" / "a").iterdir()] == ["two"]
    store.delete("a/two")
    assert list((tmp_path / "repo").iterdir()) == []


def test_what_cannot_be_deleted_is_an_error(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    store.put("a/one", b"x")
    with pytest.raises(RepositoryError, match=r"cannot delete .*/a: Is a directory"):
        store.delete("a")
    assert store.list() == {"a/one": 1}


def test_what_is_being_written_is_not_listed(tmp_path: Path, store: Store) -> None:
    store.put("a/one", b"1")
    folder = tmp_path / "repo" / "a"
    if folder.is_dir():
        (folder / ".two.0123.partial").write_bytes(b"tw")
    else:
        fsspec.open(f"{store.url}/a/two.0123.partial", "wb").open().close()
    assert set(store.list()) == {"a/one"}


def test_many_who_put_the_same_at_once_leave_one_whole_object(store: Store) -> None:
    errors: list[BaseException] = []
    barrier = threading.Barrier(4)

    def put() -> None:
        barrier.wait()
        try:
            for number in range(10):
                store.put(f"a/{number}", LARGE[:100_000])
        except BaseException as error:  # noqa: BLE001 - it is what the test asks for
            errors.append(error)

    threads = [threading.Thread(target=put) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert store.list() == {f"a/{number}": 100_000 for number in range(10)}


# A folder of this machine.


def test_a_path_in_the_home_folder_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/somewhere")
    assert open_store("~/tape").url == "/somewhere/tape"


def test_an_empty_path_is_refused() -> None:
    with pytest.raises(UsageError, match="empty"):
        open_store("")


def test_a_crash_within_a_put_leaves_nothing_or_all(
    disk: FaultyDisk, tmp_path: Path
) -> None:
    LocalStore(disk.folder / "whole").put("a/b/one", LARGE[:5000])
    steps = len(disk.operations)
    assert steps > 10
    for step in range(1, steps + 1):
        store = LocalStore(disk.folder / str(step))
        disk.kill(step)
        with pytest.raises(KilledError):
            store.put("a/b/one", LARGE[:5000])
        disk.heal()
        assert store.list() in ({}, {"a/b/one": 5000})
        left = LocalStore(disk.survivors(store.folder, tmp_path / f"left-{step}"))
        assert left.list() in ({}, {"a/b/one": 5000})
        for found in (store, left):
            assert not found.list() or found.read("a/b/one") == LARGE[:5000]
            found.put("a/b/one", LARGE[:5000])


def test_what_was_put_survives_a_power_cut(disk: FaultyDisk, tmp_path: Path) -> None:
    store = LocalStore(disk.folder / "repo")
    store.put("a/b/one", LARGE)
    left = LocalStore(disk.survivors(store.folder, tmp_path / "left"))
    assert left.list() == {"a/b/one": len(LARGE)}
    assert left.read("a/b/one") == LARGE


def test_any_operation_that_fails_is_one_clear_error_and_can_be_tried_again(
    disk: FaultyDisk,
) -> None:
    LocalStore(disk.folder / "whole").put("a/b/one", LARGE[:5000])
    for step in range(1, len(disk.operations) + 1):
        store = LocalStore(disk.folder / str(step))
        disk.fail(step)
        with pytest.raises(RepositoryError) as caught:
            store.put("a/b/one", LARGE[:5000])
        what = f"{store.url}/a/b/one"
        assert str(caught.value) == f"cannot write {what}: No space left on device"
        assert store.list() in ({}, {"a/b/one": 5000})
        store.put("a/b/one", LARGE[:5000])
        assert store.read("a/b/one") == LARGE[:5000]


def test_a_full_disk_is_an_error_and_leaves_nothing_behind(tmp_path: Path) -> None:
    with small_disk(tmp_path / "small") as folder:
        store = open_store(str(folder))
        store.put("a/one", b"1")
        reason = "No space left on device|File too large"
        with pytest.raises(RepositoryError, match=f"cannot write .*/a/two: ({reason})"):
            store.put("a/two", bytes(2 * SIZE))
        assert store.list() == {"a/one": 1}
        assert os.listdir(folder / "a") == ["one"]  # noqa: PTH208
        store.put("a/two", b"2")


def test_a_folder_that_may_not_be_written_is_an_error(tmp_path: Path) -> None:
    folder = tmp_path / "repo"
    folder.mkdir()
    folder.chmod(0o500)
    with without_rights():
        store = open_store(str(folder))
        with pytest.raises(
            RepositoryError, match=r"cannot write .*: Permission denied"
        ):
            store.put("a/one", b"1")


def test_a_folder_that_may_not_be_read_is_an_error(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "repo"))
    store.put("a/one", b"1")
    (tmp_path / "repo" / "a").chmod(0o000)
    tmp_path.chmod(0o755)
    with without_rights():
        with pytest.raises(RepositoryError, match=r"cannot list .*: Permission denied"):
            store.list()
        with pytest.raises(RepositoryError, match=r"cannot read .*: Permission denied"):
            store.read("a/one")


def test_a_file_where_a_folder_should_be_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "repo").write_bytes(b"")
    store = open_store(str(tmp_path / "repo"))
    for call in (
        store.list,
        lambda: store.read("a/one"),
        lambda: store.open("a/one"),
        lambda: store.put("a/one", b"1"),
    ):
        with pytest.raises(RepositoryError, match=r"cannot \w+ "):
            call()


def test_a_store_whose_parent_cannot_be_made_is_an_error() -> None:
    with pytest.raises(RepositoryError, match=r"cannot write /proc/none/a/one: "):
        open_store("/proc/none").put("a/one", b"1")


def test_an_object_that_vanishes_while_listing_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = LocalStore(tmp_path)
    store.put("one", b"1")
    store.put("two", b"2")
    walk = os.walk

    def walk_and_lose(top: Path, **options: Any) -> Iterator[Any]:  # noqa: ANN401
        for found in walk(top, **options):
            (tmp_path / "one").unlink()
            yield found

    monkeypatch.setattr(os, "walk", walk_and_lose)
    assert store.list() == {"two": 1}


# Anything that fsspec reaches, and the many ways in which that fails.


class BrokenFileSystem(MemoryFileSystem):  # type: ignore[misc]
    """A store that is reached, and then fails with what it is told to."""

    protocol = "broken"
    error: Exception = OSError()
    works_at_first = False

    def _fail(self, *_: object, **__: object) -> Any:  # noqa: ANN401
        raise self.error

    info = ls = find = cat_file = pipe_file = put_file = _fail

    def open(self, *_: object, **__: object) -> Any:  # noqa: ANN401
        """Open an object that has no content that can be read."""
        if not self.works_at_first:
            raise self.error
        file = io.BytesIO(b"content")
        file.readinto = self._fail  # type: ignore[method-assign]
        return file


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> type[BrokenFileSystem]:
    """Make broken:// a store; monkeypatch what it fails with."""
    fsspec.register_implementation("broken", BrokenFileSystem, clobber=True)
    monkeypatch.setattr(BrokenFileSystem, "cachable", False)
    return BrokenFileSystem


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError(5, "Input/output error"), "Input/output error"),
        (ConnectionError("it went away"), "it went away"),
        (KeyError("Contents"), "'Contents'"),
        (RuntimeError("several\n  lines\n"), "several lines"),
        (TimeoutError(), "TimeoutError"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_every_error_of_a_store_becomes_one_sentence(
    broken: type[BrokenFileSystem],
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    reason: str,
) -> None:
    monkeypatch.setattr(broken, "error", error)
    store = open_store("broken://bucket/repo")
    calls: dict[str, Callable[[], object]] = {
        "list broken://bucket/repo": lambda: store.list("a/"),
        "read broken://bucket/repo/a/b": lambda: store.read("a/b"),
        "read broken://bucket/repo/a/c": lambda: store.read_range("a/c", 0, 1),
        "write broken://bucket/repo/a/b": lambda: store.put("a/b", b""),
    }
    for verb, call in calls.items():
        with pytest.raises(RepositoryError) as caught:
            call()
        assert str(caught.value) == f"cannot {verb}: {reason}"
    with pytest.raises(RepositoryError):
        store.open("a/b")


def test_a_bucket_that_is_not_there_is_an_error_where_something_is_written(
    broken: type[BrokenFileSystem], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(broken, "error", FileNotFoundError(2, "no such bucket"))
    store = open_store("broken://bucket/repo")
    with pytest.raises(RepositoryError, match=r"cannot write .*: no such bucket"):
        store.put("a/b", b"")
    with pytest.raises(FileNotFoundError):
        store.read("a/b")


def test_a_store_that_fails_while_an_object_is_read_is_an_error(
    broken: type[BrokenFileSystem], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(broken, "works_at_first", True)
    monkeypatch.setattr(broken, "error", ConnectionError("it went away"))
    with open_store("broken://bucket/repo").open("a/b") as file:
        with pytest.raises(RepositoryError, match=r"cannot read .*/a/b: it went away"):
            file.read(1)
        assert file.seek(3) == 3


@pytest.mark.parametrize(
    ("url", "shown", "secret"),
    [
        ("broken://user:secret@host:22/a", "broken://user@host:22/a", "secret"),
        ("broken://user:se%2Fcret@host/a", "broken://user@host/a", "se/cret"),
        ("broken://user:s@secret@host/a", "broken://user@host/a", "s@secret"),
        ("broken://user@host:22/a:x@b", "broken://user@host:22/a:x@b", "nothing"),
    ],
)
def test_no_message_of_a_store_has_its_password(
    broken: type[BrokenFileSystem],
    monkeypatch: pytest.MonkeyPatch,
    url: str,
    shown: str,
    secret: str,
) -> None:
    monkeypatch.setattr(broken, "error", OSError(f"{secret} is refused by {url}"))
    store = open_store(url)
    assert store.url == shown
    with pytest.raises(RepositoryError, match="cannot read broken:") as caught:
        store.read("a/b")
    if url != shown:
        assert secret not in str(caught.value)
        assert url not in str(caught.value)


def test_a_store_that_cannot_be_connected_to_says_so_without_the_password() -> None:
    with pytest.raises(RepositoryError, match=r"ftp://user@127.0.0.1:1/repo is no"):
        open_store("ftp://user:secret@127.0.0.1:1/repo")


@pytest.mark.parametrize("url", ["nothing://a/b", "ftp://[half/b"])
def test_a_url_that_leads_nowhere_is_refused(url: str) -> None:
    with pytest.raises(RepositoryError, match="is no place to store: "):
        open_store(url)


def test_a_store_that_needs_a_package_names_it() -> None:
    fsspec.register_implementation(
        "absent", "nowhere.FileSystem", clobber=True, errtxt="install it with pip"
    )
    with pytest.raises(RepositoryError, match=r"needs a package .*: install it with"):
        open_store("absent://user:secret@a/b")
