"""A repository says of itself what it is, and is never taken for another's folder."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest

from kvtape.errors import (
    IdentityError,
    RepositoryError,
    UsageError,
    VerificationError,
)
from kvtape.storage.repository import create_repository, open_repository
from kvtape.storage.store import LocalStore, open_store
from kvtape.tape.documents import History, Server, Source, encode
from kvtape.tape.names import HistoryName

NOW = 1_700_000_000_000
REPLID = "a" * 40


USES: tuple[Callable[[str], object], ...] = (
    open_repository,
    lambda url: create_repository(url, NOW),
)


def source(name: str) -> Source:
    return Source(name, "127.0.0.1:6379", NOW, Server(family="valkey"))


@pytest.fixture(params=["path", "memory"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Return where a repository could be."""
    memory = f"memory://{uuid.uuid4().hex}"
    return {"path": str(tmp_path / "repo"), "memory": memory}[request.param]


def test_a_repository_is_created_once_and_keeps_its_id(url: str) -> None:
    created = create_repository(url, NOW)
    assert create_repository(url, NOW + 1).id == created.id
    assert open_repository(url).id == created.id
    assert open_repository(url).sources() == {}


def test_two_repositories_are_not_the_same(tmp_path: Path) -> None:
    ids = {create_repository(str(tmp_path / name), NOW).id for name in "ab"}
    assert len(ids) == 2


def test_an_empty_folder_becomes_a_repository(tmp_path: Path) -> None:
    (tmp_path / "lost+found").mkdir()
    assert create_repository(str(tmp_path), NOW).id


def test_of_two_who_create_it_at_once_both_use_the_first_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = create_repository(str(tmp_path), NOW)
    # What the second saw before the first had written anything.
    monkeypatch.setattr(LocalStore, "list", lambda *_, **__: {})
    assert create_repository(str(tmp_path), NOW + 1).id == first.id


def test_a_folder_of_something_else_is_refused_and_left_alone(url: str) -> None:
    store = open_store(url)
    store.put("a/b", b"1")
    for use in USES:
        with pytest.raises(IdentityError, match="is no kvtape repository: it has no"):
            use(url)
    assert store.list() == {"a/b": 1}


def test_nothing_to_open_is_an_error_that_says_how_to_begin(url: str) -> None:
    with pytest.raises(
        RepositoryError, match=r"no repository at .*kvtape record creat"
    ):
        open_repository(url)


def change_document(folder: Path, **changes: object) -> None:
    create_repository(str(folder), NOW)
    path = folder / "kvtape.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_repository_of_a_later_format_is_refused(tmp_path: Path) -> None:
    change_document(tmp_path, format=2)
    for use in USES:
        with pytest.raises(
            IdentityError, match=r"format version 2.*use a newer kvtape"
        ):
            use(str(tmp_path))


def test_what_a_later_kvtape_adds_to_the_document_does_not_matter(
    tmp_path: Path,
) -> None:
    change_document(tmp_path, id="one", more=["unknown"])
    assert open_repository(str(tmp_path)).id == "one"


def test_a_damaged_document_is_named(tmp_path: Path) -> None:
    change_document(tmp_path, id=None)
    with pytest.raises(VerificationError, match=f"{tmp_path}/kvtape.json is damaged"):
        open_repository(str(tmp_path))
    (tmp_path / "kvtape.json").write_bytes(b"{")
    with pytest.raises(VerificationError, match=f"{tmp_path}/kvtape.json is damaged"):
        create_repository(str(tmp_path), NOW)


def test_sources_are_those_that_were_added(url: str) -> None:
    repository = create_repository(url, NOW)
    for name in ("one", "two.2-b_c"):
        repository.add_source(source(name))
    repository.store.put("one/stream/source.json", b"none")
    assert repository.sources() == {name: source(name) for name in ("one", "two.2-b_c")}


def test_a_source_that_is_there_stays_as_it_was_first_seen(url: str) -> None:
    repository = create_repository(url, NOW)
    repository.add_source(source("one"))
    later = Source("one", "elsewhere:1", NOW + 1, Server())
    assert repository.add_source(later).name == "one"
    assert repository.sources() == {"one": source("one")}


@pytest.mark.parametrize("name", ["", "..", ".x", "a/b", "a b", "-a", "a" * 101, "ä"])
def test_a_name_that_is_no_folder_on_every_store_is_refused(
    tmp_path: Path, name: str
) -> None:
    repository = create_repository(str(tmp_path), NOW)
    with pytest.raises(UsageError, match="cannot be a source's name"):
        repository.add_source(source(name))


def test_the_source_may_be_left_out_where_there_is_one(url: str) -> None:
    repository = create_repository(url, NOW)
    with pytest.raises(UsageError, match=r"no source yet: kvtape record begins one"):
        repository.source()
    with pytest.raises(UsageError, match=r"no source yet: kvtape record begins one"):
        repository.source("one")
    repository.add_source(source("one"))
    assert repository.source().name == "one"
    assert repository.source("one").name == "one"
    repository.add_source(source("two"))
    with pytest.raises(UsageError, match="holds the sources one, two: say which by"):
        repository.source()
    with pytest.raises(UsageError, match="no source 'three', but the sources one, two"):
        repository.source("three")


def test_a_source_sees_its_own_folder_only(url: str) -> None:
    repository = create_repository(url, NOW)
    one, two = (repository.add_source(source(name)) for name in ("one", "one.b"))
    one.put("a/b", b"of one")
    two.put("a/b", b"of two")
    assert one.list() == {"source.json": len(encode(source("one"))), "a/b": 6}
    assert one.read("a/b") == b"of one"
    with two.open("a/b") as file:
        assert file.read() == b"of two"
    assert two.url == f"{url}/one.b"


def test_a_catalogue_is_of_what_is_there_now(url: str) -> None:
    folder = create_repository(url, NOW).add_source(source("one"))
    assert folder.catalogue().histories == {}
    history = History(REPLID, "first", NOW)
    folder.put(HistoryName(REPLID).path, encode(history))
    assert folder.catalogue().histories == {REPLID: history}


def test_a_damaged_source_document_is_named(tmp_path: Path) -> None:
    repository = create_repository(str(tmp_path), NOW)
    repository.store.put("one/source.json", b"{}")
    with pytest.raises(VerificationError, match=f"{tmp_path}/one/source.json is dam"):
        repository.sources()
