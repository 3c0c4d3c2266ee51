"""RDB files, read as a stream: bytes in, keys out."""

from __future__ import annotations

from kvtape.tape.rdb.events import (
    FIELD_EXPIRE_SLACK_MS,
    NEED_DATA,
    Aux,
    End,
    Event,
    Header,
    Key,
    Library,
    ModuleAux,
    NeedData,
    RdbError,
    ResizeDb,
    SelectDb,
    SlotImport,
    SlotInfo,
    UnknownRdbError,
)
from kvtape.tape.rdb.reader import RdbReader, read_header
from kvtape.tape.rdb.values import type_name

__all__ = [
    "FIELD_EXPIRE_SLACK_MS",
    "NEED_DATA",
    "Aux",
    "End",
    "Event",
    "Header",
    "Key",
    "Library",
    "ModuleAux",
    "NeedData",
    "RdbError",
    "RdbReader",
    "ResizeDb",
    "SelectDb",
    "SlotImport",
    "SlotInfo",
    "UnknownRdbError",
    "read_header",
    "type_name",
]
