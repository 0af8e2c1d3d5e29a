"""A picture of levels: a PNG with a palette, written with nothing but zlib."""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Sequence

Colour = tuple[int, int, int, int]
"""Red, green, blue and opacity, 0 to 255."""
MAGIC = b"\x89PNG\r\n\x1a\n"


def picture(rows: Sequence[bytes], palette: Sequence[Colour]) -> bytes:
    """A PNG of one pixel per byte of `rows`, all of one length >= 1; a byte is a place in `palette`.

    Its rows are not filtered, so that the inflated data is the levels with a zero before each row.
    """
    width, height = len(rows[0]), len(rows)
    header = struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row for row in rows), 9)
    colours = b"".join(bytes(c[:3]) for c in palette)
    chunks = [(b"IHDR", header), (b"PLTE", colours), (b"tRNS", bytes(c[3] for c in palette))]
    return MAGIC + b"".join(_chunk(*c) for c in [*chunks, (b"IDAT", data), (b"IEND", b"")])


def data_uri(png: bytes) -> str:
    """The picture as an address that holds all of it."""
    return f"data:image/png;base64,{base64.b64encode(png).decode('ascii')}"


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
