"""Options of refine and select alone: how clients are refined, and how candidates are scored."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from clair_cli.cli.options import WRITING, option

REFINING, SCORING = "How clients are refined", "How candidates are scored"

# --- refine

Strength = Annotated[
    str,
    option(
        REFINING,
        metavar="auto|0..1",
        help="How far clients move to their mean: 0 keeps every adapter as it is, 1 moves all but "
        "the kept directions. The default goes by the adapters.",
    ),
]
Strengths = Annotated[
    str | None,
    option(
        REFINING,
        "--path",
        metavar="S,S,...",
        help="Write a folder for each of several strengths, such as 0,0.5,auto, from which clair "
        "select then chooses.",
    ),
]
SubspaceRank = Annotated[
    str,
    option(
        REFINING,
        metavar="auto|N",
        help="How many directions per module a client keeps. The default keeps as many as carry its "
        "deviation from the mean.",
    ),
]
Side = Annotated[
    Literal["auto", "own", "left", "right", "client"],
    option(
        REFINING,
        help="Whose directions are kept: the client's own, those of the outputs (left) or inputs "
        "(right) that all share, or combinations of clients.",
    ),
]
Replicates = Annotated[
    Literal["auto", "checkpoints", "none"],
    option(
        REFINING,
        help="Where further adapters of one client are: in its rep-* folders, in its late "
        "checkpoints, or nowhere.",
    ),
]
Tasks = Annotated[
    Literal["auto", "same", "related", "own"],
    option(
        REFINING,
        help="What the clients do: one task (same), related ones, or each its own. The default "
        "guesses from the adapters, and the report says so.",
    ),
]
Weights = Annotated[
    Path | None,
    option(
        REFINING,
        help="Samples per client, which weigh the means: a JSON object, or lines of client,count.",
    ),
]
Include = Annotated[
    list[str] | None,
    option(
        REFINING,
        metavar="CLIENT",
        help="Count this client as benign whatever its verdict, also for --fail-on. Repeatable.",
    ),
]
Exclude = Annotated[
    list[str] | None,
    option(REFINING, metavar="CLIENT", help="Leave this client out of the refinement. Repeatable."),
]
RefineSuspicious = Annotated[
    bool,
    option(
        REFINING,
        "--refine-suspicious",
        help="Write refined adapters of suspicious clients, too. They count in no mean.",
    ),
]
AllowDora = Annotated[
    bool,
    option(
        REFINING,
        "--allow-dora",
        help="Refine the product B A of DoRA adapters; every client keeps its own magnitudes.",
    ),
]

# --- select

Candidates = Annotated[
    Path, typer.Argument(metavar="OUT", help="A folder that clair refine --path has written.")
]
Evaluate = Annotated[
    str,
    option(
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
    option(
        SCORING,
        "--higher-is-better",
        help="The command prints what is better when higher, such as an accuracy.",
    ),
]
Timeout = Annotated[
    float, option(SCORING, min=0.1, help="Seconds after which a run of the command has failed.")
]
Jobs = Annotated[
    int, option(SCORING, min=1, max=256, help="How many candidates are scored at the same time.")
]
Resume = Annotated[
    Path | None,
    option(
        SCORING,
        metavar="FILE",
        help="Keep every score in FILE, and run nothing again whose command and adapter are the same.",
    ),
]
Chosen = Annotated[
    Path | None,
    option(WRITING, "--out", help="The new folder for the best adapter of every client."),
]
