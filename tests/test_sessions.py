"""What records show of themselves in a session: short, harmless, and with a row per client."""

from __future__ import annotations

from dataclasses import replace

import pytest

from clair_cli import Settings, open_adapter, read_update
from clair_cli.report import Report
from clair_cli.rows import COLUMNS, MOST
from tests.helpers.commands import SAMPLES
from tests.helpers.reports import CLIENTS, COMPLETE, NO_VERDICT, hostile

REPORTS = pytest.mark.parametrize("report", [COMPLETE, NO_VERDICT, hostile()], ids=["a", "b", "c"])


@REPORTS
def test_a_record_is_one_short_line(report: Report) -> None:
    adapter = open_adapter(SAMPLES / "client-01")
    update = read_update(adapter, next(iter(adapter.updates)))
    shown = [report, *report.clients, report.population, report.refinement, adapter, update]
    for text in map(repr, shown):
        assert text.isprintable()
        assert len(text) < 600
    assert repr(update) == f"LowRankUpdate(64x128, rank 8, scale={update.scale:.4g})"


def test_settings_show_what_is_not_as_by_default() -> None:
    assert repr(Settings()) == "Settings()"
    shown = repr(Settings(fail_on="minority", include=("a",)))
    assert shown == "Settings(fail_on='minority', include=('a',))"


@REPORTS
def test_a_notebook_shows_a_table_without_markup_of_others(report: Report) -> None:
    clients = (replace(CLIENTS[3], client="<script>x</script>&"), *report.clients)
    shown = replace(report, clients=clients)._repr_html_()
    assert shown.count("<tr>") == len(clients) + 1
    assert "<script" not in shown
    assert "&lt;script&gt;" in shown
    assert shown.isprintable()
    many = tuple(replace(CLIENTS[0], client=f"c-{k}") for k in range(99))
    assert f"and {99 - MOST} more" in replace(report, clients=many)._repr_html_()


@REPORTS
def test_a_data_frame_has_a_row_per_client(report: Report) -> None:
    pytest.importorskip("pandas")
    frame = report.to_pandas()
    assert list(frame.columns) == list(COLUMNS)
    names = [c.client.encode("utf-8", "backslashreplace").decode() for c in report.clients]
    assert list(frame.id) == names
    assert str(frame.score.dtype) == "float64"
    assert frame.attrs["run"]["exit_code"] == report.exit_code
