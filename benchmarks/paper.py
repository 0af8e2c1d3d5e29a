"""Tables and figures of benchmarks/results/ again, from runs that are kept.

python -m benchmarks.paper --work DIR [--out DIR]

Nothing is trained or judged. DIR holds, as far as there is: detection-full-2000.json, which
benchmarks.detection writes; text_copy/ and real/, the --work folders of these benchmarks; wild/, the
--data folder of benchmarks.wild. A page whose run is not there is named in one line, with the command
that makes it anew, and is left alone.
"""

from __future__ import annotations

import argparse
import io
import json
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
DETECTION = "detection-full-2000"
SAMPLES = ("--samples", "16", "24", "48", "--kind", "mixed")
REAL = ("--seeds", "all", "--peers", "--refine", "1", "--conditions", "even", "few-10", "brief-10")
REAL += ("skew-0.5", "skew-0.1", "domains-equal", "domains-unequal")


@dataclass(frozen=True, slots=True)
class Kept:
    """Files that are made together from a run: `make` takes where it is kept, and the folder for the
    files. It says what is missing, or None where it has made them."""

    files: tuple[str, ...]
    run: str
    make: Callable[[Path, Path], str | None]


def detection(run: Path, out: Path) -> str | None:
    """The tables and pictures of a document."""
    from benchmarks import measures, pictures

    if not run.is_file():
        return f"no {run.name}"
    found = json.loads(run.read_text(encoding="utf-8"))
    (out / run.with_suffix(".md").name).write_text(measures.as_markdown(found), encoding="utf-8")
    pictures.draw(found, out / run.name)
    return None


def text_copy(*options: str) -> Callable[[Path, Path], str | None]:
    """The tables and the picture of the cells that are kept."""

    def make(run: Path, out: Path) -> str | None:
        from benchmarks import text_copy

        return _quietly(text_copy.main, "--work", run, "--ready", *options, "--out", out)

    return make


def real(run: Path, out: Path) -> str | None:
    """The tables and the picture of what this very clair has said."""
    from benchmarks import real

    return _quietly(real.main, "--data", run, "--work", run, "--ready", *REAL, "--out", out)


def wild(run: Path, out: Path) -> str | None:
    """The tables of adapters that lie there."""
    from benchmarks import wild

    if not run.is_dir():
        return f"no folder {run.name}"
    (out / "wild.md").write_text(wild.document(run), encoding="utf-8")
    return None


def _quietly(main: Callable[[list[str]], None], *words: object) -> str | None:
    """Run a command line, without its tables on the screen."""
    run = Path(str(words[1]))
    if not run.is_dir():
        return f"no folder {run.name}"
    try:
        with redirect_stdout(io.StringIO()):
            main([*map(str, words)])
    except SystemExit as end:
        if end.code:
            return f"nothing in {run.name} that this clair has made"
    return None


KEPT = (
    Kept(
        (
            f"{DETECTION}.md",
            *(f"detection-2000-{name}.png" for name in ("dose", "field", "scores")),
        ),
        f"{DETECTION}.json",
        detection,
    ),
    Kept(("text_copy.md", "text_copy.png"), "text_copy", text_copy()),
    Kept(
        ("text_copy-n16-n24-n48.md", "text_copy-n16-n24-n48.png"), "text_copy", text_copy(*SAMPLES)
    ),
    Kept(("real.md", "real-roc.png"), "real", real),
    Kept(("wild.md",), "wild", wild),
)
"""What can be made again from a run."""
ANEW = {
    "adaptive.md": "python -m benchmarks.adaptive --work DIR --shift 2000, hours",
    "beside.md": "python -m benchmarks.beside, twice, with the options that the page names, an hour",
    "cache.md": "python -m benchmarks.cache, and with --drop, and with --clients 24",
    "calibration.md": "python -m benchmarks.calibration --cohorts FILE, ten minutes",
    "calibration-differences.md": "by hand, as the page says",
    "cluster.md": "python -m benchmarks.cluster --work DIR, minutes",
    "check.md": "python -m benchmarks.check --work DIR --left-out 10, hours",
    "faults.md": "python -m fuzz.kills",
    "federated_rounds.md": "python -m examples.federated_rounds, as the page says",
    "federated_rounds.png": "python -m examples.federated_rounds --plot FILE",
    "flower.md": "python -m benchmarks.flower_rounds --work DIR --seeds 9001",
    "flower.png": "python -m benchmarks.flower_rounds --work DIR --seeds 9001 --plot FILE",
    "formats-measurements.md": "the tests that the page names",
    "fuzz.md": "python -m fuzz.run, as the page says",
    "history.md": "python -m benchmarks.history --work DIR --seeds reported, hours",
    "judging.md": "python -m benchmarks.judging --clients 100 300 1000 3000 --threads 1",
    "method-measurements.md": "the commands that the page names",
    "page.md": "python -m benchmarks.page --out FILE",
    "refinement-real.md": "by hand, as the page says",
    "speed.md": "python -m benchmarks.speed, on an idle machine",
    "theory.md": "python -m benchmarks.theory, eight minutes",
    **{
        f"theory-{name}.png": "python -m benchmarks.theory, eight minutes"
        for name in ("gain", "noise", "recovery", "sets")
    },
}
"""What keeps no run, and how it is made."""


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="where runs are kept")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the pages")
    given = parser.parse_args(words)
    given.out.mkdir(parents=True, exist_ok=True)
    for one in KEPT:
        why = one.make(given.work.resolve() / one.run, given.out)
        for name in one.files:
            print(f"{name}: {'made' if why is None else f'left alone, {why}'}")
    for name, command in ANEW.items():
        print(f"{name}: left alone, no run is kept; {command}")


if __name__ == "__main__":
    main()
