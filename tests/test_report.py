"""The report: to JSON and back without loss, refused where it is none, rendered as the goldens."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clair_cli.cli import run
from clair_cli.errors import UsageError
from clair_cli.renderers import BINARY, RENDERERS, render, text
from clair_cli.renderers import REPORTS as FORMATS
from clair_cli.report import Report, failing, from_dict, gated, to_dict
from tests.conftest import Detected
from tests.helpers.commands import clair, verdicts
from tests.helpers.reports import CLIENTS, COMPARED, COMPLETE, HOSTILE, NO_VERDICT, hostile

GOLDEN = Path(__file__).parent / "golden"
REPORTS = {
    "complete": COMPLETE,
    "no_verdict": NO_VERDICT,
    "hostile": hostile(),
    "compared": COMPARED,
}


def written(report: Report) -> str:
    return RENDERERS["json"](report)


def read(document: str) -> Report:
    return from_dict(json.loads(document))


# --- there and back


@pytest.mark.parametrize("name", REPORTS)
def test_reading_back_and_writing_again_gives_the_same_bytes(name: str) -> None:
    once = written(REPORTS[name])
    assert written(read(once)) == once


@given(st.floats(allow_nan=False, allow_infinity=False, min_value=0))
def test_nine_digits_of_a_float_are_stable(number: float) -> None:
    client = replace(CLIENTS[0], score=number)
    once = written(replace(COMPLETE, clients=(client,)))
    found = read(once).clients[0].score
    assert found == pytest.approx(number, rel=1e-8, abs=5e-324)
    assert written(read(once)) == once


def test_a_report_holds_no_more_than_nine_digits() -> None:
    numbers = [v for v in walk(to_dict(COMPLETE)) if isinstance(v, float)]
    assert 1.23456789 in numbers
    assert all(float(f"{v:.9g}") == v for v in numbers)


@pytest.mark.parametrize("renderer", RENDERERS)
@pytest.mark.parametrize("name", REPORTS)
def test_a_report_read_back_renders_the_same(name: str, renderer: str) -> None:
    report = REPORTS[name]
    assert RENDERERS[renderer](read(written(report))) == RENDERERS[renderer](report)


def test_a_newer_1_x_report_is_read_and_its_own_fields_stay() -> None:
    data = to_dict(COMPLETE) | {"schema_version": "1.9", "signature": {"by": "x"}}
    for inner in (data["clients"][0], data["population"], data["counts"], data["run"]):
        inner["newer"] = [1]
    report = from_dict(data)
    assert text.render(report) == text.render(COMPLETE)
    assert to_dict(report)["signature"] == {"by": "x"}


@pytest.mark.parametrize("version", ["2.0", "0.9", "10.0", "", "x", 2, None])
def test_another_major_version_is_refused(version: Any) -> None:
    with pytest.raises(UsageError, match=r"not 1\.x"):
        from_dict(to_dict(COMPLETE) | {"schema_version": version})


# --- garbage


def walk(value: Any) -> Iterator[Any]:
    """`value` and everything in it."""
    yield value
    children = value.values() if isinstance(value, dict) else value
    for child in children if isinstance(value, dict | list) else ():
        yield from walk(child)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every path into a document, lists by their first and last element."""
    if path:
        yield path
    inner = value.items() if isinstance(value, dict) else list(enumerate(value))[:: len(value) or 1]
    for key, child in inner:
        if isinstance(child, dict | list):
            yield from places(child, (*path, key))
        else:
            yield (*path, key)


def spoiled(data: Any, path: tuple[Any, ...], value: Any) -> Any:
    """A copy of `data` with `value` at `path`, or without the entry where `value` is Ellipsis."""
    changed = copy.deepcopy(data)
    holder = changed
    for key in path[:-1]:
        holder = holder[key]
    if value is ...:
        del holder[path[-1]]
    else:
        holder[path[-1]] = value
    return changed


@pytest.mark.parametrize("part", ["all else", "refinement"])
def test_a_spoiled_report_is_refused_or_rendered_but_never_crashes(part: str) -> None:
    data, refused, shown = to_dict(COMPLETE), 0, 0
    for path in [p for p in places(data) if (p[0] == "refinement") == (part == "refinement")]:
        for value in (None, "nan", True, [], {}, [1], 10**30, ...):
            try:
                report = gated(from_dict(spoiled(data, path, value)), "contaminated")
            except UsageError:
                refused += 1
                continue
            shown += len([render(report, name) for name in FORMATS.keys() - BINARY])
            render(report, "html", (report, COMPLETE))
    assert refused > 50
    assert shown > 50


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("clients", 0, "verdict"), "harmless"),
        (("clients", 0, "verdict"), None),
        (("clients", 0, "verdict"), []),
        (("clients", 0, "score"), "nan"),
        (("clients", 0, "score"), float("nan")),
        (("clients", 0, "limit"), float("inf")),
        (("clients", 0, "reasons"), None),
        (("clients",), ...),
        (("status",), "done"),
        (("settings", "fail_on"), "always"),
        (("run", "duration_s"), "3"),
        (("refinement",), {}),
        (("population", "modules", 0, "shape"), [1]),
        (("settings", "include"), 1),
    ],
    ids=str,
)
def test_what_is_no_report_is_refused(path: tuple[Any, ...], value: Any) -> None:
    with pytest.raises(UsageError, match="not a clair report"):
        from_dict(spoiled(to_dict(COMPLETE), path, value))


