"""Bring the pages up to date with the program: python -m tests.docs.refresh [PAGE ...]

Runs the blocks of each page and writes what the console commands print now below them; what differs
only in seconds is left alone. Without PAGE, all pages are done, and the generated tables are written
anew. Exit code 1 where a block of sh or python failed.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from tests.docs.generate import write_all
from tests.docs.pages import PAGES, Block, blocks, console, failure, plain, sessions, workplace


def refreshed(block: Block, home: Path) -> str:
    """The text of a console block with the output of today."""
    parts = []
    for command, shown in sessions(block):
        printed = console(command, home)
        kept = shown if plain(printed) == plain(shown) else printed
        parts.append(f"$ {command}\n{kept}")
    return "".join(parts)


def refresh(page: Path) -> list[str]:
    """Run all blocks of one page and rewrite it where outputs differ; the failures."""
    failed = []
    text = page.read_text()
    with tempfile.TemporaryDirectory() as folder:
        home = workplace(Path(folder))
        for block in blocks(page):
            if block.not_run or block.language not in ("console", "sh", "python"):
                continue
            if block.language == "console":
                text = text.replace(
                    f"```console\n{block.text}", f"```console\n{refreshed(block, home)}"
                )
            elif wrong := failure(block, home):
                failed.append(f"{block.name}: {wrong}")
    if text != page.read_text():
        page.write_text(text)
        print(f"changed: {page}")
    return failed


def main() -> int:
    chosen = [Path(name).resolve() for name in sys.argv[1:]]
    if not chosen:
        write_all()
    failed = [line for page in chosen or PAGES for line in refresh(page)]
    for line in failed:
        print(line)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
