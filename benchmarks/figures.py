"""The pictures of docs/how-to/plots.md: python -m benchmarks.figures --images DIR

One of each kind: of the sample adapters and what refining them did, and of drawn clients of whom four
collude. Needs clair-cli[plot].
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import get_args

from benchmarks.page import ROOT, drawn
from clair_cli import Report, Settings, detect, refine
from clair_cli.renderers.plots import Kind, render


def shown(scratch: Path) -> dict[Kind, Report]:
    """The report that is drawn for each kind."""
    samples = refine(ROOT / "sample_adapters", scratch / "refined")
    group = detect(drawn(scratch / "group", 14, added=4), Settings(read_as="update"))
    return dict.fromkeys(get_args(Kind), samples) | {"agreement": group}


def main() -> None:
    parser = argparse.ArgumentParser(description="A picture of each kind that clair plot draws.")
    parser.add_argument("--images", type=Path, required=True, help="folder of the pictures")
    given = parser.parse_args()
    given.images.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        for kind, report in shown(Path(folder)).items():
            (given.images / f"plot-{kind}.png").write_bytes(render(report, kind, "png"))


if __name__ == "__main__":
    main()
