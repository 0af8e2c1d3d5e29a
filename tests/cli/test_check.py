"""clair sketch, fit and check, as the real commands."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.helpers.cohorts import save_cohort
from tests.helpers.commands import clair, fingerprint, hooked


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """round/ with five clients, and the stranger client-6 beside it."""
    folder = tmp_path_factory.mktemp("check")
    save_cohort(folder / "round", 6, strangers=1)
    shutil.move(folder / "round" / "client-6", folder / "client-6")
    return folder


def test_fit_and_check_say_who_the_upload_is_and_why(work: Path) -> None:
    before = fingerprint(work / "round")
    done = clair("fit", work / "round", "-o", work / "r.clair", "--size", 16)
    assert (done.returncode, done.stderr) == (0, "")
    first, counts, limit, error, *notes = done.stdout.splitlines()
    assert first.startswith("reference of 5 clients: 2 modules, size 16, seed 0, ")
    assert counts == "  5 benign, 0 suspicious, 0 minority, 0 contaminated, 0 broken"
    assert limit == "  limit 3.0"
    assert error.startswith("  error of the sketches: ")
    assert any("nobody is contaminated: how far" in note for note in notes)
    done = clair("check", work / "client-6", "--against", work / "r.clair")
    assert done.returncode == 1
    line, why = done.stdout.splitlines()
    assert line.startswith("client-6: contaminated ")
    assert line.endswith(" (limit 3.0)")
    assert why.endswith(" with -v")
    silent = clair("check", work / "client-6", "--against", work / "r.clair", "-q")
    assert (silent.returncode, silent.stdout, silent.stderr) == (1, "", f"{line}\n")
    done = clair("check", work / "client-6", "--against", work / "r.clair", "-f", "json")
    found = json.loads(done.stdout)
    assert (found["verdict"]["id"], found["verdict"]["verdict"]) == ("client-6", "contaminated")
    assert (found["members"], found["updated"], found["exit_code"]) == (5, False, 1)
    done = clair(
        *("check", work / "client-6", "--against", work / "round", "-v", "--explain"),
        *("--fail-on", "never"),
    )
    assert done.returncode == 0
    assert "  CLR203 points elsewhere" in done.stdout
    assert "to do: " in done.stdout
    assert fingerprint(work / "round") == before


def test_sketches_are_written_and_judged_beside_adapters(work: Path, tmp_path: Path) -> None:
    mixed = tmp_path / "mixed"
    shutil.copytree(work / "round", mixed)
    shutil.rmtree(mixed / "client-1")
    target = mixed / "client-1.safetensors"
    done = clair("sketch", work / "round" / "client-1", "-o", target, "--size", 64)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("sketch of client-1: 2 modules, size 64, seed 0, ")
    again = tmp_path / "again.safetensors"
    clair("sketch", work / "round" / "client-1", "-o", again, "--size", 64)
    assert again.read_bytes() == target.read_bytes()
    done = clair("detect", mixed, "-f", "json")
    assert done.returncode == 0
    assert json.loads(done.stdout)["counts"]["benign"] == 5
    done = clair("refine", mixed, "--out", tmp_path / "out")
    assert done.returncode == 0
    assert "client-1: a sketch can be judged, and not refined" in done.stdout
    assert not (tmp_path / "out" / "client-1").exists()
    assert (tmp_path / "out" / "client-2").exists()


def test_what_cannot_be_asked_is_refused_before_anything_is_written(
    work: Path, tmp_path: Path
) -> None:
    one, folder = work / "round" / "client-1", work / "round"
    for command in (
        ("sketch", one, "-o", one / "s.safetensors"),
        ("sketch", one, "-o", tmp_path / "s.bin"),
        ("sketch", tmp_path / "none", "-o", tmp_path / "s.safetensors"),
        ("fit", folder, "-o", folder / "r.clair"),
        ("fit", folder, "-o", tmp_path / "r.safetensors"),
        ("check", one, "--against", tmp_path / "none.clair"),
        ("check", one, "--against", one / "adapter_model.safetensors"),
        ("check", one, "--against", folder, "--update"),
    ):
        done = clair(*command)
        assert (done.returncode, done.stdout) == (2, ""), command
        assert len(done.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []
    assert not (folder / "r.clair").exists()


def test_a_fit_that_is_killed_leaves_nothing_behind(work: Path, tmp_path: Path) -> None:
    shutil.copytree(work / "round", tmp_path / "round")
    hook = """
        import os, signal
        from clair_cli.formats import reference
        real = reference.SafetensorsWriter.close
        def close(self):
            os.kill(os.getpid(), signal.SIGTERM)
            real(self)
        reference.SafetensorsWriter.close = close
    """
    done = clair("fit", tmp_path / "round", "-o", tmp_path / "r.clair", env=hooked(tmp_path, hook))
    assert done.returncode == 143
    assert not (tmp_path / "r.clair").exists()
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_an_upload_that_is_not_taken_in_is_said_to_be_left_out(work: Path, tmp_path: Path) -> None:
    file = tmp_path / "r.clair"
    clair("fit", work / "round", "-o", file, "--size", 16)
    before = file.read_bytes()
    done = clair("check", work / "client-6", "--against", file, "--update")
    assert done.returncode == 1
    assert done.stdout.endswith(f"  was not taken into {file}, which takes what passes\n")
    hook = """
        import os
        def refused(path, *more):
            raise OSError(28, "No space left on device")
        os.replace = refused
    """
    env = hooked(tmp_path / "hook", hook)
    own = work / "round" / "client-1"
    done = clair("check", own, "--against", file, "--update", env=env)
    assert done.returncode == 4
    assert done.stdout.startswith("client-1: benign ")
    assert "is in" not in done.stdout
    assert done.stderr.endswith("No space left on device; nothing was taken in\n")
    assert file.read_bytes() == before
    done = clair("check", own, "--against", file, "--update", "-f", "json", env=env)
    assert (done.returncode, json.loads(done.stdout)["updated"]) == (4, False)


def test_advice_fits_what_is_broken(work: Path, tmp_path: Path) -> None:
    (tmp_path / "fake.clair").write_bytes(b"123456")
    (tmp_path / "r.md").write_bytes(b"text")
    done = clair("check", work / "client-6", "--against", tmp_path / "fake.clair")
    assert (done.returncode, done.stdout) == (2, "")
    assert "6 bytes are too few for a safetensors header; make it again" in done.stderr
    done = clair("check", tmp_path / "r.md", "--against", work / "round")
    assert done.returncode == 1
    assert done.stdout.endswith("not a .safetensors or .npz file; convert it\n")
