"""What clair reads in adapters that strangers published, and what it says of them together.

python -m benchmarks.wild --data ../shared/wild > benchmarks/results/wild.md

`--data` holds one PEFT folder per adapter, and a README.md whose table names the repositories. The
adapters are strangers to each other: no two were trained on the same task. So they are also put into
crowds: nine copies of one adapter, each with noise of its own, and the strangers of its base beside.
"""

from __future__ import annotations

import argparse
import math
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from clair_cli.formats import open_adapter
from clair_cli.inspection import inspect
from clair_cli.pipeline import detect
from clair_cli.report import Report, Verdict
from clair_cli.results import Inspection
from clair_cli.settings import Settings

COPIES, NOISE = 9, 0.3
"""Clients of a crowd, and the size of their noise over that of each tensor."""
WEIGHTS = "adapter_model.safetensors"
HEAD = """# Adapters that strangers published

Made by `python -m benchmarks.wild --data DIR`. DIR holds the adapters named here as their authors saved
them; they are not part of this repository. No two were trained on one task, so a folder of them has no
majority, and `clair detect` has to say so.
"""


def main() -> None:
    """Write the page to stdout."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    print(document(parser.parse_args().data), end="")


def document(data: Path) -> str:
    """The page on the adapters that lie in `data`."""
    found = {p.name: inspect(p, Settings()) for p in sorted(data.iterdir()) if p.is_dir()}
    parts = [HEAD, "\n".join(read_table(found, data))]
    with tempfile.TemporaryDirectory() as folder:
        parts.append("\n".join(together_table(found, data, Path(folder))))
        parts.append("\n".join(crowd_table(found, data, Path(folder))))
    return "".join(f"{part}\n" for part in parts)


# --- what was read


def read_table(found: Mapping[str, Inspection], data: Path) -> Iterator[str]:
    """One line an adapter: modules, ranks, norm, and what was trained whole."""
    names = repositories(data)
    yield "## What was read\n"
    yield "| adapter | base | task | modules | rank, scale | norm | trained whole | passed through |"
    yield "|---|---|---|---|---|---|---|---|"
    for name, one in found.items():
        whole = [f"`{f.name}` {'x'.join(map(str, f.shape))}" for f in one.full]
        cells = (
            names.get(name, name),
            one.base or "unknown",
            open_adapter(data / name).traits.get("task_type", "-"),
            kinds(one),
            "; ".join(sorted({f"{m.rank}, {m.scale:g}" for m in one.modules})),
            f"{math.hypot(*(m.norm for m in one.modules)):.3g}",
            ", ".join(whole) or "-",
            str(len(one.passed_through)),
        )
        yield f"| {' | '.join(cells)} |"
    yield ""


def repositories(data: Path) -> dict[str, str]:
    """Folder -> owner/repository, by the table in the README of `data`."""
    readme = data / "README.md"
    text = readme.read_text() if readme.exists() else ""
    rows = re.findall(r"^\| ([\w.-]+) \| ([\w.-]+) \|", text, re.MULTILINE)
    return {folder: f"{folder}/{name}" for folder, name in rows}


def kinds(one: Inspection) -> str:
    """The kinds of modules, each with its number and shape."""
    count: dict[str, int] = {}
    for m in one.modules:
        fused = " (q, k, v in one)" if m.name.endswith("c_attn") else ""
        short = ".".join(m.name.split(".")[-2:])
        kind = f"`{short}` {m.d_out}x{m.d_in}{fused}"
        count[kind] = count.get(kind, 0) + 1
    return ", ".join(f"{n} {kind}" for kind, n in count.items())


# --- what is said of several


def by_base(found: Mapping[str, Inspection]) -> dict[str, list[str]]:
    """Base model -> its adapters, of bases that several have."""
    groups: dict[str, list[str]] = {}
    for name, one in found.items():
        groups.setdefault(one.base or "unknown", []).append(name)
    return {base: names for base, names in groups.items() if len(names) > 1}


def together_table(found: Mapping[str, Inspection], data: Path, root: Path) -> Iterator[str]:
    """What `detect` says of the adapters of one base, and of all."""
    yield "## What `clair detect` says of them\n"
    yield "| folder | clients | verdicts | said of all |"
    yield "|---|---|---|---|"
    for title, names in {**by_base(found), "all": list(found)}.items():
        folder = root / f"together-{title}"
        for name in names:
            shutil.copytree(data / name, folder / name)
        report = detect(folder)
        said = "<br>".join(f"{r.code}: {r.message}" for r in report.population.findings)
        yield f"| {title} | {len(names)} | {counted(report.clients)} | {said} |"
    yield ""


def counted(clients: Sequence[Verdict]) -> str:
    """How many clients got which verdict."""
    found = [c.verdict or "no verdict" for c in clients]
    return ", ".join(f"{found.count(v)} {v}" for v in dict.fromkeys(found))


def crowd_table(found: Mapping[str, Inspection], data: Path, root: Path) -> Iterator[str]:
    """Copies of one adapter with noise of their own, and the strangers of its base among them."""
    yield f"## Among {COPIES} noisy copies of one adapter\n"
    yield f"Every tensor of a copy has Gaussian noise added, of {NOISE:g} of its root mean square."
    yield "Adapters of the same base lie beside them, each with its verdict and first reason.\n"
    yield "| copies of | copies | strangers |"
    yield "|---|---|---|"
    for base, names in by_base(found).items():
        for first in names:
            folder = root / f"crowd-{base}-{first}"
            for k in range(COPIES):
                noisy(data / first, folder / f"copy-{k}", k)
            strangers = [name for name in names if name != first]
            for name in strangers:
                shutil.copytree(data / name, folder / name)
            yield f"| {first} | {' | '.join(said(detect(folder), strangers))} |"
    yield ""


def noisy(source: Path, target: Path, seed: int) -> None:
    """A copy of an adapter's folder with noise on every tensor."""
    shutil.copytree(source, target)
    draw = torch.Generator().manual_seed(seed)
    tensors = load_file(target / WEIGHTS)
    for name, t in tensors.items():
        size = NOISE * float(t.float().square().mean().sqrt())
        tensors[name] = t + size * torch.randn(t.shape, generator=draw)
    save_file(tensors, target / WEIGHTS, {"format": "pt"})


def said(report: Report, strangers: Sequence[str]) -> tuple[str, str]:
    """The verdicts of the copies, and of each stranger with its first reason."""
    copies = [c for c in report.clients if c.client not in strangers]
    lines = [
        f"{c.client}: {c.verdict or 'no verdict'}: {c.reasons[0].message if c.reasons else '-'}"
        for c in report.clients
        if c.client in strangers
    ]
    return counted(copies), "<br>".join(lines)


if __name__ == "__main__":
    main()
