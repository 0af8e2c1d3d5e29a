"""Reports that older versions saved, one per schema: the page, every format and the gate take them.

Each file in old_reports/ is what `clair refine sample_adapters --out out` of that time wrote.
"""

from __future__ import annotations

import json
import re
from io import BytesIO
from pathlib import Path

import pytest

from clair_cli.renderers import REPORTS, render
from clair_cli.report import from_dict
from tests.helpers.commands import CONTAMINATED, clair

OLD = Path(__file__).parent / "old_reports"
OLD_VERSIONS = ["1.0", "1.1", "1.2", "1.3", "1.4", "1.5"]
LATER = "it was saved by a clair that did not write it yet"


@pytest.mark.parametrize("version", OLD_VERSIONS)
def test_the_page_of_an_old_report_has_all_that_is_in_it(version: str, tmp_path: Path) -> None:
    path, page = OLD / f"{version}.json", tmp_path / "page.html"
    saved = json.loads(path.read_text())
    assert saved["schema_version"] == version
    done = clair("report", path, "-q", "-o", f"html={page}")
    assert (done.returncode, done.stderr) == (saved["exit_code"], "")
    shown = re.sub(r"\s+", " ", page.read_text())
    assert "2 of 8 clients are contaminated" in shown
    for client in saved["clients"]:
        assert shown.count(client["id"]) >= 3
        assert f"{client['score']:.1f}" in shown
    missing = {"agreement"} if version < "1.4" else set()
    missing |= {"spectra", "moves"} if version < "1.2" else set()
    missing |= {"stability"} if version == "1.0" else set()
    assert shown.count(LATER) == len(missing)


@pytest.mark.parametrize("version", OLD_VERSIONS)
@pytest.mark.parametrize("name", REPORTS)
def test_every_format_takes_an_old_report(name: str, version: str) -> None:
    if name == "parquet":
        parquet = pytest.importorskip("pyarrow.parquet", reason="needs clair-cli[parquet]")
    report = from_dict(json.loads((OLD / f"{version}.json").read_text()))
    found = render(report, name)  # type: ignore[arg-type]
    text = str(found)
    if name == "parquet":
        text = str(parquet.read_table(BytesIO(found))["id"].to_pylist())
    assert set(re.findall(r"client-\d\d", text)) >= CONTAMINATED


def test_an_old_report_is_gated_explained_and_shown_beside_a_new_one(tmp_path: Path) -> None:
    first, last = OLD / "1.0.json", OLD / "1.3.json"
    assert clair("report", first, "-q", "--fail-on", "contaminated").returncode == 1
    assert (
        clair("report", last, "--baseline", first, "-q", "--fail-on", "contaminated").returncode
        == 0
    )
    assert "client-06: contaminated" in clair("explain", first, "client-06").stdout
    trend = tmp_path / "trend.html"
    assert clair("report", first, last, "-q", "-o", f"html={trend}").returncode == 0
    assert "How did it go over the rounds?" in trend.read_text()
