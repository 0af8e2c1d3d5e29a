"""Integrity before statistics: every code CLR101-113 on a real folder, by the command a user runs.

A cohort is the sample adapters with one of them spoiled. The client is `broken` with the code of
the fault, or the note is there, whatever its numbers say; the message names the file and the
remedy; the others are judged as they are without it.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.helpers.commands import (
    CONFIG,
    CONTAMINATED,
    WEIGHTS,
    change_config,
    clair,
    samples,
    verdicts,
)

Spoil = Callable[[Path], None]
ODD = "client-02"


def tensors(client: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    """The client's file with other tensors."""
    found = load_file(client / WEIGHTS)
    change(found)
    save_file(found, client / WEIGHTS, {"format": "pt"})


def cut(client: Path) -> None:
    data = (client / WEIGHTS).read_bytes()
    (client / WEIGHTS).write_bytes(data[:-100])


def infinite(client: Path) -> None:
    tensors(client, lambda t: t[min(t)].view(-1)[:1].fill_(float("inf")))


def pickled(client: Path) -> None:
    torch.save(load_file(client / WEIGHTS), client / "adapter_model.bin")
    (client / WEIGHTS).unlink()


def other_width(client: Path) -> None:
    def wider(found: dict[str, torch.Tensor]) -> None:
        for name, t in found.items():
            if "lora_A" in name:
                found[name] = torch.cat([t, t], dim=1)

    tensors(client, wider)


def few_modules(client: Path) -> None:
    def fewer(found: dict[str, torch.Tensor]) -> None:
        for name in sorted(found)[4:]:
            del found[name]

    tensors(client, fewer)


def linked_out(client: Path) -> None:
    outside = client.parent.parent / "outside.safetensors"
    shutil.move(client / WEIGHTS, outside)
    (client / WEIGHTS).symlink_to(outside)


def huge_header(client: Path) -> None:
    text = b'{"__metadata__": {"format": "' + b"x" * (9 * 2**20) + b'"}}'
    (client / WEIGHTS).write_bytes(len(text).to_bytes(8, "little") + text)


BROKEN: dict[str, tuple[str, Spoil, str, str]] = {
    # what -> code, how, what the message names, its remedy
    "no weights": ("CLR101", lambda c: (c / WEIGHTS).unlink(), WEIGHTS, "upload it again"),
    "empty file": ("CLR102", lambda c: (c / WEIGHTS).write_bytes(b""), WEIGHTS, "upload it again"),
    "cut off": ("CLR102", cut, "past the end", "upload it again"),
    "infinite": ("CLR103", infinite, "1 Inf", "retrain it"),
    "another rank": (
        "CLR104",
        lambda c: change_config(c, r=5),
        "rank",
        "config of this very adapter",
    ),
    "another width": ("CLR104", other_width, "in the other clients", "another base model"),
    "no alpha": ("CLR105", lambda c: change_config(c, lora_alpha=...), "lora_alpha", "--alpha"),
    "bad json": ("CLR105", lambda c: (c / CONFIG).write_text("{"), CONFIG, ";"),
    "another base": (
        *("CLR106", lambda c: change_config(c, base_model_name_or_path="other/model")),
        *("other/model", "retrain on that base"),
    ),
    "few modules": ("CLR107", few_modules, "modules", "too little to compare"),
    "prompt tuning": (
        *("CLR108", lambda c: change_config(c, peft_type="PROMPT_TUNING")),
        *("PROMPT_TUNING", ";"),
    ),
    "pickle": ("CLR109", pickled, "adapter_model.bin", "re-save it as safetensors"),
    "link out": ("CLR110", linked_out, "leaves the scanned folder", "--follow-symlinks"),
    "huge header": ("CLR111", huge_header, "the limit is", "limit"),
}
NOTES: dict[str, tuple[str, Spoil]] = {
    "pickle beside": ("CLR109", lambda c: torch.save({}, c / "adapter_model.bin")),
    "asks for code": (
        "CLR113",
        lambda c: change_config(c, auto_mapping={"parent_library": "evil.module"}),
    ),
}


