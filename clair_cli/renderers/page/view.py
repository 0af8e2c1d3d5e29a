"""All that the page says, as plain records: text that is safe to show, and places of marks."""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from clair_cli.records import encode
from clair_cli.renderers.page.cards import Card, Code, cards, codes
from clair_cli.renderers.page.energy import Bars, Moves, moves, spectra
from clair_cli.renderers.page.grids import Grid, heat, matrix
from clair_cli.renderers.page.headline import Headline, headline
from clair_cli.renderers.page.maps import Map, client_map
from clair_cli.renderers.page.scores import Scores, scores
from clair_cli.renderers.page.trend import Trend, trend
from clair_cli.renderers.refinement import sentences
from clair_cli.renderers.safe import safe_text
from clair_cli.report import Report, to_dict

WHOLE = 120_000
"""Characters up to which the report is in the page with the modules of every client."""
OLDER = "it was saved by a clair that did not write it yet; run clair detect again to see it"
ESCAPES = {ord(c): f"\\u{ord(c):04x}" for c in "<>&\u2028\u2029"}
LIMITS = (
    "More than half of the clients colluding: the larger group is taken for the majority.",
    "A little poison in many clients, or a backdoor inside what honest updates share.",
    "An attacker who knows clair and every benign adapter, with an attack of about half strength.",
    "Honest clients of a rare kind or with little data: they may look like strangers, so ask them.",
    "Later rounds of training judged as they are: judge what changed since the last broadcast.",
    "Modules that not all clients adapt.",
)


@dataclass(frozen=True, slots=True)
class Method:
    """What a run can be repeated from: pairs of a name and a value, and every setting."""

    facts: tuple[tuple[str, str], ...]
    settings: tuple[tuple[str, str], ...]
    blind: tuple[str, ...] = LIMITS


@dataclass(frozen=True, slots=True)
class Page:
    """Everything on the page, in its order; what is None says why in `missing`, by its name."""

    headline: Headline
    scores: Scores | None
    matrix: Grid | None
    map: Map | None
    heat: Grid | None
    spectra: tuple[Bars, ...]
    refined: tuple[str, ...]
    moves: Moves | None
    trend: Trend | None
    cards: tuple[Card, ...]
    codes: tuple[Code, ...]
    method: Method
    missing: Mapping[str, str]
    report: str
    whole: bool
    told: str


def page(reports: tuple[Report, ...]) -> Page:
    """The page of the last of `reports`, with the trend over all of them."""
    report = reports[-1]
    told = cards(report)
    anchors = {card.client: card.anchor for card in told}
    warmth, pairs = heat(report), matrix(report)
    text, whole = _island(report)
    return Page(
        headline=headline(report),
        scores=scores(report, anchors),
        matrix=pairs,
        map=client_map(report),
        heat=warmth,
        spectra=spectra(report),
        refined=tuple(sentences(report, verbose=False)),
        moves=moves(report, anchors),
        trend=trend(reports),
        cards=told,
        codes=codes(report),
        method=_method(report),
        missing=missing(report),
        report=text,
        whole=whole,
        told=_json({g.key: _words(g) for g in (warmth, pairs) if g is not None}),
    )


def _words(grid: Grid) -> dict[str, Any]:
    """What the script says of a cell."""
    return {
        "names": grid.names,
        "columns": grid.columns if grid.columns != grid.names else None,
        "values": grid.values,
    }


def _json(value: Any) -> str:
    """JSON that no parser of HTML can take for anything else: ASCII, without < > &."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False).translate(ESCAPES)


def _island(report: Report) -> tuple[str, bool]:
    """The report as the page holds it; a large one deflated, in base64, without the modules of its
    clients and its pairs."""
    text = _json(to_dict(report))
    if len(text) <= WHOLE:
        return text, True
    clients = tuple(replace(c, modules=()) for c in report.clients)
    population = report.population
    if population.agreement is not None:
        agrees = replace(
            population.agreement, percent=(), left_out="not in the page, but in the JSON"
        )
        population = replace(population, agreement=agrees)
    text = _json(to_dict(replace(report, clients=clients, population=population)))
    return _json(base64.b64encode(zlib.compress(text.encode(), 9)).decode()), False


def missing(report: Report) -> dict[str, str]:
    """Why a part of the page is not there, by its name."""
    compared = any(c.score is not None for c in report.clients)
    nobody = "without a verdict there is nothing to measure a client against"
    agrees, old = report.population.agreement, OLDER if compared else nobody
    return {
        "scores": nobody,
        "heat": "no client has scores of single modules" if compared else nobody,
        "agreement": safe_text((agrees and agrees.left_out) or "") or old,
        "spectra": old,
        "stability": OLDER,
        "moves": "Nothing was refined: clair refine DIR --out OUT writes better adapters",
    }


def _method(report: Report) -> Method:
    run, environment = report.run, report.run.get("environment", {})
    consensus, solver = report.population.consensus, report.population.solver
    facts = [
        ("folder", report.inputs.get("root")),
        ("command", run.get("command") or "none: made by the library"),
        ("started", run.get("started_at")),
        ("took", f"{run.get('duration_s', 0):.1f} s"),
        ("clair", report.tool.get("version")),
        *((k, environment.get(k)) for k in ("python", "system", "torch", "device", "threads")),
    ]
    if consensus is not None:
        facts.append(
            ("consensus", f"{consensus.clients} clients, {consensus.initialisation} start")
        )
        facts.append(("explained", f"{100 * consensus.explained:.0f} % of the members' energy"))
    if solver is not None:
        facts.append(("solver", f"{solver.status} after {solver.iterations} iterations"))
    return Method(
        tuple((k, safe_text(str(v))) for k, v in facts if v is not None),
        tuple(_flat(encode(report.settings))),
    )


def _flat(values: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, str]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{before}{name}.")
        else:
            shown = value if isinstance(value, str) else json.dumps(value, allow_nan=False)
            yield safe_text(before + name), safe_text(shown)
