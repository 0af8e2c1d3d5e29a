"""clair plot: figures from saved reports, old ones too, and what is said where there is none to draw."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from clair_cli.cli import run
from clair_cli.report import to_dict
from tests.helpers.commands import clair, hooked
from tests.helpers.reports import COMPLETE, HOSTILE, NO_VERDICT
from tests.test_old_reports import OLD, OLD_VERSIONS


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A report in a file."""
    path = tmp_path / "report.json"
    path.write_text(json.dumps(to_dict(COMPLETE)))
    return path


@pytest.fixture
def matplotlib() -> None:
    """What a figure is drawn with."""
    pytest.importorskip("matplotlib", reason="needs clair-cli[plot]")


@pytest.mark.usefixtures("matplotlib")
@pytest.mark.parametrize(
    ("suffix", "begin"), [("pdf", b"%PDF-"), ("svg", b"<?xml"), ("PNG", b"\x89PNG")]
)
def test_a_figure_is_written_as_its_name_says(suffix: str, begin: bytes, saved: Path) -> None:
    target = saved.with_name(f"figure.{suffix}")
    done = clair("plot", saved, "--kind", "scores", "-o", target)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert target.read_bytes().startswith(begin)
    again = saved.with_name(f"again.{suffix}")
    assert clair("plot", saved, "--kind", "scores", "-o", again).returncode == 0
    assert again.read_bytes() == target.read_bytes()


@pytest.mark.usefixtures("matplotlib")
@pytest.mark.parametrize("version", OLD_VERSIONS)
def test_of_an_old_report_what_is_there_is_drawn_and_what_is_missing_is_said(
    version: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    drawn = {"scores", "heatmap"} | ({"spectrum", "refinement"} if version >= "1.2" else set())
    drawn |= {"agreement"} if version >= "1.4" else set()
    for kind in ("scores", "agreement", "heatmap", "spectrum", "refinement"):
        target = tmp_path / f"{kind}.svg"
        command = ["plot", str(OLD / f"{version}.json"), "--kind", kind, "-o", str(target)]
        assert (run(command), target.exists()) == ((0, True) if kind in drawn else (2, False))
        said = capsys.readouterr().err
        assert said.count("\n") == (kind not in drawn)
        assert ("saved by a clair that did not write it yet" in said) == (kind not in drawn)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--kind", "scores", "-o", "x.eps"), "ends with .pdf, .svg, .png"),
        (("--kind", "scores", "-o", "x"), "ends with .pdf, .svg, .png"),
        (("--kind", "scores", "-o", "absent/x.pdf"), "there is no folder"),
        (("--kind", "pie", "-o", "x.pdf"), "--kind"),
        (("-o", "x.pdf"), "--kind"),
        (("--kind", "scores"), "--output"),
        (("--kind", "scores", "-o", "x.pdf", "--width", "1"), "--width"),
        (("--kind", "scores", "-o", "x.pdf", "--width", "nan"), "--width"),
        (("--kind", "agreement", "-o", "x.pdf"), "there is no agreement in this report"),
    ],
)
def test_what_cannot_be_drawn_is_said_in_one_line_and_nothing_is_written(
    arguments: tuple[str, ...], said: str, saved: Path, matplotlib: None
) -> None:
    done = clair("plot", saved, *arguments, cwd=saved.parent)
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
    assert list(saved.parent.glob("x*")) == []


@pytest.mark.usefixtures("matplotlib")
def test_without_a_verdict_there_is_nothing_to_draw(saved: Path) -> None:
    saved.write_text(json.dumps(to_dict(replace(NO_VERDICT, clients=NO_VERDICT.clients[-1:]))))
    done = clair("plot", saved, "--kind", "scores", "-o", saved.with_name("x.pdf"))
    assert (done.returncode, done.stdout) == (2, "")
    assert "without a verdict there is nothing to measure a client against" in done.stderr


def test_without_matplotlib_the_extra_is_named(saved: Path, tmp_path: Path) -> None:
    blocked = hooked(tmp_path / "hook", "import sys\nsys.modules['matplotlib'] = None")
    done = clair("plot", saved, "--kind", "scores", "-o", saved.with_name("x.pdf"), env=blocked)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "clair: clair plot needs the library matplotlib; install clair-cli[plot]\n"
    )


@pytest.mark.usefixtures("matplotlib")
def test_names_of_strangers_reach_no_terminal(saved: Path) -> None:
    clients = tuple(replace(c, client=f"{HOSTILE}{c.client}") for c in COMPLETE.clients)
    saved.write_text(json.dumps(to_dict(replace(COMPLETE, clients=clients))))
    done = clair("plot", saved, "--kind", "scores", "-o", saved.with_name("x.svg"))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert b"\x1b" not in saved.with_name("x.svg").read_bytes()


@pytest.mark.usefixtures("matplotlib")
def test_an_unwritable_home_changes_nothing_on_the_screen(saved: Path) -> None:
    home = {"HOME": "/nonexistent", "XDG_CONFIG_HOME": "/dev/null", "XDG_CACHE_HOME": "/dev/null"}
    done = clair("plot", saved, "--kind", "scores", "-o", saved.with_name("x.pdf"), env=home)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
