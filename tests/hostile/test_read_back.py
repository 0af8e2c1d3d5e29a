"""Every file that clair reads back is parsed, not trusted: hostile text in any field of any of them.

Each string of each file, keys included, is replaced in turn. Whatever is said of it steers no terminal,
and whatever is wrong with it is one line and never an internal error.
"""

from __future__ import annotations

import copy
import csv
import io
import json
import os
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

import clair_cli
from clair_cli.cli import run
from clair_cli.cli.streams import print_out, tell
from clair_cli.errors import UsageError
from clair_cli.output import publish
from clair_cli.renderers import RENDERERS
from clair_cli.report import from_dict, to_dict
from clair_cli.schema import report_schema, violation
from fuzz.targets import clean
from tests.helpers.cohorts import save_cohort
from tests.helpers.commands import CONFIG, WEIGHTS, join_weights, quick, split_weights
from tests.helpers.reports import COMPLETE, NO_VERDICT
from tests.test_report import spoiled

EVIL = {
    "escape": "\x1b[31mred\x1b]52;c;eA==\x07",
    "CSI of one byte": "\x9b2J\x84\x90",
    "OSC 8": "\x1b]8;;http://x\x1b\\here\x1b]8;;\x1b\\",
    "bidi": "\u202egnp\u2066\u200f\u061c",
    "lines": "a\r\nclair: fine\n::error::\u2028\u2029\x0b\x0c\x85",
    "NUL": "a\0b",
    "surrogate": "\ud800\udcff",
    "long": "n" * 5000,
    "dot": ".",
    "dots": "..",
    "empty": "",
    "option": "-n",
    "path": "../../etc/passwd",
    "markup": "[/bold][link=x]:skull:",
}
VALIDATOR = Draft202012Validator(
    json.loads((Path(clair_cli.__file__).parent / "report.schema.json").read_text())
)


