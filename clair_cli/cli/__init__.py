"""The command line: the only file that prints, and the only one that knows exit codes of a run."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from clair_cli import __version__
from clair_cli.errors import AdapterError, ClairError, OutputError, UsageError
from clair_cli.output.publish import linked_folders
from clair_cli.renderers import RENDERERS, text
from clair_cli.renderers.safe import safe_text
from clair_cli.report import Report, from_dict, gated
from clair_cli.settings import Settings

if TYPE_CHECKING:
    from clair_cli.selection import Selection

EXIT_CODES = """\b
Exit codes:
    0  done, every client accounted for, nothing at or above --fail-on
    1  done, and at least one client at or above --fail-on
       (default contaminated; broken counts as above it)
    2  usage: bad option, folder missing, OUT inside it; nothing was read
    3  no verdict: fewer than 3 usable clients, nothing comparable,
       not identifiable
    4  result computed but could not be written
   70  internal error
  130  interrupted (143: terminated); staging removed"""

VERIFY_CODES = """\b
Exit codes:
    0  every file is as it was written
    1  a file is missing, changed or foreign, or the manifest is torn
    2  usage: no such folder, or no manifest in it
    4  the answer could not be written
   70  internal error"""

SELECT_CODES = """\b
Exit codes:
    0  every client has a choice
    1  some client has none: its command failed for every candidate
    2  usage: no whole output of clair refine --path, no {adapter} in CMD
    3  no client has a choice; nothing was written
    4  the chosen adapters could not be written
   70  internal error
  130  interrupted (143: terminated); staging removed"""

app = typer.Typer(
    name="clair",
    help="Find the contaminated clients in a folder of LoRA adapters, and refine the others.",
    epilog=EXIT_CODES,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Folder = Annotated[
    Path,
    typer.Argument(metavar="DIR", help="Folder with one sub-folder or file per client."),
]
Format = Annotated[
    Literal["text", "json"], typer.Option("--format", "-f", help="What goes to stdout.")
]
Outputs = Annotated[
    list[str] | None,
    typer.Option("--output", "-o", metavar="FORMAT=PATH", help="Write a report here; repeatable."),
]
FailOn = Annotated[
    Literal["suspicious", "contaminated", "broken", "never"],
    typer.Option(help="The least verdict that makes the exit code 1."),
]
ReadAs = Annotated[
    Literal["lora", "update", "weights"] | None,
    typer.Option("--as", help="LoRA adapters, plain updates, or weights minus --base. [lora]"),
]
Base = Annotated[
    Path | None, typer.Option(help="The base model's .safetensors or .npz; implies --as weights.")
]
Device = Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="Where to compute.")]
Threads = Annotated[int, typer.Option(min=0, max=256, help="Of the linear algebra; 0: by size.")]
Config = Annotated[
    Path | None, typer.Option(help="adapter_config.json for files that come without one.")
]
Alpha = Annotated[float | None, typer.Option(help="lora_alpha for files without a config.")]
Reference = Annotated[
    Path | None,
    typer.Option(metavar="FOLDER", help="PEFT adapter whose names and config .npz arrays have."),
]
Differences = Annotated[
    bool,
    typer.Option("--differences", help="Also PiSSA, OLoRA, ...: judge by differences alone."),
]
Modules = Annotated[
    Literal["shared", "same"],
    typer.Option(help="Compare on the modules all share, or call clients with other ones broken."),
]
Links = Annotated[bool, typer.Option("--follow-symlinks", help="Also links that leave the folder.")]
MaxHeader = Annotated[int, typer.Option(min=8, help="Largest safetensors header in bytes.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print no table and no progress.")]
Verbose = Annotated[
    int, typer.Option("--verbose", "-v", count=True, help="A line for every client.")
]
NoProgress = Annotated[bool, typer.Option("--no-progress", help="No progress bar.")]
MAX_HEADER = Settings().max_header_bytes


def run(arguments: list[str]) -> int:
    """Run one command and return its exit code; errors of clair's own become one line on stderr."""
    if "" in arguments:  # Path("") is the current folder: not what an unset variable means
        return _fail("an argument is empty; is a variable not set?", UsageError.exit_code)
    command = typer.main.get_command(app)
    try:
        result = command(args=arguments or ["--help"], prog_name="clair", standalone_mode=False)
        if result == 130:  # typer's answer to an interrupt
            raise KeyboardInterrupt
        return int(result or 0) if arguments else UsageError.exit_code
    except SystemExit:
        if "--help" not in arguments:
            raise
        return 0  # typer exits 1 when the reader of the help has gone
    except ClairError as error:
        return _fail(str(error), error.exit_code)
    except Exception as error:
        if hasattr(error, "format_message"):  # the parser's own complaints, whichever click it is
            return _fail(f"{error.format_message()} (see clair --help)", UsageError.exit_code)
        raise


