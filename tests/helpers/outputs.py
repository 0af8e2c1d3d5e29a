"""What others ask of clair's outputs, as checks: schemas, and rules that no schema holds."""

from __future__ import annotations

import csv
import json
import re
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes, urlsplit
from xml.etree import ElementTree

import xmlschema
from jsonschema import Draft4Validator, Draft202012Validator
from markdown_it import MarkdownIt

from tests import ROOT

SCHEMAS = ROOT / "tests" / "schemas"
SARIF = Draft4Validator(
    json.loads((SCHEMAS / "sarif-schema-2.1.0.json").read_text()),
    format_checker=Draft4Validator.FORMAT_CHECKER,
)
GITLAB = Draft202012Validator(json.loads((SCHEMAS / "gl-code-quality.json").read_text()))
JUNIT = xmlschema.XMLSchema(str(SCHEMAS / "junit-10.xsd"))
COMMAND = re.compile(r"::(error|warning) ([^\n]*?)::([^\n]*)")
FORMULA = tuple("=+-@\t\r\uff1d\uff0b\uff0d\uff20")


def sarif(text: str) -> dict[str, Any]:
    """The run of a SARIF log that keeps to its schema and to what GitHub's page asks for."""
    log = json.loads(text)
    SARIF.validate(log)
    assert set(log) == {"$schema", "version", "runs"}
    (run,) = log["runs"]
    driver = run["tool"]["driver"]
    assert all(driver[k] for k in ("name", "semanticVersion"))
    assert run["automationDetails"]["id"].endswith("/")
    for rule in driver["rules"]:
        assert 0 < len(rule["shortDescription"]["text"]) <= 1024
        assert 0 < len(rule["fullDescription"]["text"]) <= 1024
        assert rule["help"]["text"]
        assert rule["help"]["markdown"]
        own = rule["properties"]
        assert own["precision"] in {"very-high", "high", "medium", "low"}
        assert own["problem.severity"] in {"error", "warning", "recommendation"}
        assert 0.0 < float(own["security-severity"]) <= 10.0
        assert "security" in own["tags"]
        assert len(own["tags"]) <= 10
    assert len(run["results"]) <= 25_000
    prints = []
    for result in run["results"]:
        assert driver["rules"][result["ruleIndex"]]["id"] == result["ruleId"]
        assert result["level"] in {"error", "warning", "note"}
        assert result["message"]["text"]
        (location,) = result["locations"]
        physical = location["physicalLocation"]
        assert physical["artifactLocation"]["uri"]
        assert set(physical["region"].values()) == {1}
        assert len(physical["region"]) == 4
        prints.append(result["partialFingerprints"]["primaryLocationLineHash"])
    assert len(set(prints)) == len(prints)
    return dict(run)


def path_of(uri: str) -> str:
    """The path that a URI of SARIF stands for, which is relative or a file's."""
    parts = urlsplit(uri)
    assert parts.scheme in ("", "file")
    assert (parts.netloc, parts.query, parts.fragment) == ("", "", "")
    return unquote_to_bytes(parts.path).decode("utf-8", "surrogateescape")


def said(text: str) -> str:
    """A message of SARIF as a viewer shows it; no bracket and no brace in it means anything."""
    bare = re.sub(r"\\[\\\[\]]", "", text)
    assert not set("[]") & set(bare)
    assert not set("{}") & set(re.sub(r"\{\{|\}\}", "", bare))
    text = text.replace("{{", "{").replace("}}", "}")
    return re.sub(r"\\([\\\[\]])", r"\1", text)


def junit(text: str) -> ElementTree.Element:
    """The only suite of a JUnit file that keeps to Jenkins' schema, and whose counts are true."""
    JUNIT.validate(text)
    (suite,) = ElementTree.fromstring(text.encode())
    for count, kind in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
        assert int(suite.attrib[count]) == len(suite.findall(f"testcase/{kind}"))
    assert int(suite.attrib["tests"]) == len(suite.findall("testcase"))
    return suite


def commands(text: str) -> list[tuple[str, dict[str, str], str]]:
    """Kind, properties and message of each line, read as GitHub's runner reads a command."""
    found = []
    for line in text.splitlines():
        match = COMMAND.fullmatch(line)
        assert match, line
        pairs = dict(part.split("=", 1) for part in match[2].split(","))
        assert pairs.keys() == {"file", "line", "title"}
        found.append((match[1], {k: _decoded(v) for k, v in pairs.items()}, _decoded(match[3])))
    return found


def _decoded(text: str) -> str:
    for code, char in (("%3A", ":"), ("%2C", ","), ("%0D", "\r"), ("%0A", "\n"), ("%25", "%")):
        text = text.replace(code, char)
    return text


def code_quality(text: str) -> list[dict[str, Any]]:
    """The entries of a report that GitLab takes, each with a fingerprint of its own."""
    entries = json.loads(text)
    GITLAB.validate(entries)
    assert len({e["fingerprint"] for e in entries}) == len(entries)
    return list(entries)


def csv_rows(text: str) -> list[dict[str, str]]:
    """The rows of an RFC 4180 file in which no cell is a formula."""
    assert text.endswith("\r\n")
    assert "\n" not in text.replace("\r\n", "")
    rows = list(csv.DictReader(StringIO(text, newline=""), strict=True))
    for row in rows:
        assert None not in row
        for cell in row.values():
            assert cell is not None
            assert not cell.startswith(FORMULA) or _is_number(cell)
    return rows


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def parquet_rows(data: bytes) -> list[dict[str, Any]]:
    """The rows of a Parquet file."""
    from pyarrow import parquet

    return list(parquet.read_table(BytesIO(data)).to_pylist())


def markdown_tables(text: str) -> list[list[str]]:
    """The cells of every row of every table, as a reader sees them; there is no other markup in them."""
    tokens = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).parse(text)
    rows: list[list[str]] = []
    for token in tokens:
        assert token.type not in ("html_block", "code_block", "fence")
        if token.type == "tr_open":
            rows.append([])
        if token.type == "inline" and rows and token.level > 3:
            rows[-1].append("".join(_shown(child) for child in token.children or ()))
        for child in token.children or ():
            assert child.type in ("text", "text_special") or child.content == "<br>", child
    return rows


def _shown(token: Any) -> str:
    return "\n" if token.content == "<br>" else str(token.content)


def written(folder: Path, name: str) -> str:
    """A file that clair wrote, with the line ends that it has."""
    return (folder / name).read_bytes().decode()
