"""Tables and figures of benchmarks/results/ again, from runs that are kept.

python -m benchmarks.paper --work DIR [--out DIR]

Nothing is trained or judged. DIR holds, as far as there is: adaptive/, check/, flower/, history/, real/,
speed/ and text_copy/, the --work folders of these benchmarks; wild/, the --data folder of
benchmarks.wild; federated_rounds/, with what the example writes by --json; detection-full-2000.json,
which benchmarks.detection writes; calibration.json, faults.json, fuzz.jsonl, judging.jsonl, page.json
and theory.json, each the file given to --keep.

Some pages are made whole. Of others the parts between `<!-- made: NAME -->` and `<!-- end -->` are, and
the prose stays: it has to be read again by hand. A page whose run is not there is left alone, and named
in one line, with the command that keeps a run.
"""

from __future__ import annotations

import argparse
import io
import json
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from benchmarks import marks
from benchmarks.paper_parts import IN_PART, InPart

RESULTS = Path(__file__).parent / "results"
DETECTION = "detection-full-2000"
SAMPLES = ("--samples", "16", "24", "48", "--kind", "mixed")
THEORY = ("gain", "noise", "recovery", "sets")
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


def adaptive(run: Path, out: Path) -> str | None:
    """The page of a run."""
    file = run / "adaptive.json"
    if not file.is_file():
        return f"no {run.name}/{file.name}"
    from benchmarks import adaptive_tables

    text = adaptive_tables.document(*adaptive_tables.from_json(file.read_text(encoding="utf-8")))
    (out / "adaptive.md").write_text(text, encoding="utf-8")
    return None


def calibration(run: Path, out: Path) -> str | None:
    """The page of a run."""
    if not run.is_file():
        return f"no {run.name}"
    from benchmarks import calibration_tables

    found = calibration_tables.from_json(run.read_text(encoding="utf-8"))
    (out / "calibration.md").write_text(calibration_tables.document(found), encoding="utf-8")
    return None


def page(run: Path, out: Path) -> str | None:
    """The page of a run."""
    if not run.is_file():
        return f"no {run.name}"
    from benchmarks import page

    text = page.document(json.loads(run.read_text(encoding="utf-8")))
    (out / "page.md").write_text(text, encoding="utf-8")
    return None


def theory(run: Path, out: Path) -> str | None:
    """The page and the pictures of a run."""
    if not run.is_file():
        return f"no {run.name}"
    from benchmarks import theory_pictures, theory_records

    found = theory_records.from_json(run.read_text(encoding="utf-8"))
    theory_pictures.report(*found, out)
    return None


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
    Kept(("adaptive.md",), "adaptive", adaptive),
    Kept(("calibration.md",), "calibration.json", calibration),
    Kept(("page.md",), "page.json", page),
    Kept(("theory.md", *(f"theory-{n}.png" for n in THEORY)), "theory.json", theory),
)
"""What is made whole from a run."""
ANEW = {
    "beside.md": "python -m benchmarks.beside, twice, with the page's options, an hour; keeps no run",
    "cache.md": "python -m benchmarks.cache, and with --drop, and with --clients 24; keeps no run",
    "calibration-differences.md": "by hand, as the page says: cohorts that no benchmark makes",
    "cluster.md": "python -m benchmarks.cluster --work DIR, minutes, which keeps no run",
    "formats-measurements.md": "the tests that the page names measure it, and write no run",
    "method-measurements.md": "the commands that the page names, of earlier clairs, put side by side",
    "refinement-real.md": "by hand, as the page says: of the seeds that the rules were set on",
}
"""What keeps no run, how it is made, and why."""
COMMANDS = {
    "adaptive.md": "python -m benchmarks.adaptive --work DIR --shift 2000, hours",
    "calibration.md": "python -m benchmarks.calibration --grid DIR --keep FILE, half an hour",
    "page.md": "python -m benchmarks.page --keep FILE",
    "theory.md": "python -m benchmarks.theory --keep FILE, eight minutes",
}
"""How runs of pages that are made whole are kept, where the folder does not say it."""


def marked(one: InPart) -> tuple[str, list[str]]:
    """The page as it is, and the names of its parts. Raises ValueError where its marks are wrong."""
    page = (RESULTS / one.page).read_text(encoding="utf-8")
    try:
        return page, marks.names(page)
    except ValueError as error:
        raise ValueError(f"{one.page}: {error}") from error


def in_part(one: InPart, run: Path, out: Path) -> dict[str, str]:
    """Make the marked parts of a page, and its picture: what has become of each file."""
    page, names = marked(one)
    made = one.make(run)
    if not made:
        why = f"left alone, no run in {one.run}; {one.command}"
        return dict.fromkeys(filter(None, (one.page, one.picture)), why)
    (out / one.page).write_text(marks.replaced(page, made), encoding="utf-8")
    told = {
        "made in part": [name for name in names if name in made],
        "left alone, not kept": [name for name in names if name not in made],
        "kept, without a mark": [name for name in made if name not in names],
        "by hand": [one.by_hand] if one.by_hand else [],
    }
    said = {
        one.page: "; ".join(f"{how}: {', '.join(which)}" for how, which in told.items() if which)
    }
    if one.draw is None:
        return said
    if find_spec("matplotlib") is None:
        return said | {one.picture: "left alone, matplotlib is not installed"}
    drawn = one.draw(run, out / one.picture)
    return said | {one.picture: "made" if drawn else "left alone, too little is kept"}


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="where runs are kept")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the pages")
    given = parser.parse_args(words)
    try:
        for part in IN_PART:
            marked(part)
    except ValueError as error:
        raise SystemExit(f"nothing is made. {error}") from error
    given.out.mkdir(parents=True, exist_ok=True)
    work = given.work.resolve()
    for one in KEPT:
        why = one.make(work / one.run, given.out)
        how = f"; {COMMANDS[one.files[0]]}" if one.files[0] in COMMANDS else ""
        for name in one.files:
            print(f"{name}: {'made' if why is None else f'left alone, {why}{how}'}")
    for part in IN_PART:
        for name, told in in_part(part, work / part.run, given.out).items():
            print(f"{name}: {told}")
    for name, command in ANEW.items():
        print(f"{name}: left alone, no run is kept; {command}")


if __name__ == "__main__":
    main()
