"""Figures for papers: what the report says, in type and shades that print, equal for equal reports."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from itertools import combinations
from pathlib import Path
from typing import Any, get_args
from xml.etree import ElementTree

import pytest

from benchmarks.large_reports import large
from clair_cli.errors import UsageError
from clair_cli.renderers.page.looks import LOOKS
from clair_cli.renderers.plots import METADATA, Kind, render
from clair_cli.renderers.plots.looks import COLOURS, SHADES, SHAPES, STYLE
from clair_cli.report import Agreement, Report, Spectra, to_dict
from tests.helpers import reports
from tests.helpers.commands import ENVIRONMENT, hooked
from tests.helpers.reports import COMPLETE, NO_VERDICT
from tests.renderers.test_page import hostile as markup

matplotlib = pytest.importorskip("matplotlib", reason="needs clair-cli[plot]")
for part in ("colors", "style", "text"):
    import_module(f"matplotlib.{part}")
KINDS: tuple[Kind, ...] = get_args(Kind)
MATHS = r"$\frac{1}{0}$ \input{/etc/passwd} ^_{}%#&~ $x$"


def whole(report: Report = COMPLETE) -> Report:
    """The report with all that any figure shows."""
    names = tuple(c.client for c in report.clients if c.score is not None)
    count = len(names)
    agreement = Agreement(
        measure="direction",
        clients=names,
        order=tuple(reversed(range(count))),
        percent=tuple(tuple(10 * i - 7 * j for j in range(i)) for i in range(1, count)),
        left_out=None,
        places=tuple((k / count, (k * k % 5) / 5) for k in range(count)),
        stress=0.125,
        kept=0.75,
    )
    spectra = Spectra((0.6, 0.3, 0.1), (0.5, 0.25))
    return replace(
        report, population=replace(report.population, agreement=agreement, spectra=spectra)
    )


def named(name: str) -> Report:
    """The whole report in which every client's name ends with `name`."""
    clients = tuple(replace(c, client=f"{k}{name}") for k, c in enumerate(COMPLETE.clients))
    assert COMPLETE.refinement is not None
    refined = tuple(replace(c, client=f"x{name}") for c in COMPLETE.refinement.clients)
    done = replace(COMPLETE.refinement, clients=refined)
    return whole(replace(COMPLETE, clients=clients, refinement=done))


REPORTS: dict[str, Callable[[], Report]] = {
    "whole": whole,
    "many": lambda: whole(large(120, 14)),
    "mathematics": lambda: named(MATHS),
    "long": lambda: named("W" * 300),
    "letters": lambda: named("\u5ba2\u6237\u0301\u0301\u0301\u0301\U0001f600\u05d0"),
    "escapes": lambda: whole(reports.hostile()),
    "markup": lambda: whole(markup()),
}


def figure(report: Report, kind: Kind, width: float = 3.25) -> Any:
    """The figure itself, laid out."""
    draw = import_module(f"clair_cli.renderers.plots.{kind}").draw
    with matplotlib.style.context(STYLE, after_reset=True):
        found = draw(report, width)
        found.draw_without_rendering()
    return found


def texts(found: Any) -> list[Any]:
    """Every text that can be seen."""
    every = found.findobj(matplotlib.text.Text)
    return [text for text in every if text.get_visible() and text.get_text()]


# --- what is drawn


def test_scores_are_drawn_for_every_client_worst_first() -> None:
    found = figure(whole(), "scores")
    (axis,) = found.axes
    rows = [label.get_text() for label in axis.get_yticklabels()]
    scored = [c for c in COMPLETE.clients if c.score is not None]
    assert sorted(rows) == sorted(c.client for c in scored)
    assert rows[:2] == ["client-5", "client-4"]
    said = {text.get_text() for text in texts(found)}
    assert {"100.0", "9.8", "2.0", "1.2", "0.9", "0.4"} < said
    assert "1 without one not shown" in axis.get_xlabel()


def test_of_many_clients_those_that_stand_out_have_a_row_and_the_others_are_counted() -> None:
    (axis,) = figure(whole(large(120, 14)), "scores").axes
    rows = [label.get_text() for label in axis.get_yticklabels()]
    assert rows[-1] == "114 benign"
    assert len(rows) == 7


def test_the_table_of_agreement_has_every_pair() -> None:
    report = whole()
    found = figure(report, "agreement")
    agrees = report.population.agreement
    assert agrees is not None
    picture = next(image for axis in found.axes for image in axis.get_images()).get_array()
    for i, row in enumerate(agrees.percent, start=1):
        for j, percent in enumerate(row):
            a, b = agrees.order.index(i), agrees.order.index(j)
            assert picture[a, b] == picture[b, a] == percent


