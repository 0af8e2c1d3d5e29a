"""The page on published adapters names each with what was read, and what is said of several."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks import wild
from tests.helpers.adapters import CONFIG, PREFIX, factors, write_folder


def test_the_page_says_what_was_read_and_what_detect_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = CONFIG | {"base_model_name_or_path": "gpt2", "task_type": "SEQ_CLS"}
    fused = {"h.0.attn.c_attn": (24, 8)}
    for seed, name in enumerate(("anna", "bert")):
        head = {f"{PREFIX}score.weight": torch.full((3, 8), 1.0 + seed)}
        write_folder(tmp_path / name, factors(fused, seed=seed) | head, config)
    (tmp_path / "README.md").write_text("| folder | repository |\n|---|---|\n| anna | lora |\n")
    monkeypatch.setattr("sys.argv", ["wild", "--data", str(tmp_path)])
    wild.main()
    lines = capsys.readouterr().out.splitlines()
    (row,) = (line for line in lines if line.startswith("| anna/lora |"))
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[1:5] == ["gpt2", "SEQ_CLS", "1 `attn.c_attn` 24x8 (q, k, v in one)", "2, 2"]
    assert cells[6:] == ["`score.weight` 3x8", "0"]
    (together,) = (line for line in lines if line.startswith("| gpt2 | 2 |"))
    assert "2 no verdict" in together
    crowds = [line for line in lines if line.startswith(("| anna | ", "| bert | "))][-2:]
    assert [("bert: " in line, "anna: " in line) for line in crowds] == [
        (True, False),
        (False, True),
    ]
