"""The site builds without a warning, has a page per reason code, and asks nobody outside."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from clair_cli.reasons import RULES
from tests import ROOT
from tests.helpers.commands import ENVIRONMENT


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("material")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    env = ENVIRONMENT | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


def test_every_reason_code_has_a_page_that_says_what_to_do(site: Path) -> None:
    pages = site / "docs" / "reference" / "reasons"
    assert {page.stem for page in pages.glob("CLR*.html")} == RULES.keys()
    for code, rule in RULES.items():
        text = (pages / f"{code}.html").read_text()
        assert f"{code}: " in text
        assert "What to do" in text
        assert rule.title[:10] in text.replace("&#x27;", "'").replace("&quot;", '"')


def test_no_page_loads_anything_from_outside(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > 60
    loads = re.compile(
        r"<(?:script|link|img|iframe|source)\b[^>]*?(?:src|href)=\"?(?:https?:)?//[^>]*>"
    )
    for page in pages:
        found = [tag for tag in loads.findall(page.read_text()) if 'rel="canonical"' not in tag]
        assert found == [], page
    for style in site.rglob("*.css"):
        assert not re.search(r"(?:url\(|@import)\s*[\"']?(?:https?:)?//", style.read_text()), style


def test_the_search_works_from_a_folder(site: Path) -> None:
    assert (site / "search" / "search_index.js").stat().st_size > 100_000


def test_relative_links_of_all_pages_lead_somewhere_as_on_a_code_host() -> None:
    listed = subprocess.check_output(["git", "ls-files", "*.md"], cwd=ROOT, text=True).split()
    broken = []
    for name in listed:
        text = re.sub(r"^```.*?^```", "", (ROOT / name).read_text(), flags=re.DOTALL | re.MULTILINE)
        for link in re.findall(r"\]\(([^)\s]+)\)", text):
            path = link.partition("#")[0]
            made = path.endswith("examples/tutorial.md")
            if not re.match(r"\w+:", link) and path and not made:
                target = (ROOT / name).parent / path
                broken += [] if target.exists() else [f"{name}: {link}"]
    assert len(listed) > 40
    assert broken == []
