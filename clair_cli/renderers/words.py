"""Numbers and names as a sentence takes them."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence

from clair_cli.accepted import Accepted
from clair_cli.renderers.safe import safe_text
from clair_cli.report import Rarity, Verdict

SHARES = {
    1 / 10: "a tenth",
    1 / 5: "a fifth",
    1 / 4: "a quarter",
    1 / 3: "a third",
    1 / 2: "half",
    2 / 3: "two thirds",
    3 / 4: "three quarters",
    1.0: "all",
}
NEAR = 0.015
"""What a word for a share may be off by."""
OFTEN = 0.1
"""A rate from which on a percentage is plainer than one in so many."""
FEW = 5
"""Names that are listed before the others are only counted."""


def many(count: int, noun: str, plural: str | None = None) -> str:
    """The count and its noun: 1 client, 2 clients."""
    return f"{count} {noun if count == 1 else plural or noun + 's'}"


def times(count: int) -> str:
    """The count as an adverb: once, 2 times."""
    return "once" if count == 1 else f"{count} times"


def percent(share: float) -> str:
    """0.44 as "44 %", -0.2 as "-20 %"; nearer to 0 than one percent to one digit."""
    return f"{100 * share:.0f} %" if abs(share) >= 0.01 or share == 0 else f"{100 * share:.1g} %"


def share(value: float) -> str:
    """0.21 as "a fifth" where a word is exact enough, else in percent."""
    nearest = min(SHARES, key=lambda known: abs(known - value))
    return SHARES[nearest] if abs(nearest - value) <= NEAR else percent(value)


def as_high(rarity: Rarity) -> str:
    """How often an honest client of the benchmark scored as high: never, 1 in 900, or 23 % of them."""
    hits, of = rarity.as_high, max(rarity.of, 1)
    if not hits:
        who = f"none of {rarity.of}"
    else:
        who = f"1 in {of / hits:.0f}" if hits / of < OFTEN else f"{percent(hits / of)} of"
    return f"{who} honest clients of the benchmark scored as high"


def decision(made: Accepted, verdict: str) -> str:
    """Why somebody has accepted a client, and what it would be otherwise."""
    until = f" until {made.until}" if made.until else ""
    return f"{safe_text(made.reason)} (accepted{until}; {verdict} by {', '.join(made.codes)})"


def numbers(client: Verdict) -> str:
    """Its score, its limit, and how rare the score is among honest clients; nothing without a score."""
    if client.score is None or client.limit is None:
        return ""
    said = f"score {client.score:.1f}, limit {client.limit:.1f}"
    return said if client.rarity is None else f"{said}, {as_high(client.rarity)}"


def span(values: Iterable[int]) -> str:
    """The least and the largest of `values`, as 2-8, or the one that all are."""
    found = sorted(set(values)) or [0]
    return f"{found[0]}-{found[-1]}" if len(found) > 1 else f"{found[0]}"


def few(names: Sequence[str], most: int = FEW) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - most} more" if names[most:] else ""
    return ", ".join(names[:most]) + more


def folded(text: str, width: int, indent: str = "", more: str = "  ") -> list[str]:
    """Lines of at most `width` characters, broken between words; `more` indents all but the first.

    A number and its percent sign stay together.
    """
    lines = textwrap.wrap(
        text.replace(" %", "\0%"),
        width,
        initial_indent=indent,
        subsequent_indent=indent + more,
        break_long_words=False,
        break_on_hyphens=False,
    )
    return [line.replace("\0%", " %") for line in lines]


def aligned(rows: Iterable[Sequence[str]], right: Iterable[int] = ()) -> list[str]:
    """Rows of cells as lines, each column as wide as its widest cell; `right` are flushed right."""
    shown = [[safe_text(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*shown, strict=True)]
    flush = set(right)
    return [
        "  "
        + "  ".join(
            _padded(c, w, i in flush) for i, (c, w) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in shown
    ]


def _padded(cell: str, width: int, right: bool) -> str:
    return cell.rjust(width) if right else cell.ljust(width)