@app.callback(invoke_without_command=True)
def main(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    if version:
        _print(f"clair {__version__}\n")
        raise typer.Exit(0)


@app.command(epilog=EXIT_CODES)
def detect(
    folder: Folder,
    read_as: ReadAs = None,
    base: Base = None,
    format: Format = "text",
    output: Outputs = None,
    fail_on: FailOn = "contaminated",
    device: Device = "auto",
    threads: Threads = 0,
    config: Config = None,
    alpha: Alpha = None,
    differences: Differences = False,
    reference: Reference = None,
    modules: Modules = "shared",
    follow_symlinks: Links = False,
    max_header: MaxHeader = MAX_HEADER,
    quiet: Quiet = False,
    verbose: Verbose = 0,
    no_progress: NoProgress = False,
) -> int:
    """Say which clients are contaminated, where, how sure, and why."""
    settings = Settings(
        fail_on=fail_on, device=device, threads=threads, config=config, alpha=alpha,
        differences=differences,
        reference=reference,
        modules=modules, follow_symlinks=follow_symlinks, max_header_bytes=max_header,
        read_as=_read_as(read_as, base), base=base,
    )  # fmt: skip
    outputs = _outputs(output, folder)
    from clair_cli.pipeline import detect as run_detect

    with _Progress(quiet or no_progress) as progress:
        report = run_detect(folder, settings, progress, _command())
    return _deliver(report, format, outputs, quiet, verbose)


@app.command(epilog=EXIT_CODES)
def refine(
    folder: Folder,
    out: Annotated[Path, typer.Option(help="New folder for the refined adapters and the report.")],
    subspace_rank: Annotated[
        str, typer.Option(metavar="auto|N", help="Directions in which a client keeps its own.")
    ] = "auto",
    side: Annotated[
        Literal["auto", "own", "left", "right", "client"],
        typer.Option(help="Whose directions those are: its own, shared ones, or client modes."),
    ] = "auto",
    strength: Annotated[
        str,
        typer.Option(metavar="auto|0..1", help="0 keeps the local adapter; 1: no weak direction."),
    ] = "auto",
    path: Annotated[
        str | None,
        typer.Option(
            metavar="S,S,...",
            help="A folder per strength, of all directions, for select: 0,0.5,auto.",
        ),
    ] = None,
    rank: Annotated[
        str, typer.Option(metavar="keep|exact|N", help="Rank of the adapters written.")
    ] = "keep",
    write: Annotated[
        Literal["keep", "uniform", "compact"],
        typer.Option(
            help="The client's config; or scale 1 and one rank, which every loader reads."
        ),
    ] = "keep",
    replicates: Annotated[
        Literal["auto", "checkpoints", "none"],
        typer.Option(help="Further adapters of a client: rep-* folders, or late checkpoints."),
    ] = "auto",
    weights: Annotated[
        Path | None, typer.Option(help="Samples per client, JSON or client,count lines, for means.")
    ] = None,
    include: Annotated[
        list[str] | None, typer.Option(metavar="CLIENT", help="Counts as benign; repeatable.")
    ] = None,
    exclude: Annotated[
        list[str] | None, typer.Option(metavar="CLIENT", help="Is left out; repeatable.")
    ] = None,
    refine_suspicious: Annotated[
        bool, typer.Option("--refine-suspicious", help="They receive, and count in no mean.")
    ] = False,
    allow_dora: Annotated[
        bool, typer.Option("--allow-dora", help="Refine B A of DoRA; magnitudes stay as they are.")
    ] = False,
    write_global: Annotated[
        bool, typer.Option("--global", help="Also write the mean of the benign as OUT/global.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace OUT if clair wrote it.")
    ] = False,
    read_as: ReadAs = None,
    base: Base = None,
    format: Format = "text",
    output: Outputs = None,
    fail_on: FailOn = "never",
    device: Device = "auto",
    threads: Threads = 0,
    config: Config = None,
    alpha: Alpha = None,
    differences: Differences = False,
    reference: Reference = None,
    modules: Modules = "shared",
    follow_symlinks: Links = False,
    max_header: MaxHeader = MAX_HEADER,
    quiet: Quiet = False,
    verbose: Verbose = 0,
    no_progress: NoProgress = False,
) -> int:
    """Detect, then write refined adapters of the benign clients and the report into --out."""
    settings = Settings(
        fail_on=fail_on, device=device, threads=threads, config=config, alpha=alpha,
        differences=differences,
        reference=reference,
        modules=modules, follow_symlinks=follow_symlinks, max_header_bytes=max_header,
        read_as=_read_as(read_as, base), base=base,
        write_global=write_global, overwrite=overwrite, write=write,
        subspace_rank=_word_or("auto", int, "--subspace-rank", subspace_rank),
        strength=_word_or("auto", float, "--strength", strength),
        rank="exact" if rank == "exact" else _word_or("keep", int, "--rank", rank, "keep, exact"),
        side=side, replicates=replicates, weights=weights, path=_strengths(path),
        include=tuple(include or ()), exclude=tuple(exclude or ()),
        refine_suspicious=refine_suspicious, allow_dora=allow_dora,
    )  # fmt: skip
    outputs = _outputs(output, folder, out)
    from clair_cli.pipeline import refine as run_refine

    with _Progress(quiet or no_progress) as progress:
        report = run_refine(folder, out, settings, progress, _command())
    code = _deliver(report, format, outputs, quiet, verbose)
    if report.refinement is not None and format == "text" and not quiet:
        _print(f"refined adapters and report: {safe_text(str(out))}\n")
    return code


@app.command()
def inspect(
    path: Annotated[
        Path, typer.Argument(metavar="PATH", help="One adapter: a folder or its file.")
    ],
    read_as: ReadAs = None,
    base: Base = None,
    format: Format = "text",
    config: Config = None,
    alpha: Alpha = None,
    differences: Differences = False,
    reference: Reference = None,
    follow_symlinks: Links = False,
    max_header: MaxHeader = MAX_HEADER,
) -> int:
    """Show one adapter: modules, shapes, ranks, scaling, norms. Exit code 1 if broken."""
    from clair_cli.inspection import inspect as run_inspect

    settings = Settings(
        read_as=_read_as(read_as, base),
        base=base,
        config=config,
        alpha=alpha,
        differences=differences,
        reference=reference,
        follow_symlinks=follow_symlinks,
        max_header_bytes=max_header,
    )
    if not os.path.lexists(path):
        raise UsageError(f"{path}: no such file or folder")
    try:
        found = run_inspect(path, settings)
    except AdapterError as error:
        return _fail(f"broken: {error.code} {error}", error.exit_code)
    _print(found.as_json() if format == "json" else found.as_text())
    return 0


@app.command(epilog=SELECT_CODES)
def select(
    folder: Annotated[
        Path, typer.Argument(metavar="OUT", help="What clair refine --path has written.")
    ],
    evaluate: Annotated[
        str,
        typer.Option(
            "--eval",
            metavar="CMD",
            help="Runs per candidate: {adapter} is its folder, {client} the id; prints a loss last.",
        ),
    ],
    out: Annotated[
        Path | None, typer.Option(help="New folder for the best adapter of every client.")
    ] = None,
    higher: Annotated[
        bool, typer.Option("--higher-is-better", help="The command prints an accuracy.")
    ] = False,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds that one run may take.")] = 600.0,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace --out if clair wrote it.")
    ] = False,
    format: Format = "text",
    quiet: Quiet = False,
    no_progress: NoProgress = False,
) -> int:
    """Keep the best strength per client, by your own command on its own validation data."""
    from clair_cli.output.publish import check_output
    from clair_cli.selection import select as run_select
    from clair_cli.selection import write_selection

    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder")
    if out is not None:
        check_output(out, folder, overwrite)
    with _Progress(quiet or no_progress) as progress:
        found = run_select(folder, evaluate, higher, timeout, progress)
    if format == "json":
        _print(found.as_json())
    elif not quiet:
        _print(_chosen(found))
    if out is not None and found.exit_code != 3:
        write_selection(found, folder, out, overwrite)
        if format == "text" and not quiet:
            _print(f"chosen adapters and selection.json: {safe_text(str(out))}\n")
    return found.exit_code


