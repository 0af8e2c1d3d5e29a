"""Figures for papers: one part of a saved report, drawn by matplotlib as PDF, SVG or PNG.

What is drawn is what the page shows: its records say who has a row and where every mark is. They and
matplotlib are loaded when the first figure is drawn, since every command reads the names in here. Text
is never read as mathematics, and nothing but the report and the width decides the bytes: no date, no
settings of the user's.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from importlib import import_module
from io import BytesIO
from typing import TYPE_CHECKING, Literal

from clair_cli.errors import UsageError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from clair_cli.report import Report

Kind = Literal["scores", "agreement", "heatmap", "spectrum", "refinement"]
"""What can be drawn."""
COLUMN = 3.25
"""Width of a column of a paper, in inches."""
PARTS: dict[Kind, str] = {
    "scores": "scores",
    "agreement": "agreement",
    "heatmap": "heat",
    "spectrum": "spectra",
    "refinement": "moves",
}
"""The part of the page that each kind draws, by which the page says why it is not there."""
METADATA: dict[str, dict[str, None]] = {
    "pdf": {"CreationDate": None},
    "svg": {"Date": None},
    "png": {},
}
"""By suffix: what matplotlib would write of the time."""


def check_library() -> None:
    """Raises UsageError where matplotlib is not installed."""
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    try:
        import_module("matplotlib")
    except ImportError:
        text = "clair plot needs the library matplotlib; install clair-cli[plot]"
        raise UsageError(text) from None


def check_suffix(suffix: str) -> None:
    """Raises UsageError where no figure is written with this end of a name."""
    if suffix not in METADATA:
        known = ", ".join(f".{name}" for name in METADATA)
        raise UsageError(f"expected the name of a file that ends with {known}, got .{suffix}")


def render(report: Report, kind: Kind, suffix: str, width: float = COLUMN) -> bytes:
    """The figure as a file of this suffix, `width` inches wide, the same bytes for equal reports.

    Raises UsageError where the report does not have what the figure shows, where there is no such
    suffix, and without matplotlib.
    """
    check_suffix(suffix)
    check_library()
    from matplotlib import style

    from clair_cli.renderers.page.view import missing
    from clair_cli.renderers.plots.looks import STYLE

    draw: Callable[[Report, float], Figure | str | None]
    draw = import_module(f"{__name__}.{kind}").draw
    file = BytesIO()
    with style.context(STYLE, after_reset=True), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # letters that the font lacks are drawn as boxes
        figure = draw(report, width)
        if figure is None or isinstance(figure, str):
            why = figure or missing(report)[PARTS[kind]]
            raise UsageError(f"there is no {kind} in this report: {why}")
        figure.savefig(file, format=suffix, metadata=METADATA[suffix])
    return file.getvalue()
