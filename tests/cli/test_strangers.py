"""A folder of strangers: one judgement per group, and nobody is called broken who can be read."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from clair_cli.report import from_dict
from tests.helpers.adapters import PREFIX, write_folder
from tests.helpers.builders import factor
from tests.helpers.cohorts import drawn
from tests.helpers.commands import clair, samples

BASES = {"gpt2": (24, 20), "bert-base": (30, 16), "llama": (20, 28)}
EACH = 121


def save(folder: Path, updates: np.ndarray, base: str) -> None:
    """An adapter of rank 4 of each matrix, for `base`."""
    tensors = {}
    for m, update in enumerate(updates):
        low = factor(torch.from_numpy(update), 4)
        for name, side in (("lora_A", low.down), ("lora_B", low.up)):
            tensors[f"{PREFIX}layers.{m}.q_proj.{name}.weight"] = side.float().contiguous()
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 4, "target_modules": ["q_proj"]}
    write_folder(folder, tensors, config | {"base_model_name_or_path": base})


def cohort(folder: Path, base: str, clients: int, bad: int, seed: int) -> set[str]:
    """Clients of one base with much in common, and the names of `bad` that have nothing of it."""
    shape = BASES[base]
    common = drawn(seed, 1, 4, shape[0], 3) @ drawn(seed + 1, 1, 4, 3, shape[1])
    updates = common / np.linalg.norm(common) * 2 + 0.3 * drawn(seed + 2, clients, 4, *shape)
    updates[:bad] = drawn(seed + 3, bad, 4, *shape)
    for k, update in enumerate(updates):
        save(folder / f"{base}-{k:03}", update, base)
    return {f"{base}-{k:03}" for k in range(bad)}


@pytest.fixture(scope="module")
def strangers(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, set[str]]:
    """363 adapters of three bases."""
    folder = tmp_path_factory.mktemp("strangers") / "hub"
    bad = [cohort(folder, base, EACH, 2, 10 * i) for i, base in enumerate(BASES)]
    return folder, set.union(*bad)


@pytest.fixture(scope="module")
def judged(strangers: tuple[Path, set[str]], tmp_path_factory: pytest.TempPathFactory) -> dict:
    out = tmp_path_factory.mktemp("out")
    done = clair(
        *("detect", strangers[0], "--group-by", "base", "-f", "json", "--no-progress"),
        *("-o", f"json={out}/report-{{group}}.json", "-o", f"csv={out}/{{group}}.csv"),
        timeout=300,
    )
    assert done.returncode == 1, done.stderr
    return json.loads(done.stdout) | {"out": out}


def test_three_bases_give_three_reports_and_nobody_is_broken(
    strangers: tuple[Path, set[str]], judged: dict
) -> None:
    assert {g["name"] for g in judged["groups"]} == set(BASES)
    assert judged["counts"]["clients"] == 3 * EACH
    assert judged["counts"]["broken"] == 0 == judged["counts"]["not comparable"]
    reports = [from_dict(g["report"]) for g in judged["groups"]]
    said = {c.client for r in reports for c in r.clients if c.verdict == "contaminated"}
    assert said == strangers[1]
    assert all(c.verdict in ("benign", "contaminated") for r in reports for c in r.clients)


def test_every_group_has_its_own_files(judged: dict) -> None:
    for group in judged["groups"]:
        saved = json.loads((judged["out"] / f"report-{group['name']}.json").read_text())
        assert saved == group["report"]
        assert saved["inputs"]["group"] == group["name"]
        rows = (judged["out"] / f"{group['name']}.csv").read_text().splitlines()
        assert len(rows) == 1 + EACH


def test_a_saved_group_is_shown_by_its_name(judged: dict) -> None:
    done = clair("report", judged["out"] / "report-llama.json")
    assert done.stdout.startswith(f"llama: {EACH} clients")


def test_without_groups_two_thirds_of_the_folder_would_be_broken(
    strangers: tuple[Path, set[str]],
) -> None:
    done = clair("detect", strangers[0], "--no-progress", timeout=300)
    assert f"{2 * EACH} broken" in done.stdout
    assert "--group-by" in done.stdout


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """Six of one base, one of another, one that cannot be read, one with an odd name for a base."""
    folder = samples(tmp_path / "hub", ("client-01", "client-02", "client-04", "client-05"))
    save(folder / "stranger", drawn(5, 2, 24, 20), "gpt2")
    save(folder / "hostile", drawn(6, 2, 24, 20), "../../\x1b[31mevil{group}")
    (folder / "torn").mkdir()
    (folder / "torn" / "adapter_model.safetensors").write_bytes(b"torn")
    return folder


def test_who_is_not_comparable_is_said_apart_from_who_is_broken(mixed: Path) -> None:
    done = clair("detect", mixed, "--group-by", "base", "--fail-on", "contaminated,")
    assert done.returncode == 0
    text = done.stdout
    assert "stranger" in text.split("not comparable")[1].split("broken  ")[0]
    assert "torn" in text.split("broken  ")[1]
    assert "\x1b" not in text
    assert "7 clients in 1 group by base: 4 benign, 0 suspicious, 0 contaminated, 1 broken" in text
    failing = clair("detect", mixed, "--group-by", "base")
    assert failing.returncode == 1
    assert failing.stdout.rstrip().endswith("FAIL: 1 broken")


def test_a_hostile_base_names_no_file_elsewhere(mixed: Path, tmp_path: Path) -> None:
    for k in range(2):
        shutil.copytree(mixed / "hostile", mixed / f"hostile-{k}")
    before = {p for p in tmp_path.rglob("*") if p.is_file()}
    done = clair(
        "detect", mixed, "--group-by", "base", "-q", "-o", f"json={tmp_path}/r-{{group}}.json"
    )
    written = {p for p in tmp_path.rglob("*") if p.is_file()} - before
    assert done.returncode in (0, 1)
    assert len(written) == 2
    assert {p.parent for p in written} == {tmp_path}
    assert all(p.name.isascii() and p.name.isprintable() for p in written)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("-f", "csv"), "--format: csv of several groups goes to files"),
        (("-o", "json=report.json"), "put {group} into the name"),
        (("--baseline", "report.json"), "--baseline: is about one cohort"),
        (("--explain", "client-01"), "--explain: is about one cohort"),
    ],
)
def test_what_groups_cannot_have_is_refused_before_anything_is_read(
    mixed: Path, options: tuple[str, ...], said: str
) -> None:
    done = clair("detect", mixed, "--group-by", "base", *options, cwd=mixed.parent)
    assert done.returncode == 2
    assert said in done.stderr


def test_copies_of_one_adapter_are_one_line(tmp_path: Path) -> None:
    folder = samples(tmp_path / "round", [f"client-0{i}" for i in (1, 2, 4, 5, 7, 8)])
    for k in range(5):
        shutil.copytree(folder / "client-01", folder / f"copy-{k}")
    done = clair("detect", folder)
    lines = [line for line in done.stdout.splitlines() if "set of 6: " in line]
    assert len(lines) == 1
    assert all(f"copy-{k}" in lines[0] for k in range(5))
    assert "client-01" in lines[0]
    every = clair("detect", folder, "-v").stdout
    assert "set of" not in every
    assert sum("copy-" in line.split("   ")[1] for line in every.splitlines() if "   " in line) == 5


@pytest.mark.parametrize(
    ("by", "why"), [("base", "its base and its shapes"), ("shapes", "its shapes")]
)
def test_why_a_client_is_in_no_group_names_what_groups_are_made_by(
    by: str, why: str, mixed: Path
) -> None:
    done = clair("detect", mixed, "--group-by", by, "-f", "json")
    apart = {a["id"]: a["why"] for a in json.loads(done.stdout)["not_comparable"]}
    assert apart["stranger"] == f"no two others have {why}"