@app.command(epilog=EXIT_CODES)
def report(
    path: Annotated[Path, typer.Argument(metavar="REPORT.json", help="A report saved by clair.")],
    format: Format = "text",
    output: Outputs = None,
    fail_on: Annotated[
        Literal["suspicious", "contaminated", "broken", "never"] | None,
        typer.Option(help="Gate anew; default: what the report was made with."),
    ] = None,
    quiet: Quiet = False,
    verbose: Verbose = 0,
) -> int:
    """Re-render and re-gate a saved report, without a new scan."""
    outputs = _outputs(output)
    saved = from_dict(_read_json(path))
    chosen = fail_on or str(saved.settings.get("fail_on", "contaminated"))
    return _deliver(gated(saved, chosen), format, outputs, quiet, verbose)


@app.command(epilog=VERIFY_CODES)
def verify(
    folder: Annotated[Path, typer.Argument(metavar="OUT", help="A folder that clair has written.")],
    format: Format = "text",
    quiet: Quiet = False,
) -> int:
    """Compare a folder that clair has written with its manifest."""
    from clair_cli.output.manifest import MANIFEST, differences, read_manifest

    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder")
    if not os.path.lexists(folder / MANIFEST):
        raise UsageError(f"{folder}: has no {MANIFEST}; give a folder that clair has written")
    found = differences(folder)
    count = len((read_manifest(folder) or {"files": []})["files"])
    if format == "json":
        lines = [{"name": name, "difference": what} for name, what in found]
        tool = {"name": "clair", "version": __version__}
        data: dict[str, Any] = {"schema_version": "1.0", "tool": tool}
        data |= {"folder": str(folder), "files": count, "differences": lines}
        _print(json.dumps(data, indent=1) + "\n")
    elif not quiet:
        shown = "".join(f"{safe_text(name)}: {safe_text(what)}\n" for name, what in found)
        last = (
            f"FAIL: {len(found)} differ" if found else f"PASS: {count} files as they were written"
        )
        _print(f"{shown}{last}\n")
    return int(bool(found))


