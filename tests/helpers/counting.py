"""Which bytes of which files are read: counted where the system is asked for them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

Ranges = dict[Path, list[tuple[int, int]]]


@contextmanager
def counted() -> Iterator[Ranges]:
    """Path -> ranges of bytes that this process reads of it within the block, by descriptor."""
    found: Ranges = {}
    read, preadv = os.read, os.preadv

    def named(fd: int) -> Path:
        return Path(os.readlink(f"/proc/self/fd/{fd}"))

    def counted_read(fd: int, size: int) -> bytes:
        at = os.lseek(fd, 0, os.SEEK_CUR) if os.path.isfile(f"/proc/self/fd/{fd}") else 0
        data = read(fd, size)
        found.setdefault(named(fd), []).append((at, at + len(data)))
        return data

    def counted_preadv(fd: int, buffers: Any, at: int) -> int:
        size = preadv(fd, buffers, at)
        found.setdefault(named(fd), []).append((at, at + size))
        return size

    os.read, os.preadv = counted_read, counted_preadv
    try:
        yield found
    finally:
        os.read, os.preadv = read, preadv


def header(file: Path) -> int:
    """Where the tensors of a safetensors file begin."""
    return 8 + int.from_bytes(file.read_bytes()[:8], "little")


def clients_read(found: Ranges, folder: Path) -> set[str]:
    """The clients below `folder` of whose files of tensors more than the header was read."""
    top = folder.resolve()
    return {
        path.relative_to(top).parts[0].removesuffix(".safetensors")
        for path, ranges in found.items()
        if path.is_relative_to(top) and path.suffix == ".safetensors" and path.exists()
        if max(end for _, end in ranges) > header(path)
    }
