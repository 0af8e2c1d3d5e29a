"""Renderers: every record that reaches a screen or a file, as text or as JSON; a report in more formats.

None of them reads a file or looks at a tensor. Text that comes out of here has been through `visible`.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any, Literal, TypeAlias, get_args

from clair_cli.errors import UsageError
from clair_cli.reasons import Rule
from clair_cli.renderers import (
    configured,
    explanation,
    inspection,
    json,
    selection,
    sketches,
    survey,
    text,
    verification,
)
from clair_cli.renderers.safe import visible
from clair_cli.report import Report
from clair_cli.results import (
    Checked,
    Configured,
    Explained,
    Fitted,
    InspectedFolder,
    Inspection,
    NotInspected,
    Rules,
    Selection,
    SketchWritten,
    Survey,
    Verification,
)
from clair_cli.trend import Trend

FormatName = Literal["text", "json"]
"""The formats of every record."""
ReportFormat = Literal[
    "text",
    "json",
    "html",
    "markdown",
    "sarif",
    "junit",
    "github",
    "gitlab",
    "csv",
    "jsonl",
    "parquet",
]
"""The formats of a report."""
Record: TypeAlias = (
    Report
    | Survey
    | Inspection
    | InspectedFolder
    | NotInspected
    | Selection
    | SketchWritten
    | Fitted
    | Checked
    | Verification
    | Explained
    | Rule
    | Rules
    | Configured
)
Renderer = Callable[[Record], str]

TABLE: dict[type, dict[FormatName, Callable[[Any], str]]] = {
    Report: {"text": text.render, "json": json.render},
    Survey: {"text": survey.as_text, "json": survey.as_json},
    Inspection: {"text": inspection.as_text, "json": inspection.as_json},
    InspectedFolder: {"text": inspection.folder_as_text, "json": inspection.as_json},
    NotInspected: {"text": inspection.error_as_text, "json": inspection.as_json},
    Selection: {"text": selection.as_text, "json": selection.as_json},
    SketchWritten: {"text": sketches.written_as_text, "json": sketches.as_json},
    Fitted: {"text": sketches.fitted_as_text, "json": sketches.as_json},
    Checked: {"text": sketches.checked_as_text, "json": sketches.as_json},
    Verification: {"text": verification.as_text, "json": verification.as_json},
    Explained: {"text": explanation.as_text, "json": explanation.as_json},
    Rule: {"text": explanation.rule_as_text, "json": explanation.rule_as_json},
    Rules: {"text": explanation.rules_as_text, "json": explanation.rules_as_json},
    Configured: {"text": configured.as_text, "json": configured.as_json},
}
"""How each record is written in each format."""


def _renderer(name: FormatName) -> Renderer:
    return lambda record: visible(TABLE[type(record)][name](record))


RENDERERS: dict[str, Renderer] = {name: _renderer(name) for name in get_args(FormatName)}
"""By format: takes any record of TABLE."""


def _later(module: str, name: str) -> Callable[..., Any]:
    """A renderer whose module is loaded when it is first needed: most runs need none of them."""
    return lambda *given: getattr(import_module(f"{__name__}.{module}"), name)(*given)


REPORTS: dict[ReportFormat, Callable[[Report], str | bytes]] = {
    "text": text.render,
    "json": json.render,
    "html": _later("page", "render"),
    "markdown": _later("markdown", "render"),
    "sarif": _later("sarif", "render"),
    "junit": _later("junit", "render"),
    "github": _later("annotated", "as_github"),
    "gitlab": _later("annotated", "as_gitlab"),
    "csv": _later("tables", "as_csv"),
    "jsonl": _later("tables", "as_jsonl"),
    "parquet": _later("tables", "as_parquet"),
}
"""How a report is written in each format: as text, or as the bytes of a file."""
LOCATED = {"sarif", "github", "gitlab"}
"""Formats that say where a client lies, for a reader who knows the repository."""
ENDS = {"csv": "\r\n"}
"""Formats whose lines end otherwise than with a line feed."""
BINARY = {"parquet"}
"""Formats that are bytes."""
EXTRAS = {"parquet": ("pyarrow", "parquet")}
"""Format -> the library that writes it, and the extra of clair-cli that brings it."""


TRENDS: dict[str, Callable[..., str]] = {
    "text": _later("trend", "as_text"),
    "json": _later("trend", "as_json"),
    "csv": _later("trend", "as_csv"),
    "html": _later("page", "render_trend"),
}
"""How a trend is written in each format."""


def render_trend(
    trend: Trend,
    reports: tuple[Report, ...],
    format: str,
    verbose: bool = False,
    width: int | None = None,
) -> str:
    """The trend over the reports as one document; `verbose` and `width` are for text."""
    if format == "html":
        found = TRENDS[format](trend, reports[-1])
    else:
        found = TRENDS[format](trend, verbose, width) if format == "text" else TRENDS[format](trend)
    end = ENDS.get(format, "\n")
    return end.join(map(visible, found.split(end)))


def check_format(name: str) -> None:
    """Raises UsageError where there is no such format, or what writes it is not installed."""
    if name not in REPORTS:
        raise UsageError(f"format: expected {'|'.join(REPORTS)}, got {name!r}")
    library, extra = EXTRAS.get(name, ("json", ""))
    try:
        import_module(library)
    except ImportError:
        text = f"{name} needs the library {library}; install clair-cli[{extra}]"
        raise UsageError(text) from None


def render(
    report: Report, format: ReportFormat = "text", earlier: tuple[Report, ...] = ()
) -> str | bytes:
    """The report as one document: bytes for the formats in BINARY, text for all others.

    `earlier` are the reports of rounds before, oldest first, whose trend a page shows. Raises UsageError
    where there is no such format, or what writes it is not installed.
    """
    check_format(format)
    write: Callable[..., str | bytes] = REPORTS[format]
    found = write(report, earlier) if format == "html" else write(report)
    if isinstance(found, bytes):
        return found
    end = ENDS.get(format, "\n")
    return end.join(map(visible, found.split(end)))
