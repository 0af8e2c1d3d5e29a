"""The ledger of rounds, as detect and refine take it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from clair_cli.cli.delivery import place_for
from clair_cli.cli.options import GATING, option

History = Annotated[
    Path | None,
    option(
        GATING,
        metavar="FILE",
        help="Add this round to the ledger FILE, which is made where there is none, and count whom it "
        "convicts over the rounds as contaminated.",
    ),
]


def check_history(path: Path | None, *kept: Path) -> None:
    """Raises UsageError where a ledger cannot lie at `path`, as below a folder of `kept`."""
    if path is not None:
        place_for(str(path), "--history", *kept)
