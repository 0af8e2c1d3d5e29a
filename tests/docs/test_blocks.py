"""What the pages show is what a user gets: every block is run, or says why it is not."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests import ROOT
from tests.docs.pages import (
    PAGES,
    RUN,
    SHOWN,
    Block,
    blocks,
    console,
    failure,
    plain,
    sessions,
    workplace,
)

README = ROOT / "README.md"  # test_readme.py runs its blocks
WITH_BLOCKS = [
    page
    for page in PAGES
    if page != README and any(b.language in RUN and not b.not_run for b in blocks(page))
]


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", WITH_BLOCKS, ids=name)
def test_every_block_of_a_page_does_what_the_page_shows(page: Path, tmp_path: Path) -> None:
    home = workplace(tmp_path)
    for block in blocks(page):
        if block.language not in RUN or block.not_run:
            continue
        if block.language == "console":
            for command, shown in sessions(block):
                printed = plain(console(command, home))
                assert printed == plain(shown), f"{block.name}: {command}"
        else:
            assert failure(block, home) is None, block.name


def test_every_block_says_what_it_is() -> None:
    found = [block for page in PAGES for block in blocks(page)]
    assert len([b for b in found if b.language in RUN and not b.not_run]) >= 15
    assert {b.name: b.language for b in found if b.language not in (*RUN, *SHOWN)} == {}
    assert [p for p in PAGES if re.search(r"^ +```", p.read_text(), re.MULTILINE)] == []
    for block in found:
        if block.language == "console":
            assert block.text.startswith("$ "), f"{block.name} begins with no command"


def test_what_is_not_run_is_the_exception() -> None:
    """A reason is a few words, and most commands of the pages are run."""
    runnable = [block for page in PAGES for block in blocks(page) if block.language in RUN]
    reasons = [block.not_run for block in runnable if block.not_run]
    assert all(5 <= len(reason) <= 100 for reason in reasons)
    assert len(reasons) < len(runnable) / 2


def test_a_block_that_fails_or_prints_something_else_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "```sh\nexit 3\n```\n\n<!-- not run: needs nothing -->\n```console\n$ echo one\ntwo\n```\n"
    )
    wrong, other = blocks(page)
    assert (wrong.language, wrong.not_run, wrong.text) == ("sh", None, "exit 3\n")
    assert failure(wrong, tmp_path) is not None
    assert other.not_run == "needs nothing"
    ((command, shown),) = sessions(other)
    assert console(command, tmp_path) == "one\n" != shown


def test_a_block_that_is_not_closed_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("```sh\ntrue\n")
    with pytest.raises(ValueError, match="not closed"):
        blocks(page)


def test_the_pages_are_those_a_reader_finds() -> None:
    names = {name(page) for page in PAGES}
    assert {"README.md", "docs/README.md", "docs/tutorial.md", "docs/glossary.md"} <= names
    assert all(isinstance(b, Block) for page in PAGES for b in blocks(page))