def test_the_heat_map_has_a_row_per_client_and_a_column_per_module() -> None:
    picture = figure(whole(), "heatmap").axes[0].get_images()[0].get_array()
    assert picture.shape == (6, 2)
    assert picture.max() == picture[0, 0] == 95
    assert list(picture[:, 0]) == list(picture[:, 1])


def test_spectra_are_bars_of_which_the_shared_ones_are_filled() -> None:
    found = figure(whole(), "spectrum")
    bars = found.axes[0].patches
    assert [round(bar.get_height(), 1) for bar in bars] == [100.0, 50.0, 16.7]
    assert len({bar.get_facecolor() for bar in bars}) == 2
    assert "60 %" in {text.get_text() for text in texts(found)}


def test_refinement_has_a_ring_before_and_a_dot_after() -> None:
    (axis,) = figure(whole(), "refinement").axes
    rows = [label.get_text() for label in axis.get_yticklabels()]
    assert sorted(rows) == ["client-1", "client-2", "client-6"]
    places: dict[float, list[float]] = {}
    for line in axis.get_lines():
        places.setdefault(float(line.get_ydata()[0]), []).append(float(line.get_xdata()[0]))
    moved = {rows[int(y)]: before - after for y, (before, after) in places.items()}
    assert moved["client-6"] == 0
    assert moved["client-1"] == pytest.approx(96 * (1 - 0.6**0.5), abs=0.02)


@pytest.mark.filterwarnings("ignore:Glyph")
@pytest.mark.parametrize("name", REPORTS)
@pytest.mark.parametrize("kind", ["scores", "agreement", "heatmap", "refinement"])
def test_labels_are_data_in_whatever_letters(kind: Kind, name: str) -> None:
    """No text is read as mathematics, none holds a control character, and the file is whole."""
    report = REPORTS[name]()
    if name == "many":
        report = replace(report, refinement=COMPLETE.refinement)
    for text in texts(figure(report, kind)):
        assert not text.get_parse_math()
        assert not text.get_usetex()
        assert text.get_text().replace("\n", "").isprintable()
    svg = render(report, kind, "svg")
    tags = {e.tag.rpartition("}")[2] for e in ElementTree.fromstring(svg).iter()}
    assert tags <= {
        *("svg", "metadata", "RDF", "Work", "type", "date", "format", "creator", "Agent", "title"),
        *("defs", "style", "g", "path", "use", "clipPath", "rect", "image", "text"),
    }


def test_letters_that_the_font_lacks_are_in_a_whole_pdf() -> None:
    assert render(REPORTS["letters"](), "scores", "pdf").endswith(b"%%EOF\n")


# --- how it looks


@pytest.mark.parametrize("width", [2.5, 6.75])
@pytest.mark.parametrize("kind", KINDS)
def test_a_figure_is_as_wide_as_was_asked_and_its_type_is_large_enough(
    kind: Kind, width: float
) -> None:
    found = re.search(
        rb"/MediaBox \[ 0 0 ([\d.]+) ([\d.]+) \]", render(whole(), kind, "pdf", width)
    )
    assert found is not None
    assert float(found[1]) == pytest.approx(72 * width, abs=0.01)
    assert 0.5 < float(found[2]) / 72 < 9
    assert min(text.get_size() for text in texts(figure(whole(), kind, width))) >= 6


@pytest.mark.parametrize("kind", KINDS)
def test_no_text_leaves_the_figure(kind: Kind) -> None:
    found = figure(named("-site-with-a-long-name"), kind)
    wide, high = found.canvas.get_width_height()
    for text in texts(found):
        box = text.get_window_extent()
        inside = min(box.x0, box.y0, wide - box.x1, high - box.y1) >= -2
        assert inside, text.get_text()


