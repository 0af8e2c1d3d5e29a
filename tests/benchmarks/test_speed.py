"""Speed is measured whole, against floors, and what is measured is kept."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pytest

from benchmarks import speed_curves
from benchmarks.speed import modules
from benchmarks.speed_curves import CURVES, Point


def row(point: Point, growth: float) -> dict[str, object]:
    """What a run of `point` would be kept as, if all seconds grew with the clients to this power."""
    spent = 0.01 * point.clients**growth
    found: dict[str, object] = asdict(point) | {"machine": "x86_64"}
    for kind in ("cpu", "wall"):
        found |= {f"start_{kind}_s": 2.0, f"read_{kind}_s": spent, f"write_{kind}_s": 2 * spent}
        found |= {f"detect_{kind}_s": 2 + 3 * spent, f"refine_{kind}_s": 2 + 12 * spent}
        found |= {f"detect_{kind}_ratio": 3.0, f"refine_{kind}_ratio": 6.0}
    return found | {"detect_gb": 0.5, "refine_gb": 0.75}


def test_exponents_are_those_of_seconds_without_start_up() -> None:
    rows = [row(point, 1.5) for point in CURVES["clients"]]
    lines = speed_curves.table("clients", rows)
    assert lines[-1] == "| exponent | 1.50 | 1.50 | 1.50 | 1.50 | | | | |"
    assert lines[2] == "| 20 | 0.89 | 1.79 | 2.68 | 10.73 | 3.0 | 6.0 | 0.50 | 0.75 |"


def test_shapes_scale_with_the_width() -> None:
    assert dict(modules(7, 1024))["0.mlp.up_proj"] == (3584, 1024)
    assert dict(modules(7))["0.self_attn.k_proj"] == (1024, 4096)


def test_a_point_is_measured_once_and_drawn_with_what_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    asked: list[Point] = []

    def measured(point: Point, *_: object) -> dict[str, object]:
        asked.append(point)
        return row(point, 1.0)

    monkeypatch.setattr(speed_curves, "measured", measured)
    words = ["--work", str(tmp_path / "runs"), "--out", str(tmp_path)]
    speed_curves.main(words)
    first = capsys.readouterr().out
    speed_curves.main([*words, "--ready"])
    again = capsys.readouterr().out
    assert len(asked) == len({p for points in CURVES.values() for p in points})
    assert again in first
    assert again.count("| exponent |") == 4
    assert (tmp_path / "speed-curves.png").stat().st_size > 1000