# --- arguments


def _read_as(
    name: Literal["lora", "update", "weights"] | None, base: Path | None
) -> Literal["lora", "update", "weights"]:
    return name or ("weights" if base else "lora")


def _word_or(
    word: str, kind: Callable[[str], Any], name: str, value: str, words: str | None = None
) -> Any:
    try:
        return value if value == word else kind(value)
    except ValueError:
        text = f"expected {words or word} or a number, got {value!r}"
        raise UsageError(f"{name}: {text}") from None


def _strengths(value: str | None) -> tuple[Any, ...]:
    parts = [] if value is None else value.split(",")
    return tuple(_word_or("auto", float, "--path", part.strip()) for part in parts)


def _outputs(values: list[str] | None, *kept: Path) -> list[tuple[str, Path]]:
    """Formats and paths; none may lie in a folder of `kept`, which holds the adapters."""
    places = [place for f in kept for place in (os.path.realpath(f), os.path.abspath(f))]
    places += [str(linked) for folder in kept for linked in linked_folders(folder)]
    found = []
    for value in values or []:
        name, equals, path = value.partition("=")
        if name not in RENDERERS or not equals or not path:
            known = "|".join(RENDERERS)
            raise UsageError(f"--output: expected FORMAT=PATH with FORMAT {known}, got {value!r}")
        target = Path(os.path.realpath(path))
        if not target.parent.is_dir() or target.is_dir():
            raise UsageError(f"--output: {path!r} is a folder, or its folder does not exist")
        if not os.access(target if target.exists() else target.parent, os.W_OK):
            raise UsageError(f"--output: {path!r} is not writable")
        if any(p.is_relative_to(q) for p in (target, Path(os.path.abspath(path))) for q in places):
            raise UsageError(f"--output: {path!r} lies among the adapters; give another place")
        found.append((name, Path(path)))
    return found


