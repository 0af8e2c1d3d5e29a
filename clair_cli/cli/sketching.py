"""Options of sketch, fit and check, each declared once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from clair_cli.cli.options import READING, SHOWING, WRITING, option

OneAdapter = Annotated[
    Path, typer.Argument(metavar="ADAPTER", help="An adapter: its folder, or its file.")
]
SketchFile = Annotated[
    Path,
    option(
        WRITING,
        "--output",
        "-o",
        metavar="FILE",
        help="The sketch: its name ends with .safetensors, and the rest is the client's id.",
    ),
]
Size = Annotated[
    int,
    option(
        WRITING,
        min=8,
        max=1024,
        help="Coordinates per side of a module. The error falls with the root of it, and the bytes grow "
        "with it.",
    ),
]
Seed = Annotated[
    int,
    option(
        WRITING,
        min=0,
        max=2**62 - 1,
        help="What the coordinates are drawn by. Who knows it before training can hide an update from "
        "the sketch.",
    ),
]
SizeOrNone = Annotated[
    int | None,
    option(
        WRITING,
        "--size",
        min=8,
        max=1024,
        help="Coordinates per side of a module; the default is that of sketches in DIR, or 256 of up to "
        "64 modules, 128 of up to 128, and 64 of more.",
    ),
]
SeedOrNone = Annotated[
    int | None,
    option(
        WRITING,
        "--seed",
        min=0,
        max=2**62 - 1,
        help="What the coordinates are drawn by; the default is that of sketches in DIR, or 0.",
    ),
]
ReferenceFile = Annotated[
    Path,
    option(
        WRITING,
        "--output",
        "-o",
        metavar="FILE",
        help="The reference file: its name ends with .clair.",
    ),
]
Upload = Annotated[
    Path,
    typer.Argument(metavar="UPLOAD", help="One adapter or its sketch: its folder, or its file."),
]
Against = Annotated[
    Path,
    option(
        READING,
        metavar="DIR|FILE",
        help="The cohort: a folder of clients, or a reference file that clair fit has written.",
    ),
]
Update = Annotated[
    bool,
    option(
        WRITING,
        "--update",
        help="Put an upload that passes into the reference file. Two that do so wait for each other.",
    ),
]
ExplainIt = Annotated[
    bool, option(SHOWING, "--explain", help="Explain the verdict in plain words, below it.")
]
