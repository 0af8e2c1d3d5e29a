"""Names made to steer a terminal or to write elsewhere, in every command that shows or writes them."""

from __future__ import annotations

import json
import os
import re
import shutil
import unicodedata
from pathlib import Path

import pytest

from clair_cli.renderers import RENDERERS
from fuzz.targets import clean
from tests.helpers.cohorts import module, save_dense, truths
from tests.helpers.commands import (
    CONFIG,
    WEIGHTS,
    change_config,
    fingerprint,
    join_weights,
    quick,
    split_weights,
)
from tests.helpers.reports import hostile

EVIL = "\x1b[31m\x1b]8;;http://x\x07\x1b]52;c;eA==\x07[/bold][link=x] :skull:\u202e\u2066"
EVIL += "\r\n::error::\x7f\x9b2J"
NAMES = (
    *(
        "-rf",
        "--help",
        "~",
        " ",
        "$(touch pwned)",
        "`x`",
        "a;b",
        "%s%n",
        "C:",
        "nul",
        "CON",
        "aux",
    ),
    *(
        "report.json",
        "manifest.json",
        "global",
        "Global",
        "x",
        "X",
        "trailing.",
        "trailing ",
        "n" * 200,
    ),
    *(
        "é",
        "e\u0301",
        "\u212b",
        "ﬁ",
        "日本",
        "[bold]x",
        ":skull:",
        "=1+1",
        "{adapter}",
        "<b>",
    ),
    *(
        "\x1b[31mred",
        "two\nlines",
        "\u202etxt",
        "\x9b2J",
        "tab\t",
        "\udcff\udcfe",
        "::error::x",
        "a\\b",
    ),
)
REFUSED = {n for n in NAMES if any(unicodedata.category(c)[0] == "C" for c in n) or "\\" in n}
"""What no folder of an output may be called, whoever asks: these clients are broken."""
PLAIN = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,126}[A-Za-z0-9_-])?")


@pytest.fixture(scope="module")
def round_(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One honest client under each name, all with tensors, configs and bases of hostile names."""
    folder = tmp_path_factory.mktemp("names") / "round"
    for name, update in zip(NAMES, truths(len(NAMES)), strict=True):
        client = save_dense(folder / name, update)
        header, data = split_weights(client / WEIGHTS)
        renamed = {k.replace(module(0), f"../../{EVIL}"): v for k, v in header.items()}
        join_weights(client / WEIGHTS, renamed, data)
        change_config(
            client, base_model_name_or_path=f"../{EVIL}", revision=EVIL, target_modules=[EVIL]
        )
        (client / f"{EVIL[:20].replace('/', '')}.bin").write_bytes(b"")
    return folder


@pytest.mark.parametrize("options", [(), ("-v",), ("-f", "json")], ids=str)
def test_refining_writes_only_plain_folders_in_out_and_says_nothing_harmful(
    options: tuple[str, ...], round_: Path, tmp_path: Path
) -> None:
    before, out = fingerprint(round_), tmp_path / "deep" / "deeper" / "out"
    out.parent.mkdir(parents=True)
    around = fingerprint(round_.parent)
    report_file = tmp_path / "report.txt"
    done = quick(
        tmp_path, "refine", round_, "--out", out, "--global", *options, "-o", f"text={report_file}"
    )
    assert done.returncode == 0, done.stderr
    assert clean(done.stdout + done.stderr + report_file.read_text())
    assert "\\u202e" in done.stdout
    report = json.loads((out / "report.json").read_text())
    assert {c["id"] for c in report["clients"] if c["verdict"] == "broken"} == REFUSED
    paths = {c["id"]: c["path"] for c in report["refinement"]["clients"]}
    assert paths.keys() == set(NAMES) - REFUSED
    folders = [p.name for p in out.iterdir() if p.is_dir()]
    assert sorted(folders) == sorted([*paths.values(), "global"])
    assert all(map(PLAIN.fullmatch, folders))
    assert len({unicodedata.normalize("NFC", f.casefold()) for f in folders}) == len(folders)
    for client, path in paths.items():
        assert path == client or path.startswith("client-")
        assert sorted(os.listdir(out / path)) == [CONFIG, WEIGHTS, "clair.json"]
    assert sorted(os.listdir(tmp_path)) == ["deep", "report.txt", "stderr", "stdout"]
    assert os.listdir(out.parent) == ["out"]
    assert (fingerprint(round_), fingerprint(round_.parent)) == (before, around)
    verified = quick(tmp_path, "verify", out, *(o for o in options if o != "-v"))
    assert (verified.returncode, clean(verified.stdout + verified.stderr)) == (0, True)


def test_each_name_can_be_inspected_or_is_refused_harmlessly(round_: Path, tmp_path: Path) -> None:
    for number, name in enumerate(NAMES):
        options = ("-f", "json") if number % 2 else ()
        done = quick(tmp_path, "inspect", round_ / name, *options)
        assert done.returncode == (1 if name in REFUSED else 0), done.stderr
        assert clean(done.stdout + done.stderr)


def test_what_differs_from_a_manifest_is_shown_harmlessly(round_: Path, tmp_path: Path) -> None:
    out = tmp_path / EVIL.replace("/", "")
    assert quick(tmp_path, "refine", round_, "--out", out, "-q").returncode == 0
    for name in REFUSED:
        (out / name).write_bytes(b"")
    shutil.rmtree(out / "x", ignore_errors=True)
    for options in ((), ("-f", "json")):
        done = quick(tmp_path, "verify", out, *options)
        assert (done.returncode, clean(done.stdout + done.stderr)) == (1, True)
    again = quick(tmp_path, "refine", round_, "--out", out, "--overwrite")
    assert (again.returncode, clean(again.stderr), again.stderr.count("\n")) == (2, True, 1)


@pytest.mark.parametrize("name", RENDERERS)
def test_every_renderer_is_harmless(name: str) -> None:
    shown = RENDERERS[name](hostile())
    assert clean(shown)
    assert "202e" in shown


def test_a_hostile_report_cannot_hide_in_what_is_passed_through(tmp_path: Path) -> None:
    """Every string of a saved report, the unknown ones of a newer clair included."""
    data = json.loads(RENDERERS["json"](hostile()))
    data |= {"newer": EVIL, EVIL: [EVIL]}
    data["settings"] |= {"path": ["auto"], "newer": EVIL}
    data["refinement"] |= {"warnings": [EVIL], "newer": EVIL}
    data["refinement"]["clients"][0] |= {"id": EVIL, "path": EVIL}
    (tmp_path / "report.json").write_text(json.dumps(data))
    for options in ((), ("-v",), ("-f", "json")):
        done = quick(tmp_path, "report", tmp_path / "report.json", *options)
        assert (done.returncode, clean(done.stdout + done.stderr)) == (1, True)
