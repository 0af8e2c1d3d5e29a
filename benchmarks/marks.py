"""Pages of which parts are made from a kept run, between two comments, and the rest is prose.

<!-- made: NAME -->

| what the run says |

<!-- end -->
"""

from __future__ import annotations

import re
from collections.abc import Mapping

BEGIN = re.compile(r"<!-- made: ([a-z0-9]+(?: [a-z0-9]+)*) -->")
END = "<!-- end -->"
ALMOST = re.compile(r"<!--\s*(made\b|end\b)", re.IGNORECASE)
"""What someone may have meant as a mark."""


def pieces(page: str) -> list[tuple[str | None, str]]:
    """Prose (None) and made parts (their names) in turn, the lines of marks left out.

    Raises ValueError for a mark without an end, an end without a mark, a mark that is misspelt, and a
    name that comes twice.
    """
    found: list[tuple[str | None, str]] = []
    name: str | None = None
    held: list[str] = []
    for number, line in enumerate(page.split("\n"), start=1):
        begins = BEGIN.fullmatch(line)
        if not begins and line != END:
            if ALMOST.search(line):
                raise ValueError(f"line {number}: neither `<!-- made: NAME -->` nor `{END}`")
            held.append(line)
            continue
        if begins and name is not None:
            raise ValueError(f"line {number}: `{name}` has no end before the next mark")
        if not begins and name is None:
            raise ValueError(f"line {number}: an end without a mark")
        if name is not None or held:
            found.append((name, "\n".join(held)))
        name, held = begins and begins[1], []
    if name is not None:
        raise ValueError(f"`{name}` has no end")
    if held:
        found.append((None, "\n".join(held)))
    names = [one for one, _ in found if one]
    if len(names) != len(set(names)):
        raise ValueError("two marks have one name")
    return found


def names(page: str) -> list[str]:
    """Of its made parts. Raises ValueError as `pieces` does."""
    return [name for name, _ in pieces(page) if name]


def replaced(page: str, made: Mapping[str, str]) -> str:
    """The page with these parts made anew; prose and all other parts are as they were.

    Raises ValueError as `pieces` does.
    """
    lines = []
    for name, text in pieces(page):
        if name is None:
            lines.append(text)
        else:
            inside = f"\n{made[name].strip()}\n" if name in made else text
            lines.append(f"<!-- made: {name} -->\n{inside}\n{END}")
    return "\n".join(lines)