def light(colour: Any) -> float:
    """CIE lightness, 0 to 100: what grey print leaves of a colour."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in rgb(colour)]
    y = sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
    return 903.3 * y if y <= 0.008856 else 116 * y ** (1 / 3) - 16


def rgb(colour: Any) -> tuple[float, float, float]:
    return matplotlib.colors.to_rgb(colour)  # type: ignore[no-any-return]


BLIND = {
    "protanopia": ((0.152, 1.053, -0.205), (0.115, 0.786, 0.099), (-0.004, -0.048, 1.052)),
    "deuteranopia": ((0.367, 0.861, -0.228), (0.280, 0.673, 0.047), (-0.012, 0.043, 0.969)),
}
"""Machado, Oliveira and Fernandes 2009, at full strength, on linear values."""


def seen(colour: Any, how: str) -> tuple[float, ...]:
    """The colour as somebody sees it, sRGB from 0 to 1."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in rgb(colour)]
    mixed = [sum(w * c for w, c in zip(row, linear, strict=True)) for row in BLIND[how]]
    mixed = [min(max(c, 0.0), 1.0) for c in mixed]
    return tuple(12.92 * c if c <= 0.0031308 else 1.055 * c ** (1 / 2.4) - 0.055 for c in mixed)


def test_verdicts_differ_in_shape_or_in_grey_and_every_pair_in_both_or_colour() -> None:
    assert COLOURS.keys() == SHAPES.keys() == {look.name for look in LOOKS.values()}
    for a, b in combinations(COLOURS, 2):
        apart = abs(light(COLOURS[a]) - light(COLOURS[b]))
        assert SHAPES[a] != SHAPES[b] or apart > 15, (a, b)
        assert abs(light(COLOURS["benign"]) - light(COLOURS["contaminated"])) > 40
        for how in BLIND:
            pair = zip(seen(COLOURS[a], how), seen(COLOURS[b], how), strict=True)
            assert sum((x - y) ** 2 for x, y in pair) ** 0.5 > 0.15, (a, b, how)


def test_shades_of_tables_only_ever_get_darker() -> None:
    shades = [light(matplotlib.colormaps[SHADES](k / 64)) for k in range(65)]
    assert shades == sorted(shades, reverse=True)
    assert shades[0] - shades[-1] > 60


# --- what decides the bytes

PROGRAM = """\
import hashlib, json, sys
from clair_cli.renderers.plots import render
from clair_cli.report import from_dict
report = from_dict(json.load(open(sys.argv[1])))
for kind in sys.argv[2].split():
    for suffix in sys.argv[3].split():
        print(hashlib.sha256(render(report, kind, suffix)).hexdigest())
print("torch" in sys.modules, "matplotlib.pyplot" in sys.modules)
"""


def test_another_process_time_and_users_settings_give_the_same_bytes(tmp_path: Path) -> None:
    saved = tmp_path / "report.json"
    saved.write_text(json.dumps(to_dict(whole())))
    (tmp_path / "matplotlibrc").write_text(
        "text.usetex: True\nfont.size: 20\nbackend: module://evil\naxes.facecolor: red\n"
    )
    later = hooked(
        tmp_path / "hook", "import time\nnow = time.time\ntime.time = lambda: now() + 9e6"
    )
    env = ENVIRONMENT | later | {"PYTHONHASHSEED": "7", "TZ": "Asia/Tokyo", "MPLBACKEND": "svg"}
    kinds: tuple[Kind, ...] = ("scores", "agreement", "heatmap")
    command = [sys.executable, "-c", PROGRAM, str(saved), " ".join(kinds), " ".join(METADATA)]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    here = [
        hashlib.sha256(render(whole(), kind, suffix)).hexdigest()
        for kind in kinds
        for suffix in METADATA
    ]
    assert len(set(here)) == 9
    assert done.stdout.split() == [*here, "False", "False"]
    assert done.stderr == ""


def test_no_file_holds_a_time() -> None:
    assert b"CreationDate" not in render(whole(), "scores", "pdf")
    assert b"<dc:date>" not in render(whole(), "scores", "svg")
    assert b"tIME" not in render(whole(), "scores", "png")


# --- what is not there


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_report_lacks_is_said_in_one_line(kind: Kind) -> None:
    with pytest.raises(UsageError, match=f"^there is no {kind} in this report: [^\n]+$"):
        render(replace(NO_VERDICT, clients=()), kind, "pdf")


def test_a_refinement_without_distances_is_not_drawn_as_if_it_had_some() -> None:
    assert COMPLETE.refinement is not None
    clients = tuple(replace(c, deviation=None) for c in COMPLETE.refinement.clients)
    old = replace(COMPLETE, refinement=replace(COMPLETE.refinement, clients=clients))
    with pytest.raises(UsageError, match="saved by a clair that did not write it yet"):
        render(old, "refinement", "pdf")


def test_an_unknown_suffix_is_refused() -> None:
    with pytest.raises(UsageError, match=r"\.pdf, \.svg, \.png, got \.eps"):
        render(whole(), "scores", "eps")
