"""Numbers that do not fit the dtype of one client cost it its adapter, and nobody else."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from clair_cli import Settings, refine
from clair_cli.errors import Unstorable
from clair_cli.formats.peft.lora import PeftWriter
from clair_cli.output.manifest import verify
from clair_cli.update import LowRankUpdate
from tests.helpers.commands import SAMPLES

SETTINGS = [Settings(), Settings(path=(0.5, 1.0)), Settings(write_global=True, rank="auto")]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shutil.copytree(SAMPLES, tmp_path / "round")
    return tmp_path / "round"


def bytes_of(out: Path, client: str) -> dict[str, bytes]:
    return {
        str(p): p.read_bytes()
        for p in sorted(out.rglob("*.safetensors"))
        if p.parent.name != client
    }


@pytest.mark.parametrize("settings", SETTINGS, ids=["default", "path", "global and rank"])
@pytest.mark.parametrize("modules", [1, 9])
def test_who_cannot_be_stored_is_left_out_and_the_others_get_the_same(
    folder: Path, tmp_path: Path, settings: Settings, modules: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    refine(folder, tmp_path / "out", settings)
    wanted = bytes_of(tmp_path / "out", "client-02")
    (tmp_path / "out").rename(tmp_path / "before")
    put, seen = PeftWriter.put, []

    def fails(self: PeftWriter, module: str, update: LowRankUpdate) -> None:
        if self.adapter.client == "client-02" and self.folder.name == "client-02":
            seen.append(module)
            if len(seen) >= modules:
                raise Unstorable("not finite in the stored dtype F16")
        put(self, module, update)

    monkeypatch.setattr(PeftWriter, "put", fails)
    report = refine(folder, tmp_path / "out", settings)
    assert seen
    assert bytes_of(tmp_path / "out", "client-02") == wanted
    assert not list((tmp_path / "out").rglob("client-02"))
    assert report.refinement is not None
    assert "client-02" not in {c.client for c in report.refinement.clients}
    said = [w for w in report.refinement.warnings if w.startswith("client-02 gets no refined")]
    assert said == ["client-02 gets no refined adapter: not finite in the stored dtype F16"]
    assert verify(tmp_path / "out") == []


def test_where_nobody_can_be_stored_nothing_is_written(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(self: PeftWriter, module: str, update: LowRankUpdate) -> None:
        raise Unstorable("not finite in the stored dtype F16")

    monkeypatch.setattr(PeftWriter, "put", fails)
    with pytest.raises(Unstorable):
        refine(folder, tmp_path / "out", Settings())
    assert not (tmp_path / "out").exists()