DEEP = '{"schema_version": "1.0", "deep": ' + "[" * 400 + "]" * 400 + "}"


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"null", b"{}", b"\xff", b'{"a": NaN}', b'{"a": 1, "a": 2}', DEEP.encode()],
    ids=lambda c: c[:12],
)
def test_a_file_that_is_no_report_exits_2_with_one_line(
    content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "report.json"
    file.write_bytes(content)
    assert run(["report", str(file)]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1


# --- what it says


@pytest.mark.parametrize(
    ("fail_on", "names"),
    [
        ("suspicious", {"client-3", "client-4", "client-5", "client-10"}),
        ("minority", {"client-4", "client-5", "client-10"}),
        ("contaminated", {"client-4", "client-5", "client-10"}),
        ("broken", {"client-10"}),
        ("never", set()),
    ],
)
def test_the_gate_takes_the_verdicts_from_its_own_upwards(fail_on: str, names: set[str]) -> None:
    assert {c.client for c in failing(COMPLETE, fail_on)} == names
    assert gated(COMPLETE, fail_on).exit_code == bool(names)
    assert gated(NO_VERDICT, fail_on).exit_code == 3


@pytest.mark.parametrize(("names", "code"), [(["client-4"], 1), (["client-4", "client-5"], 0)])
def test_whoever_includes_a_client_has_decided_and_the_gate_lets_it_pass(
    names: list[str], code: int
) -> None:
    clients = tuple(c for c in CLIENTS if c.verdict != "broken")
    report = replace(COMPLETE, clients=clients, settings={**COMPLETE.settings, "include": names})
    found = gated(read(written(report)), "contaminated")
    assert {c.client for c in failing(found, "contaminated")} == {"client-4", "client-5"} - {*names}
    assert found.exit_code == code
    assert found.counts == report.counts


def test_every_client_is_counted_once() -> None:
    names = ("clients", "benign", "suspicious", "minority", "contaminated", "broken")
    assert COMPLETE.counts == dict(zip(names, (7, 3, 1, 0, 2, 1), strict=True))
    assert NO_VERDICT.counts == dict(zip(names, (3, 0, 0, 0, 0, 1), strict=True))


@pytest.mark.parametrize("ending", ["txt", "json"])
@pytest.mark.parametrize("name", REPORTS)
def test_the_renderers_write_the_golden_files(name: str, ending: str) -> None:
    """Set UPDATE_GOLDEN=1 to accept what they write now, and read the diff."""
    golden = GOLDEN / f"{name}.{ending}"
    found = RENDERERS["json" if ending == "json" else "text"](REPORTS[name])
    if os.environ.get("UPDATE_GOLDEN"):
        golden.write_text(found)
    assert found == golden.read_text()


@pytest.mark.parametrize("renderer", RENDERERS)
def test_nothing_from_a_file_reaches_a_terminal_raw(renderer: str) -> None:
    shown = RENDERERS[renderer](hostile())
    assert "evil" in shown
    assert not {c for c in shown if ord(c) < 0x20} - {"\n"}
    assert not {"\x7f", "\x9b", "\u202e", "\udcff"} & set(shown)


def test_no_word_of_a_saved_refinement_reaches_a_terminal_raw() -> None:
    assert COMPLETE.refinement is not None
    for name in ("knowledge", "side"):  # these are words of clair's own
        with pytest.raises(UsageError, match=f"refinement.{name}: expected enum"):
            read(
                written(
                    replace(COMPLETE, refinement=replace(COMPLETE.refinement, **{name: HOSTILE}))
                )
            )
    done = replace(COMPLETE.refinement, warnings=(HOSTILE,))
    shown = text.render(read(written(replace(COMPLETE, refinement=done))), verbose=2)
    assert "evil" in shown
    assert not {c for c in shown if ord(c) < 0x20} - {"\n"}


# --- real runs


def test_two_runs_on_the_same_input_differ_only_in_run(detected: Detected) -> None:
    again = clair("detect", detected.folder, "-f", "json")
    first, second = json.loads(detected.done.stdout), json.loads(again.stdout)
    assert first.pop("run") != second.pop("run")
    assert json.dumps(first) == json.dumps(second)
    assert len(first["clients"]) == 8


def test_a_saved_report_gives_the_table_of_the_run(detected: Detected) -> None:
    again = clair("report", detected.json)
    assert again.stdout == detected.text.read_text()
    assert again.returncode == detected.done.returncode == 1
    assert "contaminated" in again.stdout


def test_a_saved_report_is_gated_anew(detected: Detected) -> None:
    never = clair("report", detected.json, "--fail-on", "never", "-f", "json")
    before, after = json.loads(detected.done.stdout), json.loads(never.stdout)
    assert (never.returncode, after["exit_code"], after["settings"]["fail_on"]) == (0, 0, "never")
    assert verdicts(after) == verdicts(before)
    assert clair("report", detected.json, "--fail-on", "broken").returncode == 0
