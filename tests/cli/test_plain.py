"""Plain matrices through the command line: verdicts, refined files in their own form, exit codes."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import ROOT
from tests.helpers.commands import ENVIRONMENT, clair, fingerprint, quick, verdicts
from tests.helpers.plain import Tensors, load, save

CLIENTS = tuple(f"c-{k}" for k in range(1, 13))
CONTAMINATED = {"c-3", "c-8"}
SHAPES = {"in.weight": (24, 30), "out.weight": (20, 24)}
EXAMPLES = ROOT / "examples"


def network(draw: np.random.Generator) -> Tensors:
    """A base model in float32, with a bias and a counter."""
    state: Tensors = {k: draw.standard_normal(s).astype("f4") for k, s in SHAPES.items()}
    return state | {"in.bias": draw.standard_normal(24).astype("f4"), "steps": np.array(3)}


def cohort(folder: Path, kind: str, suffix: str = ".npz", flat: bool = True) -> list[str]:
    """Twelve clients below `folder`/round, two of them strangers; the options that read them."""
    draw = np.random.default_rng(1)
    base = network(draw)
    save(folder / "start.npz", base)
    common = {k: draw.standard_normal(s) for k, s in SHAPES.items()}
    for client in CLIENTS:
        bias = base["in.bias"] + 0.1 * draw.standard_normal(24)
        state = base | {"in.bias": bias.astype("f4")}
        for key, shape in SHAPES.items():
            honest = common[key] + 0.5 * draw.standard_normal(shape)
            delta = draw.standard_normal(shape) if client in CONTAMINATED else honest
            state[key] = (delta + (base[key] if kind == "weights" else 0)).astype("f4")
        place = folder / "round"
        save(place / f"{client}{suffix}" if flat else place / client / f"state{suffix}", state)
    if kind == "update":
        return ["--as", "update"]
    return ["--base", str(save(folder / f"base{suffix}", base))]


def dropped(file: Path, *keys: str, **more: Any) -> None:
    """The file without some tensors, and with others."""
    save(file, {k: v for k, v in load(file).items() if k not in keys} | more)


@pytest.mark.parametrize("kind", ["update", "weights"])
@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_clients_are_judged_and_refined_in_their_own_form(
    kind: str, suffix: str, tmp_path: Path
) -> None:
    options = cohort(tmp_path, kind, suffix, flat=suffix == ".npz")
    before = fingerprint(tmp_path / "round")
    done = clair("detect", tmp_path / "round", *options, "-f", "json")
    assert done.returncode == 1, done.stderr
    report = json.loads(done.stdout)
    assert verdicts(report) == {
        c: "contaminated" if c in CONTAMINATED else "benign" for c in CLIENTS
    }
    assert report["settings"]["read_as"] == kind
    assert [m["left_out"] for m in report["population"]["modules"]] == [0, 0]
    names = {f["name"] for f in report["inputs"]["clients"][0]["files"]}
    assert (f"--base base{suffix}" in names) == (kind == "weights")

    out = tmp_path / "out"
    half = ("--out", out, "--global", "--strength", "0.5", "-q")
    done = quick(tmp_path, "refine", tmp_path / "round", *options, *half)
    assert done.returncode == 0, done.stderr
    assert fingerprint(tmp_path / "round") == before
    assert {p.name for p in out.iterdir() if p.is_dir()} == {*CLIENTS} - CONTAMINATED | {"global"}
    base = load(tmp_path / f"base{suffix}") if kind == "weights" else dict.fromkeys(SHAPES, 0)
    local, refined, errors, biases = [], [], [], []
    start = load(tmp_path / "start.npz")["in.bias"]
    for client in sorted({*CLIENTS} - CONTAMINATED):
        name = f"{client}{suffix}" if suffix == ".npz" else f"state{suffix}"
        own = load(tmp_path / "round" / (name if suffix == ".npz" else f"{client}/{name}"))
        new = load(out / client / name)
        assert {k: (v.dtype, v.shape) for k, v in new.items()} == {
            k: (v.dtype, v.shape) for k, v in own.items()
        }
        assert new["steps"].tobytes() == own["steps"].tobytes()
        biases += [np.linalg.norm(x["in.bias"] - start) for x in (own, new)]
        local.append(own["in.weight"] - base["in.weight"])
        refined.append(new["in.weight"] - base["in.weight"])
        errors.append(np.linalg.norm(refined[-1] - np.mean(local, axis=0)))
    assert np.mean(biases[1::2]) < 0.8 * np.mean(biases[::2])  # halfway to the mean
    mean = np.mean(local, axis=0)
    spread = [np.linalg.norm(x - mean, axis=(1, 2)) for x in (np.array(local), np.array(refined))]
    assert (spread[1] < 0.99 * spread[0]).all()  # nearer to each other than they were
    (file,) = (p for p in (out / "global").iterdir() if p.name != "clair.json")
    assert file.name == (f"global{suffix}" if suffix == ".npz" else f"state{suffix}")
    assert np.isfinite(load(file)["in.weight"]).all()
    again = quick(tmp_path, "detect", out, *options, "-f", "json")
    assert set(verdicts(json.loads(again.stdout)).values()) <= {"benign", "suspicious"}


@pytest.mark.parametrize("kind", ["update", "weights"])
def test_strength_zero_gives_every_client_back_bit_by_bit(kind: str, tmp_path: Path) -> None:
    options = cohort(tmp_path, kind)
    out = tmp_path / "out"
    done = quick(
        tmp_path, "refine", tmp_path / "round", *options, "--out", out, "--strength", "0", "-q"
    )
    assert done.returncode == 0, done.stderr
    for client in {*CLIENTS} - CONTAMINATED:
        own, new = (load(p / f"{client}.npz") for p in (tmp_path / "round", out / client))
        assert {k: v.tobytes() for k, v in new.items()} == {k: v.tobytes() for k, v in own.items()}
    found = json.loads((out / "report.json").read_text())["refinement"]["clients"]
    assert max(c["truncation_error"] for c in found) < 1e-6
    assert {c["rank"] for c in found} == {24}


def test_a_rank_asked_for_is_the_rank_of_the_refined_updates(tmp_path: Path) -> None:
    options = cohort(tmp_path, "update")
    out = tmp_path / "out"
    done = quick(
        tmp_path, "refine", tmp_path / "round", *options, "--out", out, "--rank", "4", "-q"
    )
    assert done.returncode == 0, done.stderr
    values = np.linalg.svd(load(out / "c-1" / "c-1.npz")["in.weight"], compute_uv=False)
    assert values[3] > 1e-3 * values[0]
    assert values[4] < 1e-5 * values[0]


def test_one_odd_client_is_broken_and_the_others_are_judged(tmp_path: Path) -> None:
    options = cohort(tmp_path, "weights")
    place = tmp_path / "round"
    base = load(tmp_path / "base.npz")
    dropped(place / "c-1.npz", "in.weight", "out.weight", **{"in.weight": base["in.weight"].T})
    dropped(place / "c-2.npz", "in.weight", "out.weight")
    (place / "c-4.npz").write_bytes((place / "c-4.npz").read_bytes()[:-7])
    spoiled = load(place / "c-5.npz")
    spoiled["out.weight"][1, 2] = np.nan
    save(place / "c-5.npz", spoiled)
    save(place / "c-6.npz", base)
    done = quick(tmp_path, "detect", place, *options, "-f", "json")
    assert done.returncode == 1, done.stderr
    clients = {c["id"]: c for c in json.loads(done.stdout)["clients"]}
    codes = {name: c["reasons"][0]["code"] for name, c in clients.items() if c["reasons"]}
    assert codes.pop("c-6") == "CLR206"
    assert {n: codes[n] for n in ("c-1", "c-2", "c-4", "c-5")} == {
        "c-1": "CLR104",
        "c-2": "CLR108",
        "c-4": "CLR102",
        "c-5": "CLR103",
    }
    assert {clients[f"c-{k}"]["verdict"] for k in (1, 2, 4, 5)} == {"broken"}
    assert {clients[f"c-{k}"]["verdict"] for k in (7, 9, 10, 11, 12)} == {"benign"}


def test_other_modules_are_a_remark_or_broken_as_for_adapters(tmp_path: Path) -> None:
    options = cohort(tmp_path, "weights")
    dropped(tmp_path / "round" / "c-2.npz", "out.weight")
    dropped(tmp_path / "round" / "c-4.npz", **{"head.weight": np.eye(20, dtype="f4")})
    done = quick(tmp_path, "detect", tmp_path / "round", *options, "-f", "json")
    report = json.loads(done.stdout)
    assert verdicts(report)["c-2"] == verdicts(report)["c-4"] == "benign"
    assert [f["code"] for f in report["population"]["findings"]][:1] == ["CLR304"]
    done = quick(
        tmp_path, "detect", tmp_path / "round", *options, "--modules", "same", "-f", "json"
    )
    clients = {c["id"]: c for c in json.loads(done.stdout)["clients"]}
    assert {clients[n]["reasons"][0]["code"] for n in ("c-2", "c-4")} == {"CLR107"}


def test_inspect_names_the_format_and_what_is_passed_through(tmp_path: Path) -> None:
    options = cohort(tmp_path, "weights")
    done = quick(tmp_path, "inspect", tmp_path / "round" / "c-1.npz", *options)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("c-1: weights, base base.npz, 2 modules")
    assert "passed through untouched: 1 tensors: steps" in done.stdout
    assert [line.split()[0] for line in done.stdout.splitlines()[-2:-1]] == ["in.bias"]
    done = quick(
        tmp_path, "inspect", tmp_path / "round" / "c-1.npz", "--as", "update", "-f", "json"
    )
    found = json.loads(done.stdout)
    assert (found["format"], found["base"]) == ("update", None)
    norms = [m["norm"] for m in found["modules"]]
    state = load(tmp_path / "round" / "c-1.npz")
    assert norms == pytest.approx([float(np.linalg.norm(state[k])) for k in SHAPES])


@pytest.mark.parametrize("command", ["detect", "refine", "inspect"])
@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--as", "weights"], "--base: whole weights are read as what they add"),
        (["--as", "lora", "--base", "base.npz"], "--base: is for reading weights, not for lora"),
        (["--base", "nowhere.npz"], "is not a file"),
        (["--base", "odd.npz"], "no zip directory"),
        (["--as", "matrix"], "'matrix' is not one of"),
    ],
)
def test_a_wrong_base_or_form_is_a_usage_error_and_nothing_is_written(
    command: str, options: list[str], words: str, tmp_path: Path
) -> None:
    cohort(tmp_path, "weights")
    (tmp_path / "odd.npz").write_bytes(b"x" * 50)
    path = "round/c-1.npz" if command == "inspect" else "round"
    out = ["--out", "out"] if command == "refine" else []
    done = clair(command, path, *options, *out, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert words in done.stderr
    assert not (tmp_path / "out").exists()


def example(name: str, *arguments: object) -> str:
    """What the script prints, run as a user would."""
    done = subprocess.run(
        [sys.executable, EXAMPLES / name, *map(str, arguments)],
        capture_output=True, text=True, check=False, env=ENVIRONMENT, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("name", ["linear_regression.py", "small_network.py"])
def test_the_example_tells_the_contaminated_and_betters_the_benign(
    name: str, tmp_path: Path
) -> None:
    said = example(name, "--work", tmp_path / "work")
    assert "verdicts wrong: 0 of 20" in said
    rows = {
        m[1].strip(): float(m[2]) for m in re.finditer(r"^  (\w[\w ]+?) +(\d\.\d+)$", said, re.M)
    }
    assert {"local", "plain average of all", "refined"} < rows.keys()
    assert rows["refined"] < min(rows["local"], rows["plain average of all"])
    assert (tmp_path / "work" / "refined" / "manifest.json").exists()


def test_whole_weights_read_as_updates_are_remarked_upon(tmp_path: Path) -> None:
    """Forgotten --base: the matrices agree because they are the model, and nobody stands out."""
    draw = np.random.default_rng(0)
    base = {k: draw.standard_normal(s) for k, s in SHAPES.items()}
    for client in CLIENTS:
        state = {k: w + 0.05 * draw.standard_normal(w.shape) for k, w in base.items()}
        save(tmp_path / "round" / f"{client}.npz", state)
    done = clair("detect", tmp_path / "round", "--as", "update")
    assert "CLR306" in done.stdout
    assert "give the base model with --base" in done.stdout
    cohort(tmp_path / "honest", "update")
    done = clair("detect", tmp_path / "honest" / "round", "--as", "update")
    assert "CLR306" not in done.stdout
