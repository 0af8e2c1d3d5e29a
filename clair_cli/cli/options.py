"""Options of several commands, each declared once, and arguments."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from clair_cli.renderers import ReportFormat as AnyFormat
from clair_cli.renderers.plots import Kind as AnyKind
from clair_cli.settings import Settings

READING, COMPUTING = "What is read", "What is compared, and where"
WRITING, SHOWING, GATING = "What is written", "What is shown", "What fails"
CONFIGURING = "Where options come from"

MAX_HEADER = Settings().max_header_bytes
MAX_MEMORY = f"{Settings().max_memory >> 30}G"
CLIENT_TIMEOUT = Settings().client_timeout
CACHE_SIZE = f"{Settings().cache_size >> 30}G"


def option(panel: str, *names: str, **more: Any) -> Any:
    """An option that the help lists under `panel`."""
    return typer.Option(*names, rich_help_panel=panel, **more)


# --- what is read

Folder = Annotated[
    Path,
    typer.Argument(metavar="DIR", help="The folder that holds one sub-folder or file per client."),
]
ReadAs = Annotated[
    Literal["lora", "update", "weights"] | None,
    option(
        READING,
        "--as",
        help="What the files hold: LoRA adapters, plain updates, or whole weights of which those of "
        "--base are subtracted. The default is lora, or weights with --base.",
    ),
]
Base = Annotated[
    Path | None,
    option(READING, help="The base model's .safetensors or .npz file; implies --as weights."),
]
Config = Annotated[
    Path | None,
    option(
        READING, "--adapter-config", help="An adapter_config.json for files that come without one."
    ),
]
Alpha = Annotated[
    float | None, option(READING, help="The lora_alpha of files that come without a config.")
]
Reference = Annotated[
    Path | None,
    option(
        READING,
        metavar="FOLDER",
        help="A PEFT adapter that gives arrays without names their names, config and scale.",
    ),
]
Since = Annotated[
    Path | None,
    option(
        READING,
        metavar="ADAPTER",
        help="The adapter that the server sent before this round: what each client changed since is "
        "judged and refined. Or a folder of adapters, as clair refine writes it: each client's own by "
        "its name, or global.",
    ),
]
LaterRound = Annotated[
    Literal["note", "refuse"],
    option(
        COMPUTING,
        help="What adapters get that look like a later round's, where --since is not given: a note, or "
        "no verdict.",
    ),
]
Differences = Annotated[
    bool,
    option(
        READING,
        "--differences",
        help="Read PiSSA, OLoRA and the like, too, and judge them by what clients differ in.",
    ),
]
Ignore = Annotated[
    list[str] | None,
    option(
        READING,
        metavar="GLOB",
        help="A pattern of names in DIR that are no clients, such as logs or '*.bak'. Repeatable.",
    ),
]
Links = Annotated[
    bool, option(READING, "--follow-symlinks", help="Follow links that leave the folder, too.")
]
MaxHeader = Annotated[
    int,
    option(
        READING,
        "--max-header",
        min=8,
        help="The largest safetensors header that is read, in bytes.",
    ),
]

MaxMemory = Annotated[
    str,
    option(
        READING,
        metavar="BYTES",
        help="The most memory that reading one update of a client may take, as 16G or in bytes.",
    ),
]
ClientTimeout = Annotated[
    float,
    option(
        READING,
        metavar="SECONDS",
        help="How long opening a client may take, and reading it beyond twice what half of the "
        "clients take.",
    ),
]

# --- what is compared, and where

Modules = Annotated[
    Literal["shared", "same"],
    option(
        COMPUTING,
        help="Compare on the modules that all clients share, or call a client broken whose modules "
        "are not the same as those of most.",
    ),
]
GroupBy = Annotated[
    Literal["base", "shapes"] | None,
    option(
        COMPUTING,
        help="Judge strangers in groups: of one base model and the shapes of its modules, or of these "
        "shapes whatever the base is called. Every group is a cohort with its own report.",
    ),
]
Device = Annotated[
    Literal["auto", "cpu", "cuda"],
    option(COMPUTING, help="Where to compute; auto takes a CUDA device where there is one."),
]
Engine = Annotated[
    Literal["local", "ray"],
    option(
        COMPUTING,
        help="Who reads and computes: this process, or the machines of a Ray cluster, which RAY_ADDRESS "
        "names. The report is the same. Needs clair-cli[ray].",
    ),
]
Threads = Annotated[
    int,
    option(
        COMPUTING,
        min=0,
        max=256,
        help="Threads of the linear algebra; 0: one where modules are narrow, else torch's own number.",
    ),
]

Exact = Annotated[
    bool,
    option(
        COMPUTING,
        help="Compare many clients by their whole updates, not by sketches, and refine them by their "
        "whole mean.",
    ),
]

Cache = Annotated[
    Path | None,
    option(
        COMPUTING,
        metavar="FOLDER",
        help="Keep hashes, sketches and tables in FOLDER, and read nothing again that has not changed. "
        "It may be removed at any moment.",
    ),
]
CacheSize = Annotated[
    str,
    option(
        COMPUTING,
        metavar="BYTES",
        help="The most that --cache takes, as 10G or in bytes; what was used longest ago goes first.",
    ),
]

# --- what is written

Out = Annotated[
    Path, option(WRITING, help="The new folder for the refined adapters and the report.")
]
Rank = Annotated[
    str,
    option(
        WRITING,
        metavar="keep|auto|exact|N",
        help="The rank that is written: the client's own, the least whose cut costs little (auto), one "
        "that cuts nothing off, or N.",
    ),
]
GlobalRank = Annotated[
    str,
    option(
        WRITING,
        metavar="auto|exact|N",
        help="The rank of OUT/global: the least whose cut costs little (auto), one that cuts nothing "
        "off, or N.",
    ),
]
Write = Annotated[
    Literal["keep", "uniform", "compact"],
    option(
        WRITING,
        help="Keep the client's config, or write scale 1 with one rank for all modules (uniform), "
        "which every loader reads, or with a rank per module (compact).",
    ),
]
WriteGlobal = Annotated[
    bool,
    option(WRITING, "--global", help="Write the mean of the benign clients, too: OUT/global."),
]
Overwrite = Annotated[
    bool, option(WRITING, "--overwrite", help="Replace the output folder if clair has written it.")
]
Sign = Annotated[
    Path | None,
    option(
        WRITING,
        metavar="KEY",
        help="Sign the output, its inputs and settings with this Ed25519 private key, in PEM or "
        "OpenSSH's form. Needs clair-cli[sign].",
    ),
]

# --- what is shown

Format = Annotated[
    Literal["text", "json"],
    option(SHOWING, "--format", "-f", help="What goes to stdout: a table, or one JSON document."),
]
ReportFormat = Annotated[
    AnyFormat,
    option(
        SHOWING,
        "--format",
        "-f",
        metavar="FORMAT",
        help="What goes to stdout: text (a table), json (the whole report), html (a page), markdown, "
        "sarif, junit, github, gitlab, csv, jsonl or parquet. docs/how-to/outputs.md shows each.",
    ),
]
GitHub = Annotated[
    bool,
    option(
        SHOWING,
        "--github",
        help="Append the result as Markdown to the summary of a GitHub Actions job, the file that "
        "GITHUB_STEP_SUMMARY names.",
    ),
]
Outputs = Annotated[
    list[str] | None,
    option(
        SHOWING,
        "--output",
        "-o",
        metavar="FORMAT=PATH",
        help="Write the report to a file, too, in any format of -f. The path - is stdout, in place of "
        "the table: with -q, or with -f of the same format. With --group-by, {group} in the name of the "
        "file stands for each group. Repeatable.",
    ),
]
GATE = (
    "What makes the exit code 1: suspicious, minority, contaminated or broken, each with all that is "
    "worse; several of them with commas, for exactly these; or never."
)
FailOn = Annotated[str, option(GATING, metavar="VERDICT,...", help=GATE)]
Regate = Annotated[
    str | None,
    option(
        GATING,
        "--fail-on",
        metavar="VERDICT,...",
        help=f"{GATE} The default is the report's own.",
    ),
]
Baseline = Annotated[
    Path | None,
    option(
        GATING,
        metavar="REPORT.json",
        help="Gate on what is new since this earlier report only: clients that were not in it, or not "
        "as bad.",
    ),
]
Explain = Annotated[
    list[str] | None,
    option(
        SHOWING,
        metavar="CLIENT",
        help="Explain the verdict on this client in plain words, below the table. Repeatable. A client "
        "that is not there is exit code 2, unless there is a finding.",
    ),
]
Quiet = Annotated[
    bool,
    option(
        SHOWING,
        "--quiet",
        "-q",
        help="Print no table, and show no progress; stderr has one line where the exit code is not 0.",
    ),
]
Verbose = Annotated[
    int,
    option(
        SHOWING,
        "--verbose",
        "-v",
        count=True,
        show_default=False,
        help="Give every client a line, and every reason its code. -vv also lists every client's worst "
        "modules and all modules, and shows the traceback of an internal error.",
    ),
]
NoProgress = Annotated[bool, option(SHOWING, "--no-progress", help="Show no progress bar.")]

Timings = Annotated[
    bool,
    option(
        SHOWING, "--timings", help="Say on stderr where the seconds went; the report has it, too."
    ),
]

# --- where options come from

ConfigFile = Annotated[
    Path | None,
    option(
        CONFIGURING,
        "--config",
        metavar="FILE",
        help="Take options and accepted clients from this TOML file. The default is the nearest "
        "clair.toml, or pyproject.toml with a table tool.clair, from the working folder upwards.",
    ),
]
NoConfig = Annotated[
    bool, option(CONFIGURING, "--no-config", help="Take options and accepted clients from no file.")
]

# --- what only one command has

Adapters = Annotated[
    list[Path],
    typer.Argument(
        metavar="PATH...",
        help="Adapters: each its folder, or its file. Or folders of clients.",
    ),
]
InspectFormat = Annotated[
    Literal["text", "json", "jsonl"],
    option(
        SHOWING,
        "--format",
        "-f",
        help="What goes to stdout: tables, one JSON document, or one on a line for each path.",
    ),
]
Saved = Annotated[
    list[Path],
    typer.Argument(
        metavar="REPORT.json...",
        help="A report that clair has saved as JSON, or one of each round.",
    ),
]
SavedOne = Annotated[
    Path, typer.Argument(metavar="REPORT.json", help="A report that clair has saved as JSON.")
]
Kind = Annotated[
    AnyKind,
    option(
        SHOWING,
        metavar="KIND",
        help="Which part. scores: every client beside its limit. agreement: map and table of who agrees "
        "with whom. heatmap: scores of modules. spectrum: how much is shared. refinement: what it did.",
    ),
]
Figure = Annotated[
    Path,
    option(
        WRITING,
        "--output",
        "-o",
        metavar="FIGURE",
        help="The file: its name ends with .pdf, .svg or .png.",
    ),
]
Width = Annotated[
    float,
    option(
        WRITING,
        min=2.5,
        max=20,
        help="Inches; the default is a column of a paper, and 6.75 usually both. The height follows.",
    ),
]
Written = Annotated[Path, typer.Argument(metavar="OUT", help="A folder that clair has written.")]
PublicKey = Annotated[
    Path | None,
    option(
        READING,
        "--key",
        metavar="PUBLIC",
        help="Check that the holder of this Ed25519 public key has signed every file. Needs "
        "clair-cli[sign].",
    ),
]
Explained = Annotated[
    str,
    typer.Argument(
        metavar="CODE|REPORT.json", help="A reason code such as CLR203, or a report saved as JSON."
    ),
]
Clients = Annotated[
    list[str] | None,
    typer.Argument(metavar="CLIENT", help="Clients of the report; all that are not benign."),
]
Show = Annotated[
    Literal["show"], typer.Argument(metavar="show", help="Show every option and where it is from.")
]
OfCommand = Annotated[
    str | None,
    typer.Argument(
        metavar="COMMAND",
        help="A command, of which every option is shown; of all commands those that are not at their "
        "default.",
    ),
]
SchemaOf = Annotated[
    str, typer.Argument(metavar="DOCUMENT", help="The document whose schema is printed.")
]
Shell = Annotated[
    Literal["bash", "zsh", "fish"],
    typer.Argument(metavar="SHELL", help="The shell: bash, zsh or fish."),
]
