"""Pages in a browser: how large they are and how soon ready, and pictures of typical ones.

python -m benchmarks.page [--images DIR] [--out FILE] [--keep FILE] [--browser PATH]

Pictured are the sample adapters and cohorts that are drawn here: updates of one task with a part of each
client's own. Timed are reports of drawn numbers, since only their size matters. `--keep` writes what was
timed, as JSON. Needs clair-cli[browser] and a Chromium.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks.large_reports import large
from clair_cli import Report, Settings, detect
from clair_cli.renderers import render

ROOT = Path(__file__).resolve().parents[1]
SIZES = ((32, 224), (200, 448), (1000, 448))
"""Clients and modules of the pages that are timed."""
LOADS = 9
SEED = 20260521
READY = "performance.getEntriesByName('ready')[0].startTime"


def drawn(folder: Path, honest: int, added: int = 0, other: int = 0, strength: float = 0.6) -> Path:
    """Plain matrices of clients: honest ones, some that add a part in common, some of another task."""
    draw = np.random.default_rng(SEED)
    names = [f"layers.{n}.{kind}" for n in range(4) for kind in ("q_proj", "v_proj", "up_proj")]
    task, second, extra = (_low(draw, len(names)) for _ in range(3))
    contents = [task] * honest + [task + strength * extra] * added + [second] * other
    folder.mkdir(parents=True)
    for number, k in enumerate(draw.permutation(len(contents)), start=1):
        update = (contents[k] + 0.7 * _low(draw, len(names))).astype(np.float32)
        np.savez(folder / f"site-{number:03d}.npz", **dict(zip(names, update, strict=True)))
    return folder


def _low(draw: np.random.Generator, count: int, rank: int = 4) -> np.ndarray:
    """Matrices (count, 32, 24) of this rank and norm 1."""
    found = draw.standard_normal((count, 32, rank)) @ draw.standard_normal((count, rank, 24))
    return np.asarray(found / np.linalg.norm(found, axis=(1, 2), keepdims=True))


def typical(scratch: Path) -> Iterator[tuple[str, list[Report]]]:
    """Six reports by name; the last is the third of three rounds."""
    plain = Settings(read_as="update")
    samples, clean = ROOT / "sample_adapters", scratch / "clean"
    for client in samples.glob("client-*"):
        if client.name not in ("client-03", "client-06"):
            shutil.copytree(client, clean / client.name)
    yield "clean", [detect(clean)]
    yield "two", [detect(samples)]
    yield "group", [detect(drawn(scratch / "group", 14, added=4), plain)]
    yield "many", [detect(drawn(scratch / "many", 293, other=7), plain)]
    yield "none", [detect(drawn(scratch / "none", 6, other=6), plain)]
    strengths = enumerate((0.2, 0.4, 0.8), start=1)
    folders = [drawn(scratch / f"round-{n}", 11, added=3, strength=s) for n, s in strengths]
    yield "rounds", [detect(folder, plain) for folder in folders]


def opened(chromium: Any, path: Path, width: int = 1280, scheme: str = "light") -> Any:
    """The page, ready, in an offline context of its own."""
    size = {"width": width, "height": 1080}
    context = chromium.new_context(offline=True, viewport=size, color_scheme=scheme)
    tab = context.new_page()
    tab.goto(path.as_uri())
    tab.wait_for_selector("html.ready", state="attached")
    return tab


def written(path: Path, *reports: Report) -> Path:
    """The page of the last report in a file."""
    path.write_text(str(render(reports[-1], "html", tuple(reports[:-1]))), encoding="utf-8")
    return path


def rows(chromium: Any, scratch: Path) -> Iterator[dict[str, Any]]:
    """Sizes in kB, and milliseconds from navigation until all is drawn and answers."""
    for clients, modules in SIZES:
        path = written(scratch / "large.html", large(clients, modules))
        taken = []
        for _ in range(LOADS):
            tab = opened(chromium, path)
            taken.append(tab.evaluate(READY))
            tab.context.close()
        size = path.stat().st_size / 1000
        spent = {"least": min(taken), "median": median(taken), "loads": LOADS}
        yield {"clients": clients, "modules": modules, "kb": size} | spent


def pictures(chromium: Any, scratch: Path, images: Path) -> None:
    """The first screen of each typical report, wide and light, of one narrow and dark, and a trend."""
    for name, reports in typical(scratch):
        shown = [replace(r, inputs={**r.inputs, "root": name}) for r in reports]
        path = written(scratch / f"{name}.html", *shown)
        tab = opened(chromium, path)
        tab.screenshot(path=images / f"page-{name}.png")
        if name == "rounds":
            tab.locator("section:has(#trend)").screenshot(path=images / "page-trend.png")
        if name == "two":
            narrow = opened(chromium, path, 360, "dark")
            narrow.screenshot(path=images / "page-narrow-dark.png")


def timed(chromium: Any, scratch: Path) -> dict[str, Any]:
    """What is kept: where it was measured, and the rows."""
    return {
        "rows": [*rows(chromium, scratch)],
        "browser": chromium.version,
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "load": round(os.getloadavg()[0], 1),
    }


def document(found: dict[str, Any]) -> str:
    """The page of figures."""
    body = "\n".join(
        f"| {r['clients']} x {r['modules']} | {r['kb']:.0f} | {r['least']:.0f} | {r['median']:.0f} |"
        for r in found["rows"]
    )
    machine, load, loads = found["machine"], found["load"], found["rows"][0]["loads"]
    return f"""# Pages in a browser

`python -m benchmarks.page --out benchmarks/results/page.md` on {machine}, load {load}.
Chromium {found["browser"]} is headless and offline, and opens a file. Ready counts from navigation until
pictures are drawn and controls answer, over {loads} loads. The aims are 500 kB and 500 ms at 200
clients of 448 modules, and 2 000 kB at 1 000 clients.

| clients x modules | kB | ready, least ms | ready, median ms |
|---|---|---|---|
{body}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description="Pages in a browser.")
    parser.add_argument("--images", type=Path, help="folder of the pictures")
    parser.add_argument("--out", type=Path, help="file of the figures")
    parser.add_argument("--keep", type=Path, help="file of what is timed")
    parser.add_argument("--browser", default=shutil.which("chromium"))
    given = parser.parse_args()
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play, tempfile.TemporaryDirectory() as folder:
        options = {"executable_path": given.browser, "args": ["--no-sandbox"]}
        chromium = play.chromium.launch(**options)
        if given.images:
            given.images.mkdir(parents=True, exist_ok=True)
            pictures(chromium, Path(folder), given.images)
        if given.out or given.keep:
            found = timed(chromium, Path(folder))
            if given.keep:
                given.keep.write_text(json.dumps(found) + "\n", encoding="utf-8")
            if given.out:
                given.out.write_text(document(found), encoding="utf-8")
        chromium.close()


if __name__ == "__main__":
    main()
