"""The Markdown pages of the project, their blocks, and the runs that make the blocks true.

A block of a page is run unless the line above it says why not:

    <!-- not run: needs your own data -->

Blocks of one page run in order in one empty folder that holds a copy of sample_adapters/.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests import ROOT
from tests.helpers.commands import ENVIRONMENT, terminal

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
"""The pages whose blocks are run."""
RUN = ("console", "sh", "python")
"""Languages of blocks that can be run; others hold what a program reads or prints."""
SHOWN = ("json", "text", "yaml")
FENCE = re.compile(r"^```(.*)$")
NOT_RUN = re.compile(r"^<!-- not run: (.+?) -->$")


@dataclass(frozen=True, slots=True)
class Block:
    """One fenced block: its language, its text, the number of its first line, and why it is not run."""

    page: Path
    line: int
    language: str
    text: str
    not_run: str | None

    @property
    def name(self) -> str:
        """The page and the line, as an editor takes them."""
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(page: Path) -> list[Block]:
    """All fenced blocks of a page, in order. Raises ValueError for one that is not closed."""
    found: list[Block] = []
    lines = page.read_text().splitlines()
    start: int | None = None
    for number, line in enumerate(lines):
        fence = FENCE.match(line)
        if fence is None:
            continue
        if start is None:
            start = number
            continue
        language = lines[start].removeprefix("```")
        above = NOT_RUN.match(lines[start - 1]) if start else None
        body = "".join(f"{text}\n" for text in lines[start + 1 : number])
        found.append(Block(page, start + 2, language, body, above[1] if above else None))
        start = None
    if start is not None:
        raise ValueError(f"{page}:{start + 1}: this block is not closed")
    return found


def sessions(block: Block) -> Iterator[tuple[str, str]]:
    """Each `$ command` of a console block with the output shown below it."""
    for part in re.split(r"^\$ ", block.text, flags=re.MULTILINE)[1:]:
        command, _, output = part.partition("\n")
        yield command, output


def plain(text: str) -> str:
    """The text without what differs between runs: the seconds."""
    return re.sub(r"\d+\.\d s$", "N s", text.rstrip(), flags=re.MULTILINE)


def workplace(folder: Path) -> Path:
    """A folder in which blocks can be run."""
    shutil.copytree(ROOT / "sample_adapters", folder / "sample_adapters")
    return folder


def environment() -> dict[str, str]:
    """A small environment with the `clair` and the `python` of this one, and a screen of 100 columns."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{ENVIRONMENT.get('PATH', '')}"
    screen = {"COLUMNS": "100", "NO_COLOR": "1", "TERM": "dumb"}
    return ENVIRONMENT | screen | {"PATH": path}


def console(command: str, home: Path) -> str:
    """What a command of a console block prints on a terminal; what goes to stderr comes last."""
    with terminal() as (path, said), path.open("wb") as screen:
        done = subprocess.run(
            ["sh", "-c", command], cwd=home, env=environment(),
            stdout=screen, stderr=subprocess.PIPE, check=False,
        )  # fmt: skip
    return (b"".join(said) + done.stderr).decode()


def failure(block: Block, home: Path) -> str | None:
    """Run a block of sh or python: what it says where it fails, None where it succeeds."""
    program = ["sh", "-c"] if block.language == "sh" else [sys.executable, "-c"]
    done = subprocess.run(
        [*program, block.text],
        cwd=home, env=environment(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    return None if done.returncode == 0 else f"{done.returncode}\n{done.stdout}{done.stderr}"
