"""Where a report goes: to stdout in one format, and into files."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from clair_cli.cli import streams
from clair_cli.cli.places import located
from clair_cli.errors import UsageError
from clair_cli.output.folders import folder_names
from clair_cli.output.publish import append_bytes, linked_folders, replace_bytes
from clair_cli.renderers import (
    BINARY,
    ENDS,
    LOCATED,
    RENDERERS,
    REPORTS,
    FormatName,
    ReportFormat,
    check_format,
    render,
    survey,
    text,
)
from clair_cli.renderers.safe import inert
from clair_cli.report import Report
from clair_cli.results import Survey

STDOUT = "-"
"""The path that means stdout."""
GROUP = "{group}"
"""What stands for the name of a group in the name of a file."""
SUMMARY = "GITHUB_STEP_SUMMARY"
"""The variable in which GitHub names the file that becomes the summary of a job."""


@dataclass(frozen=True, slots=True)
class Delivery:
    """The format of stdout, None for nothing at all, formats with the paths of their files, and the
    file that Markdown is appended to."""

    stdout: ReportFormat | None
    files: tuple[tuple[ReportFormat, Path], ...]
    verbose: int
    summary: Path | None = None

    @property
    def talks(self) -> bool:
        """Whether stdout is for a person."""
        return self.stdout == "text"

    @property
    def pages(self) -> bool:
        """Whether a page is asked for."""
        return self.stdout == "html" or any(name == "html" for name, _ in self.files)

    def deliver(self, report: Report, earlier: tuple[Report, ...] = ()) -> int:
        """Print and write the report, and return its exit code; a page shows the trend since the
        `earlier` ones, oldest first. Raises OutputError."""
        if self.stdout == "text":
            color, width = streams.is_colored(), streams.width()
            shown = text.render(report, color=color, verbose=self.verbose, width=width)
            streams.print_out(shown)
        elif self.stdout is not None:
            document = _document(report, self.stdout, earlier)
            if self.stdout in ENDS and isinstance(document, str):
                document = inert(document).encode()
            streams.print_out(document, commands=self.stdout == "github")
            streams.tell(text.verdict_line(report))
        elif report.exit_code:  # -q is for tables; a code alone does not say why
            streams.tell(text.verdict_line(report))
        for name, path in self.files:
            replace_bytes(path, _bytes(_document(report, name, earlier)))
        if self.summary is not None:
            append_bytes(self.summary, _bytes(_document(report, "markdown")) + b"\n")
        return report.exit_code

    def check_groups(self, **given: object) -> None:
        """Raises UsageError for what cannot be had of several groups at once, options given included."""
        for name, value in given.items():
            if value:
                text = "is about one cohort; save each group with -o json=FILE-{group}.json"
                raise UsageError(f"--{name}: {text}, and give that to `clair report`")
        if self.stdout not in (None, *get_args(FormatName)):
            text = f"of several groups goes to files; give -o {self.stdout}=FILE-{GROUP}"
            raise UsageError(f"--format: {self.stdout} {text}")
        for name, path in self.files:
            if GROUP not in path.name:
                text = f"every group has a file of its own; put {GROUP} into the name"
                raise UsageError(f"--output: {name}={path}: {text}")

    def deliver_groups(self, found: Survey) -> int:
        """Print all groups, write the report of each to its own files, and return the exit code.

        A group's name in that of a file is what `folder_names` makes of it. Raises OutputError.
        """
        if self.stdout == "text":
            color, width = streams.is_colored(), streams.width()
            streams.print_out(survey.as_text(found, color, self.verbose, width))
        elif self.stdout is not None:
            streams.print_out(RENDERERS[self.stdout](found))
        if self.stdout != "text":
            streams.tell(survey.verdict_line(found))
        names = folder_names([group.name for group in found.groups])
        for group in found.groups:
            for name, path in self.files:
                target = path.with_name(path.name.replace(GROUP, names[group.name]))
                replace_bytes(target, _bytes(_document(group.report, name)))
            if self.summary is not None:
                append_bytes(self.summary, _bytes(_document(group.report, "markdown")) + b"\n")
        return found.exit_code


def _document(report: Report, name: ReportFormat, earlier: tuple[Report, ...] = ()) -> str | bytes:
    return render(located(report) if name in LOCATED else report, name, earlier)


def _bytes(document: str | bytes) -> bytes:
    return document.encode() if isinstance(document, str) else document


def delivery(
    format: ReportFormat,
    outputs: list[str] | None,
    quiet: bool,
    verbose: int,
    *kept: Path,
    github: bool = False,
) -> Delivery:
    """Where --format, --output, --quiet and --github send the report; no file may be
    one of `kept` or lie in a folder of it.

    --quiet silences the table, and not why the exit code is not 0. The path - is stdout, which takes one
    document: UsageError where two formats ask for it, for every path that cannot be written, and where
    a format needs a library that is not there.
    """
    wanted = [_split(value) for value in outputs or []]
    for name in {format, *(name for name, _ in wanted)}:
        check_format(name)
    to_stdout = {name for name, path in wanted if path == STDOUT}
    if not (quiet and format == "text"):
        to_stdout.add(format)
    if len(to_stdout) > 1:
        raise UsageError(
            f"--output: {' and '.join(sorted(to_stdout))} would both go to stdout; "
            "ask for one of them with --format, or silence the table with -q"
        )
    if to_stdout & BINARY and streams.is_terminal():
        name = next(iter(to_stdout))
        raise UsageError(f"--format: {name} is for a file or a pipe; give -o {name}=FILE")
    places = _places(kept)
    files = tuple((name, _checked(path, places)) for name, path in wanted if path != STDOUT)
    check_apart(path for _, path in files)
    summary = _summary(places) if github else None
    return Delivery(next(iter(to_stdout), None), files, verbose, summary)


def _summary(places: list[str]) -> Path:
    path = os.environ.get(SUMMARY)
    if not path:
        text = f"{SUMMARY} is not set; give it in a job of GitHub, elsewhere -o markdown=FILE"
        raise UsageError(f"--github: {text}")
    return _checked(path, places, "--github")


def read_from(folder: Path, followed: bool, *others: Path | None) -> list[Path]:
    """The folder of clients, where links in it lead, if they are followed, and the others there are."""
    linked = linked_folders(folder).values() if followed else ()
    return [folder, *linked, *(path for path in others if path is not None)]


def command_line() -> str:
    """The command as a shell would take it."""
    return shlex.join(["clair", *sys.argv[1:]])


def _split(value: str) -> tuple[ReportFormat, str]:
    given, equals, path = value.partition("=")
    name = next((known for known in REPORTS if known == given), None)
    if name is None or not equals or not path:
        known = "|".join(REPORTS)
        raise UsageError(f"--output: expected FORMAT=PATH with FORMAT {known}, got {value!r}")
    return name, path


def _places(kept: tuple[Path, ...]) -> list[str]:
    """The folders in `kept` by every name they have."""
    return [place for f in kept for place in (os.path.realpath(f), os.path.abspath(f))]


def place_for(path: str, option: str, *kept: Path) -> Path:
    """`path` as the value of `option`, where a file can be written that is not in or one of `kept`."""
    return _checked(path, _places(kept), option)


def check_apart(paths: Iterable[Path]) -> None:
    """Raises UsageError where two outputs are one file: the second would be all that is left."""
    known: set[str] = set()
    for path in paths:
        if (place := os.path.realpath(path)) in known:
            raise UsageError(f"--output: two formats would go to {str(path)!r}; give each a file")
        known.add(place)


def _checked(path: str, places: list[str], option: str = "--output") -> Path:
    """`path`, where a file can be written there and it is not below any of `places`."""
    target = Path(os.path.realpath(path))
    if target.is_dir():
        raise UsageError(f"{option}: {path!r} is a folder; give the name of a file")
    if not target.parent.is_dir():
        parent = str(target.parent)
        raise UsageError(
            f"{option}: {path!r} cannot be written, because there is no folder {parent!r}"
        )
    if not os.access(target if target.exists() else target.parent, os.W_OK):
        raise UsageError(f"{option}: {path!r} is not writable")
    named = target, Path(os.path.abspath(path))
    if any(str(p) in places for p in named):
        raise UsageError(f"{option}: {path!r} is read by this command; give another place")
    if any(p.is_relative_to(q) for p in named for q in places):
        raise UsageError(f"{option}: {path!r} lies among the adapters; give another place")
    return Path(path)
