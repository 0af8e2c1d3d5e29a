"""Help where it is asked for, and complaints that name the option, the command, and a way out."""

from __future__ import annotations

import inspect
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from clair_cli.cli import app, run
from clair_cli.cli.given import flag, settings_from
from clair_cli.cli.parameters import CONTEXT, parameters
from clair_cli.cli.reference import markdown
from clair_cli.settings import Settings
from tests.helpers.commands import clair

FUNCTIONS = {c.callback.__name__: c.callback for c in app.registered_commands if c.callback}
COMMANDS = tuple(FUNCTIONS)


def said(capsys: pytest.CaptureFixture[str], *args: object, code: int = 2) -> str:
    """The one line on stderr with which `clair ...` is refused."""
    assert run([*map(str, args)]) == code
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith("clair: ")
    return err.removeprefix("clair: ").rstrip("\n")


# --- help


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_h_is_help_and_fits_80_columns(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    pages = []
    for ask in ("-h", "--help"):
        assert run([*command.split(), ask]) == 0
        pages.append(capsys.readouterr().out)
    assert pages[0] == pages[1]
    assert "-h, --help" in pages[0]
    assert max(map(len, pages[0].splitlines())) <= 80


def test_the_list_of_commands_cuts_no_sentence_off(capsys: pytest.CaptureFixture[str]) -> None:
    run(["-h"])
    page = capsys.readouterr().out
    listed = re.search(r"Commands:\n(.*?)\n\n", page, re.DOTALL)
    assert listed is not None
    lines = listed[1].splitlines()
    assert [line.split()[0] for line in lines] == [*COMMANDS]
    assert all(line.endswith(".") and "..." not in line for line in lines)


def test_the_script_knows_h_too() -> None:
    done = clair("refine", "-h")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == clair("refine", "--help").stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_every_help_text_is_a_sentence_that_stands_alone(command: str) -> None:
    texts = [inspect.getdoc(FUNCTIONS[command]) or ""]
    texts += [p.help for p in parameters(FUNCTIONS[command])]
    assert len(texts) == 1 + len(defaults(command)) > 1
    for text in texts:
        assert re.match(r"[A-Z{]", text), text
        assert text.endswith((".", "`")), text
        assert len(text.split()) > 3, text


# --- complaints


@pytest.mark.parametrize("command", ["detect", "refine", "inspect", "report", "verify"])
def test_a_complaint_points_to_the_help_of_its_command(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    many = command in ("inspect", "report")  # which take several paths
    more = ("x", "y", "--bogus") if many else ("x", "y")
    for args in (("x", "--bogus"), (), more, ("x", "--format"), ("x", "-f", "xml")):
        assert said(capsys, command, *args).endswith(f"(see clair {command} --help)"), args
    assert said(capsys, "--bogus").endswith("(see clair --help)")
    assert said(capsys, "bogus").endswith("(see clair --help)")


@pytest.mark.parametrize(
    ("args", "complaint"),
    [
        (("detect", "x", "--threads", "abc"), "--threads: "),
        (("select", "x", "--eval", "y", "--timeout", "abc"), "--timeout: "),
        (("detect", "x", "--threads", "999"), "--threads: "),
    ],
    ids=str,
)
def test_a_complaint_about_a_value_names_it(
    args: tuple[str, ...], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    told = said(capsys, *args)
    assert complaint in told
    assert args[-1] in told
    assert "parse" not in told


def test_a_complaint_about_a_file_names_it_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert said(capsys, "report", "nope.json").count("nope.json") == 1


def test_a_strength_out_of_range_is_that_of_the_option_given(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = said(capsys, "refine", str(tmp_path), "--out", str(tmp_path / "o"), "--path", "0,2")
    assert told.startswith("--path: expected auto or a number from 0 to 1, got 2")


@pytest.mark.parametrize(
    ("args", "nearest"),
    [
        (("refine", "--strenght"), "--strength"),
        (("refine", "--incldue"), "--include"),
        (("detect", "--fai-on"), "--fail-on"),
        (("detect", "--thr"), "--threads"),
        (("detect", "--out"), "--output"),
        (("refine", "--outt"), "--out"),
        (("select", "--higher"), "--higher-is-better"),
        (("--hepl",), "--help"),
    ],
    ids=str,
)
def test_a_mistyped_option_gets_the_nearest_of_its_command(
    args: tuple[str, ...], nearest: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert f"no option {args[-1]}; did you mean {nearest}? (see" in said(capsys, *args)


@pytest.mark.parametrize(
    "args",
    [("detect", "--wieghts"), ("inspect", "--threads"), ("verify", "-z"), ("report", "--as")],
)
def test_where_nothing_is_near_nothing_is_suggested(
    args: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert said(capsys, *args) == f"there is no option {args[1]} (see clair {args[0]} --help)"


BAD = {
    "--format": "xml",
    "--alpha": "abc",
    "--threads": "999",
    "--max-header": "1",
    "--device": "tpu",
    "--fail-on": "bad",
}


@pytest.mark.parametrize("option", BAD)
def test_a_bad_value_is_refused_in_a_sentence_that_begins_with_its_option(
    option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    line = said(capsys, "detect", ".", option, BAD[option])
    assert line.startswith(f"{option}: ")
    assert not re.search(r"[Vv]alue error|[A-Z]\w+Error|Invalid value", line)


@pytest.mark.parametrize(
    ("args", "begin"),
    [
        (("--alpha", "nan"), "--alpha: expected"),
        (("--base", "x", "--as", "lora"), "--base: "),
        (("--as", "weights"), "--base: "),
        (("--as", "update", "--reference", "x"), "--reference: "),
    ],
    ids=str,
)
def test_a_setting_that_cannot_be_is_named_as_the_option_it_came_by(
    args: tuple[str, ...], begin: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert said(capsys, "detect", ".", *args).startswith(begin)


def test_a_file_in_no_folder_and_a_folder_are_told_apart(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    absent = said(capsys, "detect", ".", "-o", f"json={tmp_path}/none/x.json")
    assert absent.endswith(f"there is no folder '{tmp_path}/none'")
    folder = said(capsys, "detect", ".", "-o", f"json={tmp_path}")
    assert folder == f"--output: '{tmp_path}' is a folder; give the name of a file"


# --- options and settings are one

SETTINGS = {f.name for f in fields(Settings)}


def defaults(command: str) -> dict[str, Any]:
    """What the function of a command gets where the user gives nothing."""
    params = inspect.signature(FUNCTIONS[command]).parameters
    given = {n: p for n, p in params.items() if n != CONTEXT}
    return {n: None if p.default is p.empty else p.default for n, p in given.items()}


@pytest.mark.parametrize("command", ["detect", "refine", "inspect"])
def test_a_command_without_options_has_the_default_settings(command: str) -> None:
    gate: dict[str, Any] = {"fail_on": "never"} if command == "refine" else {}
    assert settings_from(defaults(command)) == Settings(**gate)


@pytest.mark.parametrize("command", ["detect", "refine", "inspect"])
def test_every_setting_knows_its_option(command: str) -> None:
    named = SETTINGS & defaults(command).keys()
    options = {name for p in parameters(FUNCTIONS[command]) for name in p.spelt.split(", ")}
    assert len(named) >= 8
    assert {flag(name) for name in named} <= options


def test_refine_has_every_option_of_detect_but_groups() -> None:
    """What is written is one cohort's."""
    assert defaults("detect").keys() - {"group_by"} < defaults("refine").keys()


def test_lists_and_numbers_arrive_as_what_they_mean() -> None:
    given = {"ignore": ["logs", "*.bak"], "path": "0, 0.5,auto", "folder": Path(), "base": None}
    found = settings_from({**given, "rank": "4", "subspace_rank": "auto", "include": ["a"]})
    assert (found.ignore, found.path) == (("logs", "*.bak"), (0.0, 0.5, "auto"))
    assert (found.rank, found.subspace_rank, found.include) == (4, "auto", ("a",))
    assert settings_from({"base": Path("x")}).read_as == "weights"


# --- the reference


def test_the_reference_has_every_command_and_option_and_knows_no_terminal(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    narrow = markdown()
    monkeypatch.setenv("COLUMNS", "300")
    assert markdown() == narrow
    sections = re.split(r"^## clair ", narrow, flags=re.MULTILINE)
    assert [s.split()[0] for s in sections[1:]] == [*COMMANDS]
    for section, function in zip(sections[1:], FUNCTIONS.values(), strict=True):
        listed = re.findall(r"^- `([^`]+)`: ", section, re.MULTILINE)
        assert listed == [p.head for p in parameters(function)]
    assert max(map(len, narrow.splitlines())) <= 100


def test_the_reference_spells_options_as_the_commands_do(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for command, function in FUNCTIONS.items():
        run([command, "--help"])
        page = capsys.readouterr().out
        known = {w.rstrip(",") for w in page.split() if re.match(r"-[-a-z]", w)} - {"-h", "--help"}
        spelt = {n for p in parameters(function) for n in p.spelt.split(", ") if n}
        assert spelt <= known


@pytest.mark.parametrize("odd", ["1_0", "١٢", "nan", "0x1"])
@pytest.mark.parametrize(
    "option", ["--subspace-rank", "--strength", "--rank", "--global-rank", "--path", "--max-memory"]
)
def test_a_number_is_written_in_ascii_decimals(
    option: str, odd: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert said(capsys, "refine", "x", "--out", "y", option, odd).startswith(f"{option}: expected")
