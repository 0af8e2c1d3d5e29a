"""The page: one file, every value escaped, equal for equal reports, and made from old reports too."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from clair_cli.renderers import render
from clair_cli.report import Agreement, Rarity, Rate, Reason, Report, from_dict, to_dict
from tests.conftest import Detected
from tests.helpers.commands import clair
from tests.helpers.reports import COMPLETE, NO_VERDICT

ATTACK = (
    "\"'><img src=x onerror=alert(1)></script><script>alert(2)</script><meta http-equiv=refresh>"
    "<iframe srcdoc='<script>alert(3)</script>'></iframe>"
)
ALLOWED = {"script": 3, "meta": 6, "style": 1}


def page_of(report: Report, *earlier: Report) -> str:
    """The page as every command writes it."""
    found = render(report, "html", earlier)
    assert isinstance(found, str)
    return found


class Seen(HTMLParser):
    """Every tag and attribute of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]


def attacked(value: Any) -> Any:
    """Every free text of a report's JSON with an attack before it."""
    if isinstance(value, dict):
        kept = ("schema_version", "status", "verdict", "code", "sha256", "fail_on", "started_at")
        kept += ("side", "knowledge", "initialisation", "tool")
        return {k: v if k in kept else attacked(v) for k, v in value.items()}
    if isinstance(value, list):
        return [attacked(v) for v in value]
    return ATTACK + value if isinstance(value, str) else value


def hostile() -> Report:
    data = attacked(to_dict(COMPLETE))
    data["population"]["solver"]["status"] = "converged"
    return from_dict(data)


@pytest.mark.parametrize(
    "report", [COMPLETE, NO_VERDICT, hostile()], ids=["complete", "no verdict", "hostile"]
)
def test_nothing_in_a_report_becomes_a_tag_or_leads_out(report: Report) -> None:
    seen = Seen(page_of(report))
    assert {tag: seen.tags.count(tag) for tag in ALLOWED} == ALLOWED
    assert not {"iframe", "object", "embed", "link", "base"} & set(seen.tags)
    assert not [name for name, _ in seen.attributes if name.startswith("on") or name == "style"]
    led = [v for name, v in seen.attributes if name in ("href", "src", "srcset", "action")]
    assert len(led) > 5
    assert [v for v in led if not v.startswith(("#", "data:image/png;"))] == []


def test_the_attack_is_on_the_page_as_text() -> None:
    page = page_of(hostile())
    assert page.count("&lt;img src=x onerror") > 20
    assert "<img src=x" not in page


def test_the_report_is_in_the_page_whole_or_says_what_it_lacks() -> None:
    page = page_of(COMPLETE)
    island = re.search(r'<script type="application/json" id="report">(.*?)</script>', page)
    assert island is not None
    assert not set("<>&\u2028\u2029") & set(island[1])
    assert json.loads(island[1]) == to_dict(COMPLETE)
    reason = Reason("CLR205", "x" * 200_000)
    large = replace(COMPLETE, clients=(replace(COMPLETE.clients[0], reasons=(reason,)),))
    assert "Without the numbers of single modules" in page_of(large)


def test_the_first_screen_says_how_sure_and_breaks_no_name() -> None:
    rarity = Rarity(0, 9791, None, Rate(0, 5052), Rate(0, 4739))
    bad = next(c for c in COMPLETE.clients if c.verdict == "contaminated")
    odd = replace(bad, client="clinic-7", rarity=rarity)
    benign = [c for c in COMPLETE.clients if c.verdict == "benign"]
    page = page_of(replace(COMPLETE, clients=(odd, *benign)))
    first = page.partition("<section")[2].partition("</section>")[0]
    assert "None of 9791 honest clients of the benchmark scored as high" in first
    assert first.count('<span class="whole">clinic-7') >= 2
    assert "The gate fails: " in first


def test_equal_reports_give_equal_pages() -> None:
    assert page_of(from_dict(to_dict(COMPLETE))) == page_of(COMPLETE)


def test_the_page_of_an_older_report_says_what_is_missing() -> None:
    page = page_of(COMPLETE)  # made by hand, without what came with 1.4
    assert page.count("saved by a clair that did not write it yet") >= 1
    assert "Who agrees with whom?" in page


@pytest.mark.parametrize("clients", [(), ("a",), ("a", "b")])
def test_a_table_of_fewer_clients_than_rows_is_a_page(clients: tuple[str, ...]) -> None:
    agrees = Agreement("direction", clients, (0, 5, -1), ((1,), (2, 3), (4, 5, 6)), None, (), 0, 1)
    report = replace(COMPLETE, population=replace(COMPLETE.population, agreement=agrees))
    assert "</html>" in page_of(report)


def test_a_report_of_nobody_is_a_page() -> None:
    assert "No verdict, exit code 3" in page_of(replace(NO_VERDICT, clients=()))
    assert "</html>" in page_of(replace(COMPLETE, clients=()))


def test_several_rounds_show_the_trend_and_the_last() -> None:
    page = page_of(COMPLETE, NO_VERDICT, COMPLETE)
    assert "How did it go over the rounds?" in page
    assert "How did it go over the rounds?" not in page_of(COMPLETE)


def test_the_command_writes_pages_and_gates_the_last_report(
    tmp_path: Path, detected: Detected
) -> None:
    first, page = detected.json, tmp_path / "a.html"
    done = clair("report", first, "-q", "-o", f"html={page}")
    assert (done.returncode, done.stderr) == (1, "FAIL: 2 contaminated\n")
    assert page.read_text() == page_of(from_dict(json.loads(first.read_text())))
    trend = tmp_path / "trend.html"
    options = ("--fail-on", "never", "-q", "-o", f"html={trend}")
    assert clair("report", first, first, *options).returncode == 0
    assert "How did it go over the rounds?" in trend.read_text()


def test_a_page_needs_no_torch_and_jinja_only_when_it_is_made() -> None:
    code = (
        "import sys\nfrom clair_cli.renderers import render\n"
        "from tests.helpers.reports import COMPLETE\n"
        "print('jinja2' in sys.modules)\nrender(COMPLETE, 'html')\nprint('torch' in sys.modules)"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.split() == ["False", "False"]


def test_every_part_is_there_in_the_order_of_a_readers_questions() -> None:
    page = page_of(COMPLETE, NO_VERDICT)
    parts = re.findall(r'<h[12] id="(\w+)"', page)
    wanted = ["verdict", "scores", "agreement", "modules", "spectra", "refined"]
    wanted += ["trend", "clients", "method"]
    assert parts == wanted


def test_a_card_says_how_rare_its_score_is_and_the_page_what_its_codes_mean() -> None:
    page = page_of(COMPLETE)
    assert "none of 4508 honest clients" in re.sub(r"\s+", " ", page).lower()
    for code in {r.code for c in COMPLETE.clients for r in c.reasons}:
        assert f'<dt id="{code}">' in page, code