def _read_json(path: Path) -> Any:
    from clair_cli.formats.strict_json import parse_object

    try:
        data = path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror or error}") from error
    return parse_object(data, str(path), UsageError)


def _command() -> str:
    return shlex.join(["clair", *sys.argv[1:]])


# --- output


def _deliver(
    report: Report, format: str, outputs: list[tuple[str, Path]], quiet: bool, verbose: int
) -> int:
    """Print and write the report; its exit code, or 4 where a file could not be written."""
    from clair_cli.output.publish import replace_bytes

    if format == "text":
        if not quiet:
            width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
            _print(text.render(report, color=_colored(), verbose=verbose > 0, width=width))
    else:
        _print(RENDERERS[format](report))
        _tell(text.verdict_line(report))
    for name, path in outputs:
        replace_bytes(path, RENDERERS[name](report).encode())
    return report.exit_code


def _chosen(selection: Selection) -> str:
    """One line per client: what was chosen, and every score; then each way to fail once."""
    lines, failures = [], Counter[str]()
    for choice in selection.choices:
        failures.update(t.error for t in choice.tried if t.error is not None)
        scores = ", ".join(
            f"{t.label}: {'failed' if t.score is None else format(t.score, '.4g')}"
            for t in choice.tried
        )
        best = choice.best.label if choice.best else "none"
        lines.append(f"{choice.client}   {best}   ({scores})")
    lines += [f"failed {_times(n)}: {error}" for error, n in failures.most_common()]
    without = [c.client for c in selection.choices if c.best is None]
    done = len(selection.choices) - len(without)
    lines.append(f"{done} of {len(selection.choices)} clients have a choice.")
    if without:
        text = "mend the command" if not done else "they get no adapter"
        lines.append(f"without: {', '.join(without)}; {text}")
    return "".join(f"{safe_text(line)}\n" for line in lines)


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"


def _colored() -> bool:
    return sys.stdout.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"


def _print(product: str) -> None:
    """All of stdout goes through here. A reader that has gone changes nothing; a full disk does."""
    encoding = sys.stdout.encoding or "ascii"
    try:
        sys.stdout.write(product.encode(encoding, "backslashreplace").decode(encoding))
        sys.stdout.flush()
    except BrokenPipeError:
        return
    except OSError as error:
        raise OutputError(f"stdout: {error.strerror or error}") from error


def _tell(line: str) -> None:
    """One line on stderr."""
    encoding = sys.stderr.encoding or "ascii"
    with suppress(OSError):
        sys.stderr.write(f"{line}\n".encode(encoding, "backslashreplace").decode(encoding))


def _fail(message: str, code: int) -> int:
    _tell(f"clair: {safe_text(message)}")
    return code


class _Progress:
    """A bar on stderr, on a terminal only, from the second half second on."""

    def __init__(self, off: bool) -> None:
        self.off = off or not sys.stderr.isatty()
        self.shown_at = time.monotonic() + 0.5

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if not self.off:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()

    def __call__(self, what: str, done: int, total: int) -> None:
        now = time.monotonic()
        if self.off or now < self.shown_at:
            return
        self.shown_at = now + 0.1
        filled = 24 * done // total if total else 0
        bar = f"[{'#' * filled}{'.' * (24 - filled)}] {done}/{total}" if total else f"step {done}"
        sys.stderr.write(f"\r\x1b[K{what} {bar}")
        sys.stderr.flush()
