"""clair trend: saved reports of several rounds, side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from clair_cli.cli import options as o
from clair_cli.cli import streams
from clair_cli.cli.command import regated
from clair_cli.cli.delivery import STDOUT, check_apart, place_for
from clair_cli.cli.given import saved_report
from clair_cli.errors import UsageError
from clair_cli.output.publish import replace_bytes
from clair_cli.renderers import TRENDS, render_trend, text
from clair_cli.renderers.safe import inert
from clair_cli.trend import over

Format = Annotated[
    Literal["text", "json", "csv", "html"],
    o.option(
        o.SHOWING,
        "--format",
        "-f",
        help="What goes to stdout: a table, one JSON document, a row of CSV for each client and round, "
        "or a page.",
    ),
]
Outputs = Annotated[
    list[str] | None,
    o.option(
        o.SHOWING,
        "--output",
        "-o",
        metavar="FORMAT=FILE",
        help="Write the trend to a file, too, in any format of -f. Repeatable.",
    ),
]


def trend(
    context: typer.Context,
    paths: o.Saved,
    fail_on: o.Regate = None,
    format: Format = "text",
    output: Outputs = None,
    quiet: o.Quiet = False,
    verbose: o.Verbose = 0,
    config_file: o.ConfigFile = None,
    no_config: o.NoConfig = False,
) -> int:
    """Show every client over the rounds, by their reports.

    Verdicts and scores, who turned, who came and went. The rounds are in the order in which the reports
    are given; the exit code is that of the last.
    """
    files = [_split(value, *paths) for value in output or []]
    check_apart(path for _, path in files)
    reports = tuple(map(saved_report, paths))
    last = regated(context, reports[-1], fail_on)
    reports = (*reports[:-1], last)
    found = over(reports)
    if not (quiet and format == "text"):
        document = render_trend(found, reports, format, verbose > 0, streams.width())
        if format == "csv":
            streams.print_out(inert(document).encode())
        else:
            streams.print_out(document)
        if format == "text":
            streams.print_out(f"\n{text.verdict_line(last)}\n")
        else:
            streams.tell(text.verdict_line(last))
    elif last.exit_code:
        streams.tell(text.verdict_line(last))
    for name, path in files:
        replace_bytes(path, render_trend(found, reports, name).encode())
    return last.exit_code


def _split(value: str, *read: Path) -> tuple[str, Path]:
    name, equals, path = value.partition("=")
    if name not in TRENDS or not equals or not path or path == STDOUT:
        known = "|".join(TRENDS)
        raise UsageError(f"--output: expected FORMAT=FILE with FORMAT {known}, got {value!r}")
    return name, place_for(path, "--output", *read)
