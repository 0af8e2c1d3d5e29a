"""Clients that each fit a linear regression on their own data, some of them on wrong data.

Y = X B_k + noise with B_k (predictors x responses): what all clients have in common, and what is a
client's own inside a subspace that all share. Each client sends its least-squares estimate as a .npz
file. `clair` sees these estimates alone, finds the contaminated ones and refines the others:

    python examples/linear_regression.py [--seed N] [--work FOLDER]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

CLIENTS, CONTAMINATED = 20, 6
PREDICTORS, RESPONSES, SHARED, SAMPLES = 20, 16, 2, 80
NOISE = 1.0
"""Standard deviation of the responses' noise; predictors have 1, so has each of a row of X B."""


def truth(draw):
    """B_k (clients, predictors, responses) of every client: common + subspace @ own."""
    common = draw.standard_normal((PREDICTORS, RESPONSES))
    subspace = np.linalg.qr(draw.standard_normal((PREDICTORS, SHARED)))[0]
    own = draw.standard_normal((CLIENTS, SHARED, RESPONSES)) * np.sqrt(PREDICTORS / SHARED) / 2
    return (common + subspace @ own) / np.sqrt(PREDICTORS)


def estimates(coefficients, draw):
    """Every client's least-squares estimate; the first ones learn from shuffled or negated responses."""
    found = []
    for k, b in enumerate(coefficients):
        x = draw.standard_normal((SAMPLES, PREDICTORS))
        y = x @ b + NOISE * draw.standard_normal((SAMPLES, RESPONSES))
        if k < CONTAMINATED // 2:
            y = draw.permutation(y)
        elif k < CONTAMINATED:
            y = -y
        found.append(np.linalg.lstsq(x, y, rcond=None)[0])
    return np.array(found)


def clair(*arguments):
    """Run the command line; 1 is its exit code for a finding."""
    command = [sys.executable, "-m", "clair_cli.entry", *map(str, arguments)]
    done = subprocess.run(command, check=False)
    if done.returncode not in (0, 1):
        sys.exit(f"clair {arguments[0]} failed with exit code {done.returncode}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, help="keep everything in this new folder")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run(options.work or Path(folder) / "regression", np.random.default_rng(options.seed))


def run(work, draw):
    names = [f"client-{k:02d}" for k in range(1, CLIENTS + 1)]
    coefficients = truth(draw)
    local = estimates(coefficients, draw)
    if (work / "round").exists():
        raise SystemExit(f"{work}: holds the files of another run; give a new folder")
    (work / "round").mkdir(parents=True)
    for name, b in zip(names, local, strict=True):
        np.savez(work / "round" / f"{name}.npz", coefficients=b)

    clair("detect", work / "round", "--as", "update")
    clair("refine", work / "round", "--as", "update", "--out", work / "refined", "-q")

    report = json.loads((work / "refined" / "report.json").read_text())
    verdicts = {c["id"]: c["verdict"] for c in report["clients"]}
    wrong = [n for k, n in enumerate(names) if (verdicts[n] == "benign") == (k < CONTAMINATED)]
    print(f"\nverdicts wrong: {len(wrong)} of {CLIENTS} {wrong or ''}")

    honest = [k for k in range(CONTAMINATED, CLIENTS) if verdicts[names[k]] == "benign"]
    refined = [np.load(work / "refined" / names[k] / f"{names[k]}.npz") for k in honest]
    rows = {
        "local": local[honest],
        "plain average of all": local.mean(axis=0)[None],
        "average of the benign": local[honest].mean(axis=0)[None],
        "refined": np.array([file["coefficients"] for file in refined]),
    }
    print(
        f"mean error ||B_hat - B|| of {len(honest)} benign clients (norm of B: {np.sqrt(RESPONSES):.1f})"
    )
    for name, found in rows.items():
        error = np.linalg.norm(found - coefficients[honest], axis=(1, 2)).mean()
        print(f"  {name:22} {error:.3f}")


if __name__ == "__main__":
    main()
