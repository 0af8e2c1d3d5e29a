"""JSON that clair reads back, changed place by place: honest documents with a few fields spoiled."""

from __future__ import annotations

import copy
import json
from typing import Any

from fuzz import clients
from fuzz.clients import ByteDraw, seldom

TEXTS = (
    "\x1b[31mred\x1b]52;c;eA==\x07",
    "\x9b2J",
    "\x1b]8;;http://x\x1b\\y",
    "\u202egnp\u2066",
    "two\r\nlines\u2028",
    "a\0b",
    "\ud800",
    "n" * 5000,
    ".",
    "..",
    "",
    "-n",
    "/etc/passwd",
    "a/../b",
    "strength-0/client-1",
    "strength-1/client-2",
    "1.9",
    "clair",
    "0" * 64,
    "x" * 64,
)
NUMBERS = (0, -1, 1, 1.5, 2**63, 10**39, 10**40, 1e308, 5e-324, -0.0, True, None, 3, 1e16)
SHA = "0123456789abcdef" * 4


def changed(draw: ByteDraw, honest: Any) -> bytes:
    """The document with some values replaced, gone, doubled, moved or nested, then seldom damaged."""
    data = copy.deepcopy(honest)
    for _ in range(draw.pick((1, 1, 2, 3, 5))):
        _change(draw, data)
    text = json.dumps(data)
    if seldom(draw):
        text = draw.pick((_doubled(text), "[" * 3000 + text, f"[{text}]", text + text, text[:-1]))
    return clients.damaged(draw, text.encode())


def _change(draw: ByteDraw, data: Any) -> None:
    holder = data
    while True:
        places = list(holder) if isinstance(holder, dict) else list(range(len(holder)))
        if not places:
            return
        key = draw.pick(places)
        inner = holder[key]
        if isinstance(inner, dict | list) and inner and draw.pick((1, 1, 1, 0)):
            holder = inner
            continue
        break
    _spoil(draw, holder, key)


def _spoil(draw: ByteDraw, holder: Any, key: Any) -> None:
    how = draw.pick(("text", "number", "value", "gone", "other", "nested", "again", "key"))
    if how == "text":
        holder[key] = draw.pick(TEXTS)
    elif how == "number":
        holder[key] = draw.pick(NUMBERS)
    elif how == "value":
        holder[key] = copy.deepcopy(draw.pick(clients.VALUES))
    elif how == "gone":
        del holder[key]
    elif how == "other":
        places = list(holder) if isinstance(holder, dict) else list(range(len(holder)))
        holder[key] = copy.deepcopy(holder[draw.pick(places)])
    elif how == "nested":
        holder[key] = [holder[key]]
    elif isinstance(holder, list):
        holder.append(copy.deepcopy(holder[key]))
    else:
        holder[draw.pick(TEXTS)] = holder[key]


def _doubled(text: str) -> str:
    """The first key of the document twice."""
    return text.replace("{", '{"schema_version": "1.0", ', 1)


MANIFEST = {
    "schema_version": "1.0",
    "tool": {"name": "clair", "version": "0"},
    "files": [{"name": n, "size": 1, "sha256": SHA} for n in ("a", "client-1/b", "c d")],
}
SCORES = {
    "kind": "clair scores",
    "scores": [
        {"client": f"client-{k}", "path": f"strength-0/client-{k}", "digest": SHA, "score": 0.5}
        for k in (1, 2)
    ],
}
COUNTS: dict[str, Any] = {"client-1": 3, "client-2": 10.5, "client-3": "7"}
