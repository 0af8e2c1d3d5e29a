"""A zip file, read strictly by its directory, as numpy.savez writes it; and written member by member.

Every member is where the directory says, under the same name and sizes; members fill the file from
its first byte to the directory without a hole or an overlap; no name occurs twice. Structures of the
format are those of PKWARE APPNOTE 4.3, little-endian.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from clair_cli.errors import (
    AdapterError,
    LimitExceeded,
    Malformed,
    PickleFound,
    UnsafePath,
    Unsupported,
)
from clair_cli.formats.files import pread
from clair_cli.formats.safetensors_file import MAX_NAME_BYTES
from clair_cli.output.publish import NewFile
from clair_cli.settings import Settings

LOCAL = struct.Struct("<4s5H3L2H")
CENTRAL = struct.Struct("<4s6H3L5H2L")
END = struct.Struct("<4s4H2LH")
LOCATOR64 = struct.Struct("<4sLQL")
END64 = struct.Struct("<4sQ2H2L4Q")
STORED, DEFLATED = 0, 8
UTF8, EFFORT = 0x800, 0x6
"""Flag bits that may be set: the name is UTF-8; how hard the packer tried."""
FULL16, FULL32 = 0xFFFF, 0xFFFFFFFF
"""What stands in a field whose true value is in a zip64 one."""

MOST_PACKED, SMALL = 64, 2**26
"""How many times its size a file may unpack to, beyond some MiB: trained numbers hardly pack, zeros by a
thousand."""
DAY = 33
"""1980-01-01, the first date of the format: equal members give equal bytes."""
UNIX, MODE = 3 << 8, 0o100644 << 16
ZIP64_FROM = FULL32
"""Sizes and offsets from here on stand in zip64 fields."""


@dataclass(frozen=True, slots=True)
class Member:
    """One file of the zip: its `packed` bytes begin at `begin`, its local header at `offset`."""

    name: str
    flags: int
    method: int
    crc: int
    packed: int
    unpacked: int
    offset: int
    begin: int = -1

    @property
    def end(self) -> int:
        """The position where the packed bytes of the entry end."""
        return self.begin + self.packed


def read_directory(fd: int, size: int, where: str, settings: Settings) -> list[Member]:
    """The members of an open zip file of `size` bytes, in file order.

    Raises Malformed, Unsupported, UnsafePath, PickleFound, or LimitExceeded for the size of the file,
    of the directory, or of all members once unpacked, before anything is allocated for them.
    """
    _limit(size, settings.max_file_bytes, "bytes", where)
    count, length, begin = _end(fd, size, where)
    _limit(count, settings.max_tensors, "tensors", where)
    _limit(length, settings.max_header_bytes, "bytes of directory", where)
    members = list(_entries(bytes(pread(fd, begin, begin + length)), count, where))
    unpacked = sum(m.unpacked for m in members)
    _limit(unpacked, settings.max_file_bytes, "bytes once unpacked", where)
    _limit(unpacked, size * MOST_PACKED + SMALL, f"bytes unpacked from {size}", where)
    end, placed = 0, {}
    for member in sorted(members, key=lambda m: m.offset):
        if member.offset != end:
            raise damaged(where, f"{member.name!r} overlaps another member or follows a hole")
        if member.name in placed:
            raise damaged(where, f"{member.name!r} occurs twice")
        placed[member.name] = _placed(fd, member, where)
        end = placed[member.name].end
    if end != begin:
        raise damaged(where, "its members do not end where the directory begins")
    return list(placed.values())


def _limit(found: int, most: int, what: str, where: str) -> None:
    if found > most:
        raise LimitExceeded(f"{where}: {found} {what}, the limit is {most}")


def damaged(where: str, why: str) -> Malformed:
    """The error for a file that is no npz, or one that two readers could read in two ways."""
    return Malformed(f"{where}: {why}; save it again with numpy.savez")


def _end(fd: int, size: int, where: str) -> tuple[int, int, int]:
    """Number of members, and length and begin of the directory, from the end of the file."""
    raw = bytes(pread(fd, max(0, size - END.size), size))
    if len(raw) < END.size or not raw.startswith(b"PK\5\6"):
        raise _no_zip(bytes(pread(fd, 0, min(size, 64))), where)
    _, disk, first, here, count, length, begin, comment = END.unpack(raw)
    at = size - END.size
    if FULL16 in (here, count) or FULL32 in (length, begin):
        at, disk, first, here, count, length, begin = _end64(fd, at, where)
    if disk or first or comment or here != count or begin + length != at:
        raise damaged(where, "the record at its end does not fit the file")
    return count, length, begin


def _end64(fd: int, end: int, where: str) -> tuple[int, ...]:
    """Where the zip64 record begins, and its fields from the disk number on."""
    at = end - LOCATOR64.size - END64.size
    if at < 0:
        raise damaged(where, "its zip64 record is missing")
    raw = bytes(pread(fd, at, end))
    fields = END64.unpack_from(raw)
    sign, _, stated, _ = LOCATOR64.unpack_from(raw, END64.size)
    if (fields[0], sign, stated) != (b"PK\6\6", b"PK\6\7", at):
        raise damaged(where, "its zip64 record does not fit the file")
    return (at, *fields[4:])


def _no_zip(head: bytes, where: str) -> AdapterError:
    if head[:1] == b"\x80":
        return PickleFound(f"{where}: a pickle under an npz name, not opened; re-save it")
    if head.startswith(b"\x93NUMPY"):
        return damaged(where, "a single .npy array without a name")
    if head.startswith(b"version https://git-lfs"):
        return Malformed(f"{where}: a git-LFS pointer, not the file itself; run `git lfs pull`")
    if not head:
        return Malformed(f"{where}: the file is empty (0 bytes); upload it again")
    return damaged(where, "no zip directory at its end: cut off, or followed by other bytes")


def _entries(data: bytes, count: int, where: str) -> Iterator[Member]:
    """The `count` entries of a directory that are all of `data`."""
    at = 0
    for _ in range(count):
        if data[at : at + 4] != b"PK\1\2" or len(data) - at < CENTRAL.size:
            raise damaged(where, "its directory is malformed")
        fields = CENTRAL.unpack_from(data, at)
        name_bytes, extra_bytes = fields[10:12]
        at += CENTRAL.size + name_bytes + extra_bytes
        if at > len(data):
            raise damaged(where, "its directory is malformed")
        raw = data[at - name_bytes - extra_bytes : at]
        yield _entry(fields, raw[:name_bytes], raw[name_bytes:], where)
    if at != len(data):
        raise damaged(where, "its directory holds more than its members")


def _entry(fields: tuple[int, ...], raw: bytes, extra: bytes, where: str) -> Member:
    flags, method, crc, packed, unpacked = fields[3], fields[4], *fields[7:10]
    name = _name(raw, flags, where)
    if flags & ~(UTF8 | EFFORT) or method not in (STORED, DEFLATED):
        text = f"{name!r} is encrypted, streamed, or packed by another method than deflate"
        raise Unsupported(f"{where}: {text}; save it with numpy.savez")
    if fields[12] or fields[13]:
        raise damaged(where, f"{name!r} has a comment or lies in another file")
    unpacked, packed, offset = _zip64(extra, (unpacked, packed, fields[16]), where)
    if method == STORED and packed != unpacked:
        raise damaged(where, f"the sizes of {name!r} contradict each other")
    return Member(name, flags, method, crc, packed, unpacked, offset)


def _name(raw: bytes, flags: int, where: str) -> str:
    if len(raw) > MAX_NAME_BYTES:
        raise LimitExceeded(f"{where}: a member's name is longer than {MAX_NAME_BYTES} bytes")
    try:
        name = raw.decode("utf-8" if flags & UTF8 else "ascii")
    except UnicodeDecodeError:
        raise damaged(where, f"a member's name {raw[:40]!r} is not text") from None
    parts = re.split(r"[/\\]", name)
    if "\0" in name or ".." in parts or not parts[0] or re.fullmatch("[A-Za-z]:", parts[0][:2]):
        raise UnsafePath(f"{where}: member {name!r} would unpack elsewhere; rename it")
    if name.endswith((".pkl", ".pickle")):
        raise PickleFound(f"{where}: holds the pickle {name!r}, not opened; save arrays alone")
    if not name.endswith(".npy") or name == ".npy":
        raise Unsupported(f"{where}: member {name!r} is no .npy array; save arrays alone")
    return name


def _zip64(extra: bytes, fields: tuple[int, ...], where: str) -> tuple[int, ...]:
    """The fields with those that are full replaced, in order, by what the zip64 extra says."""
    count = fields.count(FULL32)
    while count and len(extra) >= 4:
        kind, length = struct.unpack_from("<2H", extra)
        value, extra = extra[4 : 4 + length], extra[4 + length :]
        if kind == 1 and len(value) >= 8 * count:
            large = iter(struct.unpack_from(f"<{count}Q", value))
            return tuple(next(large) if f == FULL32 else f for f in fields)
    if count:
        raise damaged(where, "a size is missing from its directory")
    return fields


def _placed(fd: int, member: Member, where: str) -> Member:
    """The member with where its bytes begin; its own header must say what the directory says."""
    at = member.offset
    raw = bytes(pread(fd, at, at + LOCAL.size))
    if len(raw) < LOCAL.size or not raw.startswith(b"PK\3\4"):
        raise damaged(where, f"{member.name!r} does not begin where the directory says")
    _, _, flags, method, _, _, crc, packed, unpacked, name_bytes, extra_bytes = LOCAL.unpack(raw)
    at += LOCAL.size
    rest = bytes(pread(fd, at, at + name_bytes + extra_bytes))
    unpacked, packed = _zip64(rest[name_bytes:], (unpacked, packed), where)
    said = (rest[:name_bytes], flags, method, crc, packed, unpacked)
    wanted = (member.name.encode(), member.flags, member.method, member.crc)
    if said != (*wanted, member.packed, member.unpacked):
        raise damaged(where, f"{member.name!r} is another in the directory")
    return replace(member, begin=at + name_bytes + extra_bytes)


# --- written


class ZipWriter:
    """`path`, a new file of members name -> size, which lie in it in this order. Raises OutputError."""

    def __init__(self, path: Path, sizes: Mapping[str, int]) -> None:
        self.sizes = dict(sizes)
        self.begins, at = {}, 0
        for name, size in self.sizes.items():
            self.begins[name] = at
            at += len(_local_header(name, size, 0)) + size
        self.directory, self.checksums = at, dict.fromkeys(self.sizes, 0)
        self.file = NewFile(path)

    def write(self, name: str, data: bytes | bytearray, at: int = 0) -> None:
        """All bytes of a member, once; or piece by piece, in order, each from its byte `at` on."""
        size = self.sizes[name]
        assert at + len(data) <= size
        self.checksums[name] = zlib.crc32(data, self.checksums[name] if at else 0)
        head = _local_header(name, size, self.checksums[name])  # as long, whatever the checksum
        if at + len(data) == size:
            self.file.write(self.begins[name], head)
        self.file.write(self.begins[name] + len(head) + at, data)

    def close(self) -> None:
        """The directory too; everything is on disk."""
        entries = (
            _directory_entry(n, size, self.checksums[n], self.begins[n])
            for n, size in self.sizes.items()
        )
        directory = b"".join(entries)
        self.file.write(self.directory, directory)
        end = _end_records(len(self.sizes), len(directory), self.directory)
        self.file.write(self.directory + len(directory), end)
        self.file.close()

    def abandon(self) -> None:
        """Remove the unfinished file; after `close` this does nothing."""
        self.file.abandon()


def _zip64_fields(*values: int) -> tuple[list[int], bytes]:
    """The values as 32-bit fields, and the extra that holds those too large for one."""
    large = [v for v in values if v >= ZIP64_FROM]
    extra = struct.pack(f"<2H{len(large)}Q", 1, 8 * len(large), *large) if large else b""
    return [FULL32 if v >= ZIP64_FROM else v for v in values], extra


def _local_header(name: str, size: int, crc: int) -> bytes:
    raw = name.encode()
    (packed, unpacked), extra = _zip64_fields(size, size)
    fields = (45 if extra else 20, UTF8, STORED, 0, DAY, crc, packed, unpacked)
    return LOCAL.pack(b"PK\3\4", *fields, len(raw), len(extra)) + raw + extra


def _directory_entry(name: str, size: int, crc: int, begin: int) -> bytes:
    raw = name.encode()
    (unpacked, packed, offset), extra = _zip64_fields(size, size, begin)
    version = 45 if extra else 20
    fields = (UNIX | version, version, UTF8, STORED, 0, DAY, crc, packed, unpacked)
    rest = (len(raw), len(extra), 0, 0, 0, MODE, offset)
    return CENTRAL.pack(b"PK\1\2", *fields, *rest) + raw + extra


def _end_records(count: int, length: int, begin: int) -> bytes:
    """The record at the end; where its fields are too small, the zip64 records before it."""
    fields, extra = _zip64_fields(length, begin)
    many = min(count, FULL16)
    records = b""
    if extra or many == FULL16:
        whole = (45, 45, 0, 0, count, count, length, begin)
        records = END64.pack(b"PK\6\6", END64.size - 12, *whole)
        records += LOCATOR64.pack(b"PK\6\7", 0, begin + length, 1)
    return records + END.pack(b"PK\5\6", 0, 0, many, many, *fields, 0)
