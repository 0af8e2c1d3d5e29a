"""Every option of the command line, declared once, and the settings that they make."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from clair_cli.errors import UsageError
from clair_cli.settings import Settings

READING, COMPUTING = "What is read", "What is compared, and where"
REFINING, SCORING = "How clients are refined", "How candidates are scored"
WRITING, SHOWING = "What is written", "What is shown"

MAX_HEADER = Settings().max_header_bytes
MAX_MEMORY = f"{Settings().max_memory >> 30}G"
CLIENT_TIMEOUT = Settings().client_timeout


def _option(panel: str, *names: str, **more: Any) -> Any:
    """An option that the help lists under `panel`."""
    return typer.Option(*names, rich_help_panel=panel, **more)


# --- what is read

Folder = Annotated[
    Path,
    typer.Argument(metavar="DIR", help="The folder that holds one sub-folder or file per client."),
]
ReadAs = Annotated[
    Literal["lora", "update", "weights"] | None,
    _option(
        READING,
        "--as",
        help="What the files hold: LoRA adapters, plain updates, or whole weights of which those of "
        "--base are subtracted. The default is lora, or weights with --base.",
    ),
]
Base = Annotated[
    Path | None,
    _option(READING, help="The base model's .safetensors or .npz file; implies --as weights."),
]
Config = Annotated[
    Path | None,
    _option(READING, help="An adapter_config.json for files that come without one."),
]
Alpha = Annotated[
    float | None, _option(READING, help="The lora_alpha of files that come without a config.")
]
Reference = Annotated[
    Path | None,
    _option(
        READING,
        metavar="FOLDER",
        help="A PEFT adapter that gives arrays without names their names, config and scale.",
    ),
]
Differences = Annotated[
    bool,
    _option(
        READING,
        "--differences",
        help="Read PiSSA, OLoRA and the like, too, and judge them by what clients differ in.",
    ),
]
Ignore = Annotated[
    list[str] | None,
    _option(
        READING,
        metavar="GLOB",
        help="A pattern of names in DIR that are no clients, such as logs or '*.bak'. Repeatable.",
    ),
]
Links = Annotated[
    bool, _option(READING, "--follow-symlinks", help="Follow links that leave the folder, too.")
]
MaxHeader = Annotated[
    int,
    _option(
        READING,
        "--max-header",
        min=8,
        help="The largest safetensors header that is read, in bytes.",
    ),
]

MaxMemory = Annotated[
    str,
    _option(
        READING,
        metavar="BYTES",
        help="The most memory that reading one update of a client may take, as 16G or in bytes.",
    ),
]
ClientTimeout = Annotated[
    float,
    _option(
        READING,
        metavar="SECONDS",
        help="How long opening a client may take, and reading it beyond twice what half of the "
        "clients take.",
    ),
]

# --- what is compared, and where

Modules = Annotated[
    Literal["shared", "same"],
    _option(
        COMPUTING,
        help="Compare on the modules that all clients share, or call a client broken whose modules "
        "are not the same as those of most.",
    ),
]
Device = Annotated[
    Literal["auto", "cpu", "cuda"],
    _option(COMPUTING, help="Where to compute; auto takes a CUDA device where there is one."),
]
Threads = Annotated[
    int,
    _option(
        COMPUTING,
        min=0,
        max=256,
        help="Threads of the linear algebra; 0: one where modules are narrow, else torch's own number.",
    ),
]

# --- how clients are refined

Strength = Annotated[
    str,
    _option(
        REFINING,
        metavar="auto|0..1",
        help="How far clients move to their mean: 0 keeps every adapter as it is, 1 moves all but "
        "the kept directions. The default goes by the adapters.",
    ),
]
Strengths = Annotated[
    str | None,
    _option(
        REFINING,
        "--path",
        metavar="S,S,...",
        help="Write a folder for each of several strengths, such as 0,0.5,auto, from which clair "
        "select then chooses.",
    ),
]
SubspaceRank = Annotated[
    str,
    _option(
        REFINING,
        metavar="auto|N",
        help="How many directions per module a client keeps. The default keeps as many as carry its "
        "deviation from the mean.",
    ),
]
Side = Annotated[
    Literal["auto", "own", "left", "right", "client"],
    _option(
        REFINING,
        help="Whose directions are kept: the client's own, those of the outputs (left) or inputs "
        "(right) that all share, or combinations of clients.",
    ),
]
Replicates = Annotated[
    Literal["auto", "checkpoints", "none"],
    _option(
        REFINING,
        help="Where further adapters of one client are: in its rep-* folders, in its late "
        "checkpoints, or nowhere.",
    ),
]
Tasks = Annotated[
    Literal["auto", "same", "related", "own"],
    _option(
        REFINING,
        help="What the clients do: one task (same), related ones, or each its own. The default "
        "guesses from the adapters, and the report says so.",
    ),
]
Weights = Annotated[
    Path | None,
    _option(
        REFINING,
        help="Samples per client, which weigh the means: a JSON object, or lines of client,count.",
    ),
]
Include = Annotated[
    list[str] | None,
    _option(
        REFINING,
        metavar="CLIENT",
        help="Count this client as benign whatever its verdict, also for --fail-on. Repeatable.",
    ),
]
Exclude = Annotated[
    list[str] | None,
    _option(
        REFINING, metavar="CLIENT", help="Leave this client out of the refinement. Repeatable."
    ),
]
RefineSuspicious = Annotated[
    bool,
    _option(
        REFINING,
        "--refine-suspicious",
        help="Write refined adapters of suspicious clients, too. They count in no mean.",
    ),
]
AllowDora = Annotated[
    bool,
    _option(
        REFINING,
        "--allow-dora",
        help="Refine the product B A of DoRA adapters; every client keeps its own magnitudes.",
    ),
]

# --- what is written

Out = Annotated[
    Path, _option(WRITING, help="The new folder for the refined adapters and the report.")
]
Rank = Annotated[
    str,
    _option(
        WRITING,
        metavar="keep|auto|exact|N",
        help="The rank that is written: the client's own, the least whose cut costs little (auto), one "
        "that cuts nothing off, or N.",
    ),
]
GlobalRank = Annotated[
    str,
    _option(
        WRITING,
        metavar="auto|exact|N",
        help="The rank of OUT/global: the least whose cut costs little (auto), one that cuts nothing "
        "off, or N.",
    ),
]
Write = Annotated[
    Literal["keep", "uniform", "compact"],
    _option(
        WRITING,
        help="Keep the client's config, or write scale 1 with one rank for all modules (uniform), "
        "which every loader reads, or with a rank per module (compact).",
    ),
]
WriteGlobal = Annotated[
    bool,
    _option(WRITING, "--global", help="Write the mean of the benign clients, too: OUT/global."),
]
Overwrite = Annotated[
    bool, _option(WRITING, "--overwrite", help="Replace the output folder if clair has written it.")
]
Sign = Annotated[
    Path | None,
    _option(
        WRITING,
        metavar="KEY",
        help="Sign the output, its inputs and settings with this Ed25519 private key, in PEM or "
        "OpenSSH's form. Needs clair-cli[sign].",
    ),
]

# --- what is shown

Format = Annotated[
    Literal["text", "json"],
    _option(SHOWING, "--format", "-f", help="What goes to stdout: a table, or one JSON document."),
]
Outputs = Annotated[
    list[str] | None,
    _option(
        SHOWING,
        "--output",
        "-o",
        metavar="FORMAT=PATH",
        help="Write the report to a file, too, as text or json. The path - is stdout, in place of "
        "the table: with -q, or with -f of the same format. Repeatable.",
    ),
]
FailOn = Annotated[
    Literal["suspicious", "minority", "contaminated", "broken", "never"],
    _option(SHOWING, help="The least verdict that makes the exit code 1."),
]
Regate = Annotated[
    Literal["suspicious", "minority", "contaminated", "broken", "never"] | None,
    _option(
        SHOWING,
        "--fail-on",
        help="The least verdict that makes the exit code 1. The default is the report's own.",
    ),
]
Quiet = Annotated[
    bool, _option(SHOWING, "--quiet", "-q", help="Print no table, and show no progress.")
]
Verbose = Annotated[
    int,
    _option(
        SHOWING,
        "--verbose",
        "-v",
        count=True,
        show_default=False,
        help="Give every client a line. -vv also lists every client's worst modules and all modules, "
        "and shows the traceback of an internal error.",
    ),
]
NoProgress = Annotated[bool, _option(SHOWING, "--no-progress", help="Show no progress bar.")]

# --- what only one command has

Adapter = Annotated[
    Path,
    typer.Argument(
        metavar="PATH", help="One adapter: its folder, or its file. Or a folder of clients."
    ),
]
Saved = Annotated[
    Path, typer.Argument(metavar="REPORT.json", help="A report that clair has saved as JSON.")
]
Written = Annotated[Path, typer.Argument(metavar="OUT", help="A folder that clair has written.")]
PublicKey = Annotated[
    Path | None,
    _option(
        READING,
        "--key",
        metavar="PUBLIC",
        help="Check that the holder of this Ed25519 public key has signed every file. Needs "
        "clair-cli[sign].",
    ),
]
Candidates = Annotated[
    Path, typer.Argument(metavar="OUT", help="A folder that clair refine --path has written.")
]
Evaluate = Annotated[
    str,
    _option(
        SCORING,
        "--eval",
        metavar="CMD",
        help="The command that scores one candidate. {adapter} in it becomes the candidate's folder "
        "and {client} the client's id, each a whole argument; CLAIR_ADAPTER and CLAIR_CLIENT in its "
        "environment say the same. The last word that it prints is the loss.",
    ),
]
Higher = Annotated[
    bool,
    _option(
        SCORING,
        "--higher-is-better",
        help="The command prints what is better when higher, such as an accuracy.",
    ),
]
Timeout = Annotated[
    float, _option(SCORING, min=0.1, help="Seconds after which a run of the command has failed.")
]
Jobs = Annotated[
    int, _option(SCORING, min=1, max=256, help="How many candidates are scored at the same time.")
]
Resume = Annotated[
    Path | None,
    _option(
        SCORING,
        metavar="FILE",
        help="Keep every score in FILE, and run nothing again whose command and adapter are the same.",
    ),
]
Chosen = Annotated[
    Path | None,
    _option(WRITING, "--out", help="The new folder for the best adapter of every client."),
]


# --- the settings they make


def settings_from(given: Mapping[str, Any]) -> Settings:
    """The settings that the arguments of a command ask for; arguments that are no setting are skipped.

    Raises UsageError for what is neither the word nor the number that an option takes.
    """
    names = {f.name for f in fields(Settings)}
    values = {k: v for k, v in given.items() if k in names and v is not None}
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    values |= {k: PARSERS[k](v) for k, v in values.items() if k in PARSERS}
    if "base" in values:
        values.setdefault("read_as", "weights")
    return Settings(**values)


def flag(name: str) -> str:
    """The option that sets the setting `name`."""
    return "--" + FLAGS.get(name, name.replace("_", "-"))


FLAGS = {"read_as": "as", "write_global": "global", "max_header_bytes": "max-header"}
"""Settings whose option has another name."""


def _number_or(
    name: str, kind: Callable[[str], Any], *words: str
) -> Callable[[str], int | float | str]:
    def parse(value: str) -> int | float | str:
        try:
            return value if value in words else kind(value)
        except ValueError:
            text = f"expected {', '.join(words)} or a number, got {value!r}"
            raise UsageError(f"{flag(name)}: {text}") from None

    return parse


def _bytes(value: str) -> int:
    number, unit = (value[:-1], value[-1]) if value[-1:] in UNITS else (value, "")
    try:
        return int(float(number) * UNITS.get(unit, 1))
    except (ValueError, OverflowError):
        text = f"expected a number of bytes, such as 16G or 500M, got {value!r}"
        raise UsageError(f"{flag('max_memory')}: {text}") from None


UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
"""What may follow a number of bytes."""


def _strengths(value: str) -> tuple[Any, ...]:
    return tuple(map(_number_or("path", float, "auto"), map(str.strip, value.split(","))))


PARSERS: dict[str, Callable[[str], Any]] = {
    "subspace_rank": _number_or("subspace_rank", int, "auto"),
    "strength": _number_or("strength", float, "auto"),
    "rank": _number_or("rank", int, "keep", "auto", "exact"),
    "global_rank": _number_or("global_rank", int, "auto", "exact"),
    "path": _strengths,
    "max_memory": _bytes,
}
"""Options that take a word or a number, and so arrive as text."""
