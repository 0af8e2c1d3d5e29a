"""How long the verdicts of K clients take and how much memory, from tables on: nothing is read.

python -m benchmarks.judging [--clients 100 300 1000 3000 10000] [--threads 1] [--keep FILE]

Each K is judged in a process of its own. The tables are those of synthetic clients in
4 modules: an update is B A with common rows A, and B is one task with an error of its own, whose size
differs from client to client. A tenth are contaminated in six ways, one in fifty copies another, and
three in a hundred share an addition. From 3 000 clients on the tables are float32. `--keep` writes what
was measured, as lines of JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.measures import table
from clair_cli.detection.tables import Tables
from clair_cli.detection.verdicts import Judgement, judge
from clair_cli.settings import Settings

Array = NDArray[np.float64]
MODULES, D_OUT, D_IN, RANK = 4, 32, 64, 4
SINGLE = 3000
"""Clients from which on the tables are float32."""
KINDS = ("flipped", "stranger", "noise", "large", "one module", "half")


def factors(clients: int, seed: int) -> tuple[Array, list[str]]:
    """B of every client (MODULES, K, D_OUT, RANK), and what each client is."""
    draw = np.random.default_rng(seed)
    shape = (MODULES, clients, D_OUT, RANK)
    task = draw.standard_normal((MODULES, 1, D_OUT, RANK))
    error = np.exp(draw.normal(-0.4, 0.35, clients))[:, None, None]
    own = draw.standard_normal(shape)
    made = task + error * own
    kinds = ["honest"] * clients
    places = draw.permutation(clients)
    bad = max(clients // 10, 1)
    for i, k in enumerate(places[:bad]):
        kinds[k] = kind = KINDS[i % len(KINDS)]
        stranger = draw.standard_normal((MODULES, D_OUT, RANK))
        if kind == "flipped":
            made[:, k] = -made[:, k]
        elif kind == "stranger":
            made[:, k] = stranger + 0.7 * own[:, k]
        elif kind == "noise":
            made[:, k] = 1.3 * own[:, k]
        elif kind == "large":
            made[:, k] *= draw.uniform(2, 10)
        elif kind == "one module":
            made[i % MODULES, k] = 1.5 * stranger[i % MODULES]
        else:
            made[:, k] -= draw.uniform(0.3, 0.8) * task[:, 0]
    copies = clients // 50
    for k, other in zip(places[bad : bad + copies], places[-copies - 1 :], strict=False):
        kinds[k], made[:, k] = "copy", made[:, other]
    adding = clients // 33
    extra = draw.standard_normal((MODULES, 1, D_OUT, RANK))
    for k in places[bad + copies : bad + copies + adding]:
        kinds[k] = "adding"
        made[:, k] += 0.9 * extra[:, 0]
    return made, kinds


def tables(clients: int, seed: int = 0) -> tuple[Tables, list[str]]:
    """The tables of a cohort, and what each of its clients is."""
    made, kinds = factors(clients, seed)
    kept = np.float32 if clients >= SINGLE else np.float64
    inner = np.empty((MODULES, clients, clients), kept)
    overlap = np.empty_like(inner)
    upper = np.triu_indices(D_OUT)
    weight = np.where(upper[0] == upper[1], 1.0, np.sqrt(2))
    for m, b in enumerate(made.astype(kept)):
        flat = b.reshape(clients, -1)
        inner[m] = flat @ flat.T
        outer = (b @ b.transpose(0, 2, 1))[:, upper[0], upper[1]] * weight.astype(kept)
        overlap[m] = outer @ outer.T
    rows = np.full((clients, clients), 0.9, kept)
    np.fill_diagonal(rows, 1.0)
    found = Tables(
        clients=tuple(f"client-{k:05d}" for k in range(clients)),
        modules=tuple(f"layers.{m}.q_proj" for m in range(MODULES)),
        inner=inner,
        overlap=overlap,
        d_out=np.full(MODULES, float(D_OUT)),
        d_in=np.full(MODULES, float(D_IN)),
        members=np.ones(clients, bool),
        digests=tuple(str(k) for k in range(clients)),
        rows=rows,
        ranks=np.full(clients, float(RANK)),
    )
    return found, kinds


def said(found: Judgement, kinds: list[str]) -> dict[str, dict[str, int]]:
    """How many of each kind have which verdict."""
    pairs = Counter((kind, str(v.verdict)) for kind, v in zip(kinds, found.verdicts, strict=True))
    return {
        kind: {v: n for (of, v), n in sorted(pairs.items()) if of == kind} for kind in set(kinds)
    }


def measure(clients: int, seed: int, repeat: int, threads: int) -> dict[str, object]:
    """Seconds of `judge`, by the clock and of the processor, least of `repeat`, and peak memory."""
    made, kinds = tables(clients, seed)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    seconds, busy = [], []
    for _ in range(repeat):
        began, spent = time.perf_counter(), time.process_time()
        found = judge(made, Settings(threads=threads))
        seconds.append(time.perf_counter() - began)
        busy.append(time.process_time() - spent)
    return {
        "clients": clients,
        "seconds": round(min(seconds), 3),
        "cpu_seconds": round(min(busy), 3),
        "tables_gb": round((made.inner.nbytes + made.overlap.nbytes) / 2**30, 2),
        "made_gb": round(before, 2),
        "peak_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
        "identified": found.identified,
        "unstable": sum((v.stability or 0) < 1 for v in found.verdicts),
        "said": said(found, kinds),
    }


def exponent(rows: list[dict[str, Any]]) -> float:
    """Slope of the log of processor seconds over that of clients."""
    points = np.log([[r["clients"], r["cpu_seconds"]] for r in rows])
    return float(np.polyfit(points[:, 0], points[:, 1], 1)[0])


def page(rows: list[dict[str, Any]]) -> str:
    """The table, and what the seconds grow with."""
    body = [
        [
            f"{r['clients']:,}".replace(",", " "),
            f"{r['cpu_seconds']:.2f} s",
            f"{r['peak_gb']:.2f} GB",
            f"{r['tables_gb']:.2f} GB",
        ]
        for r in rows
    ]
    text = table(["clients", "now", "peak memory now", "tables"], body)
    if len(rows) < 2:
        return text
    last, all_of = exponent(rows[-2:]), exponent(rows)
    return f"{text}\n\nThe exponent is {last:.2f} between the last two, and {all_of:.2f} over all."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clients", type=int, nargs="+", default=[100, 300, 1000, 3000, 10000])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--here", action="store_true", help="one K, in this process")
    parser.add_argument("--keep", type=Path, help="file of what is measured")
    given = parser.parse_args()
    if given.here:
        print(json.dumps(measure(given.clients[0], given.seed, given.repeat, given.threads)))
        return
    rows = []
    for clients in given.clients:
        command = [sys.executable, "-m", "benchmarks.judging", "--here", "--clients", str(clients)]
        command += ["--seed", str(given.seed), "--repeat", str(given.repeat)]
        command += ["--threads", str(given.threads)]
        alone = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}  # as the command line has it
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=alone)
        rows.append(json.loads(done.stdout))
        print(done.stdout, end="", flush=True)
    if given.keep:
        given.keep.write_text("".join(json.dumps(row) + "\n" for row in rows))
    print(page(rows))


if __name__ == "__main__":
    main()
