"""Names from files are data: nothing in them may steer a terminal."""

from __future__ import annotations

import unicodedata

LONGEST = 512


def safe_text(text: str) -> str:
    """`text` on one line: control, format, bidi and surrogate characters as \\xNN or \\uNNNN."""
    shown = "".join(c if _harmless(c) else _escaped(c) for c in text)
    return shown if len(shown) <= LONGEST else shown[: LONGEST - 3] + "..."


def _harmless(char: str) -> bool:
    return char == " " or unicodedata.category(char)[0] not in "CZ"


def _escaped(char: str) -> str:
    code = ord(char)
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
