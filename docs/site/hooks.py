"""Hooks of mkdocs: the site has the repository's own pages at their own places, so that links hold.

Beside them, a page per reason code is made from the table of clair_cli.reasons, and a page for each
folder that a link leads to.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files
from mkdocs.utils import get_relative_url

from clair_cli.reasons import RULES, Rule

ROOT = Path(__file__).resolve().parents[2]
KINDS = (".md", ".js", ".png", ".svg", ".schema.json")
PLACES = ("docs/", "benchmarks/results/", "sample_adapters/README.md", "examples/", "clair_cli/")
TOP = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md")
FOLDERS = {"docs/decisions": "Decisions", "benchmarks/results": "Measurements"}
REASONS = "docs/reference/reasons"


def on_files(files: Files, config: Any) -> Files:
    """The theme's files, and the repository's in place of those of docs_dir."""
    kept = [file for file in files if file.src_dir != config.docs_dir]
    names = [name for name in tracked() if name in TOP or name.startswith(PLACES)]
    pages = [name for name in names if name.endswith(KINDS)]
    made = {f"{folder}/index.md": index(title, folder, pages) for folder, title in FOLDERS.items()}
    made |= {f"{REASONS}/{code}.md": reason(rule) for code, rule in RULES.items()}
    made["examples/tutorial.md"] = notebook(ROOT / "examples" / "tutorial.py")
    places = [*pages, *made]
    config.nav = [{t: within(p, places) for t, p in entry.items()} for entry in config.nav]
    own = [File(p, str(ROOT), config.site_dir, config.use_directory_urls) for p in pages]
    return Files([*kept, *own, *(File.generated(config, p, content=t) for p, t in made.items())])


def within(place: str, pages: list[str]) -> str | list[str]:
    """A page of the navigation; of a folder its pages, with the index first."""
    if not place.endswith("/"):
        return place
    inside = [page for page in pages if page.startswith(place) and page.endswith(".md")]
    return sorted(inside, key=lambda page: (not page.endswith("index.md"), page))


def notebook(file: Path) -> str:
    """The cells of a Python file in percent format, as a page."""
    parts = []
    for cell in re.split(r"^# %%", file.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]:
        kind, _, body = cell.partition("\n")
        if "[markdown]" in kind:
            parts.append(re.sub(r"^# ?", "", body.strip(), flags=re.MULTILINE))
        else:
            parts.append(f"```python\n{body.strip()}\n```")
    return "\n\n".join(parts) + "\n"


def tracked() -> list[str]:
    """Every file of the repository, by its path from the root."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    return subprocess.check_output(command, cwd=ROOT, text=True).splitlines()


def index(title: str, folder: str, pages: list[str]) -> str:
    """A list of the pages in a folder."""
    inside = [Path(p) for p in pages if p.startswith(f"{folder}/") and p.endswith(".md")]
    return f"# {title}\n\n" + "".join(f"- [{head(p)}]({p.name})\n" for p in inside)


def head(page: Path) -> str:
    """The first heading of a page."""
    lines = (ROOT / page).read_text(encoding="utf-8").splitlines()
    return next(line.removeprefix("# ") for line in lines if line.startswith("# "))


def reason(rule: Rule) -> str:
    """The page of one reason code."""
    parts = {"What was seen": rule.seen, "What it means": rule.means, "What to do": rule.do}
    parts |= {"How sure": rule.sure} if rule.sure else {}
    more = f"\nMore in [{Path(rule.page).stem}](../{rule.page}).\n" if rule.page else ""
    text = "".join(f"\n## {title}\n\n{said}\n" for title, said in parts.items())
    made = ", ".join(rule.standings)
    return f"# {rule.code}: {rule.title}\n\n{rule.family}. Makes: **{made}**.\n{text}{more}"


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Links to folders lead to their index; the list of codes leads to the page of each code."""
    for folder, place in {"decisions/": "decisions", "results/": "results"}.items():
        markdown = markdown.replace(f"{folder})", f"{place}/index.md)")
    if page.file.src_uri == f"{REASONS}.md":
        for code in RULES:
            markdown = markdown.replace(f"### {code}\n", f"### [{code}](reasons/{code}.md)\n")
    return markdown


SHIM = "https://unpkg.com/iframe-worker/shim"
"""What the theme would load from elsewhere, so that the search works from a folder."""
WORKER = "docs/site/file-worker.js"


def on_post_page(output: str, page: Any, config: Any) -> str:
    """The site's own worker in place of the theme's."""
    return output.replace(SHIM, get_relative_url(WORKER, page.url))


def on_post_template(output: str, template_name: str, config: Any) -> str:
    """As for a page, for the page of what is not found."""
    return output.replace(SHIM, WORKER)
