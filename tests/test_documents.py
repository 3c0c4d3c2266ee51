"""A document reads back as it was written; a damaged one is named, a later one read."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvtape.errors import VerificationError
from kvtape.tape import documents
from kvtape.tape.documents import (
    Gap,
    History,
    Manifest,
    Repository,
    Server,
    Source,
)

SPECIFICATION = Path(__file__).parents[1] / "docs" / "format.md"

REPLID = "8f1c0d6b2e7a4935c1d8e0f7a6b5c4d3e2f10912"
TIME = 1_777_604_400_123

SERVER = Server("valkey", "8.0.1", REPLID, "replica", 16)

MANIFEST = Manifest(
    replid=REPLID,
    offset=1042,
    time=TIME,
    completed=TIME + 5,
    bytes=4000,
    stored_bytes=1000,
    sha256="0" * 64,
    rdb_magic="VALKEY",
    rdb_version=80,
    db=3,
    used_memory=1_000_000,
    server=SERVER,
)

EXAMPLES = [
    Repository(documents.FORMAT_VERSION, "0f" * 16, TIME),
    Source("orders", "10.0.0.7:6379", TIME, SERVER),
    Source("orders", "10.0.0.7:6379", TIME, Server()),
    History(REPLID, "first", TIME),
    History(REPLID, "failover", TIME, "b" * 40, 1042, "10.0.0.8:6379"),
    MANIFEST,
    msgspec.structs.replace(MANIFEST, db=None, used_memory=None, server=Server()),
    Gap(REPLID, 1042, 2000, TIME, TIME + 5, "why"),
    Gap(REPLID, 1042, None, TIME, TIME + 5, "why"),
]

# A key of each, and what it cannot be.
DAMAGES: list[tuple[Any, str, object]] = [
    (EXAMPLES[0], "format", "1"),
    (EXAMPLES[0], "created", -1),
    (EXAMPLES[1], "server", None),
    (EXAMPLES[1], "server", {"family": "keydb"}),
    (EXAMPLES[3], "reason", "boredom"),
    (EXAMPLES[3], "created", 10**14),
    (EXAMPLES[4], "parent_offset", 2**63),
    (EXAMPLES[4], "parent_offset", 1.5),
    (EXAMPLES[5], "offset", None),
    (EXAMPLES[5], "sha256", 7),
    (EXAMPLES[7], "start_offset", "1042"),
    (EXAMPLES[7], "end_offset", -2),
]


@pytest.mark.parametrize("document", EXAMPLES)
def test_a_document_reads_back_as_it_was_written(document: Any) -> None:  # noqa: ANN401
    content = documents.encode(document)
    assert documents.decode(type(document), content, "x.json") == document


@pytest.mark.parametrize("document", EXAMPLES)
def test_a_document_is_json_that_people_can_read(document: Any) -> None:  # noqa: ANN401
    text = documents.encode(document).decode()
    assert text.endswith("}\n")
    assert text.splitlines()[1].startswith('  "')
    assert json.loads(text) == msgspec.to_builtins(document)


@pytest.mark.parametrize("document", EXAMPLES)
def test_keys_that_a_later_kvtape_wrote_are_ignored(document: Any) -> None:  # noqa: ANN401
    keys = {"later": [{"deep": None}], **msgspec.to_builtins(document), "more": 1.5}
    content = json.dumps(keys).encode()
    assert documents.decode(type(document), content, "x.json") == document


@pytest.mark.parametrize(("document", "key", "value"), DAMAGES)
def test_a_value_that_cannot_be_is_damage(
    document: Any,  # noqa: ANN401
    key: str,
    value: object,
) -> None:
    keys = {**msgspec.to_builtins(document), key: value}
    with pytest.raises(VerificationError, match=rf"gaps/x\.json is damaged.*\.{key}"):
        documents.decode(type(document), json.dumps(keys).encode(), "gaps/x.json")


@pytest.mark.parametrize("document", EXAMPLES)
def test_a_key_that_is_missing_is_damage(document: Any) -> None:  # noqa: ANN401
    optional = {"parent", "parent_offset", "address"}
    for key in msgspec.to_builtins(document).keys() - optional:
        keys = msgspec.to_builtins(document)
        del keys[key]
        with pytest.raises(VerificationError, match=f"x.json is damaged.*`{key}`"):
            documents.decode(type(document), json.dumps(keys).encode(), "x.json")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b"{} {}",
        b"\x00" * 64,
        b'{"replid": "\xff\xff"}',
        b'{"later": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    ],
)
def test_what_is_no_document_is_an_error_that_names_it(content: bytes) -> None:
    with pytest.raises(VerificationError, match=r"histories/x\.json is damaged: "):
        documents.decode(History, content, "histories/x.json")


@given(st.sampled_from(EXAMPLES), st.data())
def test_a_document_cut_short_is_an_error(document: Any, data: st.DataObject) -> None:  # noqa: ANN401
    content = documents.encode(document).rstrip()
    cut = data.draw(st.integers(0, len(content) - 1))
    with pytest.raises(VerificationError, match="damaged"):
        documents.decode(type(document), content[:cut], "x.json")


@given(st.sampled_from([Repository, Source, History, Manifest, Gap]), st.binary())
def test_garbage_is_an_error_and_nothing_else(kind: Any, content: bytes) -> None:  # noqa: ANN401
    with pytest.raises(VerificationError):
        documents.decode(kind, content, "x.json")


@pytest.mark.parametrize(
    ("heading", "kind"),
    [
        ("kvtape.json", Repository),
        ("source.json", Source),
        ("server", Server),
        ("histories/&lt;replid&gt;.json", History),
        ("snapshots/…/manifest.json", Manifest),
        ("gaps/…", Gap),
    ],
)
def test_the_specification_lists_every_key(
    heading: str, kind: type[msgspec.Struct]
) -> None:
    text = SPECIFICATION.read_text()
    section = re.split(r"\n#+ ", text.partition(f"\n### {heading}\n")[2])[0]
    cells = re.findall(r"^\| (`.*?) \|", section, re.MULTILINE)
    keys = [key.strip("`") for cell in cells for key in cell.split(", ")]
    assert sorted(keys) == sorted(kind.__struct_fields__)
