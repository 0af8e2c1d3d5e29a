"""A zip file of members whose sizes are known, unpacked; each is written once, in any order."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping
from pathlib import Path

from clair_cli.formats.zip_file import (
    CENTRAL,
    END,
    END64,
    FULL16,
    FULL32,
    LOCAL,
    LOCATOR64,
    STORED,
    UTF8,
)
from clair_cli.output.publish import NewFile

DAY = 33
"""1980-01-01, the first date of the format: equal members give equal bytes."""
UNIX, MODE = 3 << 8, 0o100644 << 16
LARGE = FULL32
"""Sizes and offsets from here on stand in zip64 fields."""


class ZipWriter:
    """`path`, a new file of members name -> size, which lie in it in this order. Raises OutputError."""

    def __init__(self, path: Path, sizes: Mapping[str, int]) -> None:
        self.sizes = dict(sizes)
        self.begins, at = {}, 0
        for name, size in self.sizes.items():
            self.begins[name] = at
            at += len(_local(name, size, 0)) + size
        self.directory, self.checksums = at, dict.fromkeys(self.sizes, 0)
        self.file = NewFile(path)

    def write(self, name: str, data: bytes) -> None:
        """All bytes of a member, once."""
        assert len(data) == self.sizes[name]
        self.checksums[name] = zlib.crc32(data)
        head = _local(name, len(data), self.checksums[name])
        self.file.write(self.begins[name], head)
        self.file.write(self.begins[name] + len(head), data)

    def close(self) -> None:
        """The directory too; everything is on disk."""
        entries = (
            _central(n, size, self.checksums[n], self.begins[n]) for n, size in self.sizes.items()
        )
        directory = b"".join(entries)
        self.file.write(self.directory, directory)
        end = _end(len(self.sizes), len(directory), self.directory)
        self.file.write(self.directory + len(directory), end)
        self.file.close()

    def abandon(self) -> None:
        """Remove the unfinished file; after `close` this does nothing."""
        self.file.abandon()


def _zip64(*values: int) -> tuple[list[int], bytes]:
    """The values as 32-bit fields, and the extra that holds those too large for one."""
    large = [v for v in values if v >= LARGE]
    extra = struct.pack(f"<2H{len(large)}Q", 1, 8 * len(large), *large) if large else b""
    return [FULL32 if v >= LARGE else v for v in values], extra


def _local(name: str, size: int, crc: int) -> bytes:
    raw = name.encode()
    (packed, unpacked), extra = _zip64(size, size)
    fields = (45 if extra else 20, UTF8, STORED, 0, DAY, crc, packed, unpacked)
    return LOCAL.pack(b"PK\3\4", *fields, len(raw), len(extra)) + raw + extra


def _central(name: str, size: int, crc: int, begin: int) -> bytes:
    raw = name.encode()
    (unpacked, packed, offset), extra = _zip64(size, size, begin)
    version = 45 if extra else 20
    fields = (UNIX | version, version, UTF8, STORED, 0, DAY, crc, packed, unpacked)
    places = (len(raw), len(extra), 0, 0, 0, MODE, offset)
    return CENTRAL.pack(b"PK\1\2", *fields, *places) + raw + extra


def _end(count: int, length: int, begin: int) -> bytes:
    """The record at the end; where its fields are too small, the zip64 records before it."""
    fields, extra = _zip64(length, begin)
    many = min(count, FULL16)
    records = b""
    if extra or many == FULL16:
        whole = (45, 45, 0, 0, count, count, length, begin)
        records = END64.pack(b"PK\6\6", END64.size - 12, *whole)
        records += LOCATOR64.pack(b"PK\6\7", 0, begin + length, 1)
    return records + END.pack(b"PK\5\6", 0, 0, many, many, *fields, 0)