def scanned(folder: Path) -> dict[str, Any]:
    done = clair("detect", folder, "-f", "json")
    assert done.returncode == 1, done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def of(report: dict[str, Any], client: str) -> dict[str, Any]:
    (found,) = (c for c in report["clients"] if c["id"] == client)
    return dict(found)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return scanned(samples(tmp_path_factory.mktemp("whole") / "in"))


@pytest.mark.parametrize("what", BROKEN)
def test_a_fault_is_named_with_its_place_and_its_remedy(
    what: str, whole: dict[str, Any], tmp_path: Path
) -> None:
    code, spoil, names, remedy = BROKEN[what]
    folder = samples(tmp_path / "in")
    spoil(folder / ODD)
    report = scanned(folder)
    found = of(report, ODD)
    assert found["verdict"] == "broken"
    assert found["score"] is None
    (reason,) = (r for r in found["reasons"] if r["code"] == code)
    assert names in reason["message"]
    assert remedy in reason["message"]
    others = {c: v for c, v in verdicts(report).items() if c != ODD}
    assert others == {c: v for c, v in verdicts(whole).items() if c != ODD}


@pytest.mark.parametrize("what", NOTES)
def test_a_note_is_no_verdict(what: str, whole: dict[str, Any], tmp_path: Path) -> None:
    code, spoil = NOTES[what]
    folder = samples(tmp_path / "in")
    spoil(folder / ODD)
    report = scanned(folder)
    assert code in {r["code"] for r in of(report, ODD)["reasons"]}
    assert verdicts(report) == verdicts(whole)


def test_a_file_that_changes_meanwhile_is_112(tmp_path: Path) -> None:
    from clair_cli.errors import ChangedWhileRead
    from clair_cli.formats import open_adapter, read_update

    folder = samples(tmp_path / "in") / ODD
    adapter = open_adapter(folder)
    os.utime(folder / WEIGHTS, (1, 1))
    with pytest.raises(ChangedWhileRead, match="run again when nothing writes to it"):
        read_update(adapter, next(iter(adapter.updates)))
    assert ChangedWhileRead.code == "CLR112"


def test_every_integrity_code_has_its_fixture() -> None:
    covered = {code for code, *_ in (*BROKEN.values(), *NOTES.values())} | {"CLR112"}
    assert covered == {f"CLR{n}" for n in range(101, 114)}


def test_identical_files_are_one_finding_and_one_vote(tmp_path: Path) -> None:
    folder = samples(tmp_path / "in")
    for k in range(4):  # of a contaminated one: five of twelve, and still one voice
        shutil.copytree(folder / "client-03", folder / f"copy-{k}")
    report = scanned(folder)
    found = verdicts(report)
    copies = {"client-03", *(f"copy-{k}" for k in range(4))}
    assert {c for c in found if found[c] == "benign"} == {
        c for c in found if c not in copies | CONTAMINATED
    }
    for client in copies:
        assert "CLR205" in {r["code"] for r in of(report, client)["reasons"]}


def test_who_differs_in_scaling_is_named_and_judged_as_a_product(tmp_path: Path) -> None:
    """rsLoRA with alpha * r / sqrt(r) is the same update: another rule, the same verdict and score."""
    folder = samples(tmp_path / "in")
    before = scanned(folder)
    config = json.loads((folder / ODD / CONFIG).read_text())
    alpha = config["lora_alpha"] / config["r"] ** 0.5
    change_config(folder / ODD, use_rslora=True, lora_alpha=alpha)
    report = scanned(folder)
    said = [f["message"] for f in report["population"]["findings"] if f["code"] == "CLR304"]
    assert any("scaling" in text and ODD in text for text in said)
    assert of(report, ODD)["score"] == pytest.approx(of(before, ODD)["score"], abs=1e-4)
