"""What the pages promise of themselves: short, narrow, their links lead somewhere, no code untold."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests import ROOT
from tests.docs.pages import PAGES

OTHERS = [
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "sample_adapters/README.md",
    "examples/text_copy/README.md",
    "benchmarks/results/method-measurements.md",
    "benchmarks/results/formats-measurements.md",
]
ALL = [*PAGES, *(ROOT / name for name in OTHERS)]
MOVED = re.compile(r"\bdocs/(?:method|formats|report|threats)\.md")
"""Pages that have another place today."""


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def prose(page: Path) -> list[str]:
    """The lines of a page outside of blocks and tables."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    return [line for line in text.splitlines() if not line.startswith("|")]


def anchors(page: Path) -> set[str]:
    """What a link to a heading of the page may be called."""
    heads = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


def test_the_readme_is_one_page() -> None:
    text = (ROOT / "README.md").read_text()
    assert 500 < len(text.split()) <= 1000
    assert max(map(len, text.splitlines())) <= 120


@pytest.mark.parametrize("page", ALL, ids=name)
def test_lines_of_prose_are_at_most_160_characters(page: Path) -> None:
    assert [line for line in prose(page) if len(line) > 160] == []


@pytest.mark.parametrize("page", ALL, ids=name)
def test_links_lead_to_files_and_headings_that_exist(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if re.match(r"\w+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_there_are_links_to_check_and_every_page_is_reached() -> None:
    text = "\n".join(page.read_text() for page in PAGES)
    assert len(re.findall(r"\]\(([^)\s]+)\)", text)) > 60
    reached = {page.name for page in PAGES if f"{page.name})" in text or f"{page.name}#" in text}
    assert {
        name(p) for p in PAGES if p.parent.name != "decisions" and p.name not in reached
    } == set()


def test_every_reason_code_has_one_section_that_says_what_to_do() -> None:
    page = ROOT / "docs" / "reference" / "reasons.md"
    sections = re.split(r"^### ", page.read_text(), flags=re.MULTILINE)[1:]
    told = {section.split("\n")[0]: section for section in sections}
    assert len(told) == len(sections)
    sources = (p.read_text() for p in (ROOT / "clair_cli").rglob("*.py"))
    used = {code for source in sources for code in re.findall(r"\"(CLR\d{3})\"", source)}
    assert len(used) > 25
    assert told.keys() == used
    assert {code for code, section in told.items() if "*What to do:*" not in section} == set()


def test_the_glossary_has_every_word_once_and_in_order() -> None:
    rows = re.findall(r"^\| ([^|]+) \| ", (ROOT / "docs" / "glossary.md").read_text(), re.MULTILINE)
    words = rows[1:]
    assert len(words) > 40
    assert words == sorted(words, key=str.lower)
    assert len(words) == len(set(words))


def test_no_file_names_a_page_that_has_moved() -> None:
    found = [
        str(p.relative_to(ROOT))
        for folder in ("clair_cli", "benchmarks", "examples", "docs")
        for p in (ROOT / folder).rglob("*")
        if p.suffix in (".py", ".md") and MOVED.search(p.read_text())
    ]
    assert found == []