def strings(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every path to a string of a document, lists by their first and last element."""
    if isinstance(value, str):
        yield path
    elif isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else list(enumerate(value))
        for key, child in list(items)[:: 1 if isinstance(value, dict) else max(len(items) - 1, 1)]:
            yield from strings(child, (*path, key))


def variants(data: Any) -> Iterator[Any]:
    """The document with each hostile text in place of each of its strings, of all, and as a key."""
    for evil in EVIL.values():
        whole = data
        for path in strings(data):
            yield spoiled(data, path, evil)
            whole = spoiled(whole, path, evil)
        yield whole
        if isinstance(data, dict):
            yield data | {evil: evil}


def said(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """Run in this process; whatever comes out is harmless, and an error is one line."""
    code = run([*map(str, arguments)])
    found = capsys.readouterr()
    assert code in (0, 1, 2, 3, 4), arguments
    assert clean(found.out + found.err)
    if code in (2, 4):
        assert (found.out, found.err.count("\n")) == ("", 1)
    return code, found.out, found.err


@pytest.mark.parametrize("report", [COMPLETE, NO_VERDICT], ids=["complete", "no verdict"])
def test_a_report(report: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, codes = tmp_path / "report.json", []
    for number, data in enumerate(variants(to_dict(report))):
        file.write_text(json.dumps(data))
        options = ((), ("-v",), ("-f", "json"), ("-vv",))[number % 4]
        code, out, _ = said(capsys, "report", file, *options)
        codes.append(code)
        if "json" in options and code != 2:
            VALIDATOR.validate(json.loads(out))
        json_text = tmp_path / "again.txt"
        if code != 2:
            said(capsys, "report", file, "-q", "-o", f"text={json_text}")
            assert clean(json_text.read_text(encoding="utf-8"))
    assert codes.count(2) > 100
    assert len(codes) - codes.count(2) > 100


@pytest.fixture(scope="module")
def candidates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("read-back")
    save_cohort(folder / "in", 3)
    done = quick(folder, "refine", folder / "in", "--out", folder / "out", "--path", "0,1", "-q")
    assert done.returncode == 0, done.stderr
    return folder / "out"


def resigned(out: Path) -> None:
    """A manifest that fits whatever is there."""
    (out / "manifest.json").unlink()
    publish.write_manifest(out, "0")


def test_the_report_beside_candidates(candidates: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = candidates / "report.json"
    honest = file.read_bytes()
    data = json.loads(honest)
    command = ("--eval", "echo {adapter} --client={client} 1", "-q")
    assert said(capsys, "select", candidates, *command)[0] == 0
    codes = []
    try:
        for evil in EVIL.values():
            for path in [p for p in strings(data["refinement"]) if p[-1] in ("id", "path")]:
                file.write_text(json.dumps(spoiled(data, ("refinement", *path), evil)))
                resigned(candidates)
                code, _, err = said(capsys, "select", candidates, *command)
                codes.append(code)
                if path[-1] == "path":
                    assert code == 2
                    assert "refinement.clients[" in err
        for changed in [
            spoiled(data, ("refinement", "clients", 0, "path"), "strength-0//client-1")
        ]:
            file.write_text(json.dumps(changed))
            resigned(candidates)
            assert said(capsys, "select", candidates, *command)[0] == 2
        twice = spoiled(data, ("refinement", "clients", 0, "id"), "client-2")
        file.write_text(json.dumps(twice))
        resigned(candidates)
        code, _, err = said(capsys, "select", candidates, *command)
        assert (code, "two of one client have one strength" in err) == (2, True)
    finally:
        file.write_bytes(honest)
        resigned(candidates)
    assert codes.count(2) > len(EVIL)


def test_a_manifest(candidates: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, codes = candidates / "manifest.json", set()
    honest = file.read_bytes()
    try:
        for number, data in enumerate(variants(json.loads(honest))):
            file.write_text(json.dumps(data))
            codes.add(
                said(capsys, "verify", candidates, *(("-f", "json") if number % 2 else ()))[0]
            )
            if number % 5 == 0:
                said(capsys, "select", candidates, "--eval", "echo {adapter} 1", "-q")
            if number % 50 == 0:
                said(capsys, "detect", candidates, "-q")
    finally:
        file.write_bytes(honest)
    assert codes == {0, 1}  # an unknown field is no difference


def test_a_file_of_scores(
    candidates: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "scores.json"
    command = ("select", candidates, "--eval", "echo {adapter} 1", "--resume", file, "-q")
    assert said(capsys, *command)[0] == 0
    codes = []
    for data in variants(json.loads(file.read_text())):
        file.write_text(json.dumps(data))
        codes.append(said(capsys, *command)[0])
    assert codes.count(2) > len(EVIL)


def as_csv(counts: dict[str, Any]) -> str:
    out = io.StringIO()
    csv.writer(out).writerows(counts.items())
    return out.getvalue()


@pytest.mark.parametrize("form", [json.dumps, as_csv], ids=["json", "csv"])
def test_sample_counts(
    form: Callable[[Any], str],
    candidates: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file, folder = tmp_path / "counts", candidates.parent / "in"
    command = ("refine", folder, "--out", tmp_path / "out", "--overwrite", "-q", "--weights", file)
    for evil in EVIL.values():
        honest = {f"client-{k}": 5 for k in (1, 2, 3)}
        for data in (honest | {evil: 5}, honest | {"client-1": evil}, {evil: evil}):
            file.write_bytes(form(data).encode("utf-8", "surrogatepass"))
            code, _, err = said(capsys, *command)
            assert (code, "--weights" in err or str(file) in err) == (2, True)


@pytest.mark.parametrize("where", ["config", "--adapter-config", "metadata", "names"])
def test_what_a_client_uploads(
    where: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "in"
    save_cohort(folder, 3)
    client = folder / "client-1"
    header, data = split_weights(client / WEIGHTS)
    config = json.loads((client / CONFIG).read_text())
    outside = tmp_path / "config.json"
    documents = {
        "config": config,
        "--adapter-config": config,
        "metadata": {"format": "pt"},
        "names": header,
    }
    if where == "--adapter-config":
        (client / CONFIG).unlink()
    for number, changed in enumerate(variants(documents[where])):
        if where == "config":
            (client / CONFIG).write_text(json.dumps(changed))
        elif where == "--adapter-config":
            outside.write_text(json.dumps(changed))
        else:
            found = header | {"__metadata__": changed} if where == "metadata" else changed
            join_weights(client / WEIGHTS, found, data)
        options = ("--adapter-config", outside) if where == "--adapter-config" else ()
        said(capsys, "inspect", client, *options, *(("-f", "json") if number % 2 else ()))
        if number % 20 == 0:
            said(capsys, "detect", folder, *options, "-v")
    if where == "names":
        for evil in EVIL.values():
            renamed = {k.replace("self_attn", evil): v for k, v in header.items()}
            join_weights(client / WEIGHTS, renamed, data)
            said(capsys, "inspect", client)
            said(capsys, "detect", folder, "-vv")


def test_folders_nested_deeper_than_pythons_stack(
    candidates: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`verify` names the first folder that is deeper than clair makes any, and looks no further."""
    try:
        deep = nested(candidates, 1500)
        os.close(os.open("foreign", os.O_CREAT | os.O_WRONLY, dir_fd=deep))
        code, out, _ = said(capsys, "verify", candidates)
        assert code == 1
        assert "d/d/d/d/d/d/d/d/d: not in the manifest\n" in out
        assert "FAIL: 1 of " in out
        os.close(nested(deep, 1500))
        os.close(deep)
        code, out, _ = said(capsys, "verify", candidates)
        assert code == 1
        assert "FAIL: 1 of " in out
        assert said(capsys, "select", candidates, "--eval", "echo {adapter} 1")[0] == 2
    finally:  # what removes temporary folders would recurse
        subprocess.run(["rm", "-rf", candidates / "d"], check=True)
    assert said(capsys, "verify", candidates)[0] == 0


def nested(home: Path | int, depth: int) -> int:
    """A descriptor of the innermost of `depth` folders, each in the one before."""
    inner = os.open(home, os.O_RDONLY) if isinstance(home, Path) else os.dup(home)
    for _ in range(depth):
        os.mkdir("d", dir_fd=inner)
        inner, before = os.open("d", os.O_RDONLY, dir_fd=inner), inner
        os.close(before)
    return inner


# --- the schema is what is accepted

VALUES = (None, True, 0, -1, 1.5, 10**30, "x", EVIL["escape"], [], {}, [1], ["x"], 1e308, "")


def every_place(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if path:
        yield path
    items = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    for key, child in list(items)[: None if isinstance(value, dict) else 2]:
        yield from every_place(child, (*path, key))


def test_what_is_accepted_keeps_to_the_schema_and_so_does_what_is_written_again() -> None:
    """The words of the schema as jsonschema reads them; a refusal names the place."""
    data, accepted, refused = to_dict(COMPLETE), 0, 0
    for path in every_place(data):
        for value in (*VALUES, ...):
            changed = spoiled(data, path, value)
            said = None
            try:
                report = from_dict(changed)
            except UsageError as error:
                said = str(error)
            if said is not None:
                refused += 1
                names = [p for p in path if isinstance(p, str)]
                assert any(name in said for name in names) or "schema_version" in said
                continue
            accepted += 1
            assert VALIDATOR.is_valid(changed), path
            for shown in (to_dict(report), json.loads(RENDERERS["json"](report))):
                VALIDATOR.validate(shown)
            assert clean(RENDERERS["text"](report))
    assert accepted > 200
    assert refused > 1000


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.data())
def test_the_schema_says_the_same_to_clair_and_to_jsonschema(draw: st.DataObject) -> None:
    data = copy.deepcopy(to_dict(draw.draw(st.sampled_from([COMPLETE, NO_VERDICT]))))
    every = list(every_place(data))
    for path in draw.draw(st.lists(st.sampled_from(every), min_size=1, max_size=2)):
        value = draw.draw(st.sampled_from((*VALUES, ...)))
        try:
            data = spoiled(data, path, value)
        except (LookupError, TypeError):
            continue
    assert (violation(data, report_schema()) is None) == VALIDATOR.is_valid(data)


def test_every_word_of_the_schema_is_one_that_clair_checks() -> None:
    known = {
        "$schema",
        "title",
        "description",
        "$defs",
        "format",
        "properties",
        "required",
        "items",
    }
    known |= {"type", "enum", "const", "pattern", "minimum", "maximum", "exclusiveMinimum", "$ref"}
    known |= {"minLength", "maxLength", "minItems", "maxItems", "oneOf", "anyOf", "allOf"}
    known |= {"if", "then", "else"}

    def words(schema: Any) -> Iterator[str]:
        for word, inner in schema.items():
            yield word
            named = word in ("properties", "$defs")
            below = inner.values() if named else inner if isinstance(inner, list) else [inner]
            for child in below:
                if isinstance(child, dict):
                    yield from words(child)

    assert set(words(report_schema())) <= known


def test_the_choke_point_lets_nothing_through(capsys: pytest.CaptureFixture[str]) -> None:
    """Even what a renderer forgot: a record whose numbers are text, past every parser."""
    evil = "".join(EVIL.values())
    assert COMPLETE.refinement is not None
    done: Any = replace(COMPLETE.refinement, max_lora_rank=evil)
    for render in RENDERERS.values():
        assert clean(render(replace(COMPLETE, refinement=done)))
    print_out(evil + "\n")
    tell(evil)
    shown = capsys.readouterr()
    assert clean(shown.out.replace("\x1b[31m", "") + shown.err)
    assert "\\x1b]52" in shown.err
