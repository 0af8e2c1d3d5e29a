"""Names from files are data: nothing in them may steer a terminal."""

from __future__ import annotations

import re
import unicodedata

LONGEST = 512
STYLE = re.compile(r"(\x1b\[[0-9;]{1,11}m)")
"""How a colour begins and ends."""
COMMAND = re.compile(r"^([ \t]*):(?=:)", re.MULTILINE)
"""How a line begins that the runner of GitHub takes for a command, in whatever log."""
OLD_COMMAND = re.compile(r"#(?=#(?:\[|vso\[))")
"""How a command begins that the runners of GitHub and of Azure find anywhere in a line."""


def one_line(text: str) -> str:
    """`text` on one line: control, format, bidi and surrogate characters as \\xNN or \\uNNNN."""
    return "".join(c if _harmless(c) else _escaped(c) for c in text)


def safe_text(text: str) -> str:
    """The same, and no longer than LONGEST."""
    shown = one_line(text)
    return shown if len(shown) <= LONGEST else shown[: LONGEST - 3] + "..."


def visible(text: str) -> str:
    """Whole lines of `text`, whatever is in them; nothing but their ends is left of what could steer."""
    if text.isascii() and text.replace("\n", "").isprintable():
        return text
    return "".join(c if c == "\n" or _harmless(c) else _escaped(c) for c in text)


def inert(text: str) -> str:
    """`text` without what a runner of jobs would obey. JSON stays JSON, and says the same."""
    return OLD_COMMAND.sub(r"\\u0023", COMMAND.sub(r"\1\\x3a", text))


def visible_but_styles(text: str) -> str:
    """The same for text with colours in it, of which the names must have been made safe before."""
    return "".join(p if STYLE.fullmatch(p) else visible(p) for p in STYLE.split(text))


def _harmless(char: str) -> bool:
    return char == " " or unicodedata.category(char)[0] not in "CZ"


def _escaped(char: str) -> str:
    code = ord(char)
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
