"""The tables of kills.py and run.py. Pure functions of what they keep."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

Row = dict[str, Any]
PARTS = {
    "one writer, at random": "one writer, at random",
    "two writers at once, at random": "two writers at once, at random",
    "the installed script, at random": "the installed script, at random",
    "one writer, before every call": "one writer, before every call that changes the file system, "
    "in order",
}
"""Of the campaign of kills -> what the page calls them."""
ENDS = {
    "at the old output, nothing left": "the old output, before anything was staged",
    "at the old output, staging left": "the old output, staging left beside it",
    "at the new output, staging left": "the new output, the old one left beside it, whole or in part",
    "at the new output, nothing left": "the new output, nothing left",
}
"""What may be at OUT after a kill -> what the page calls it."""
DRAWN = {
    "header": "bytes of a safetensors file",
    "npz": "bytes of an .npz",
    "config": "bytes of adapter_config.json",
    "client": "a whole folder of any format, which is written back",
    "configs": "a config field by field, beside tensors of its family",
    "zips": "an .npz array by array",
    "report": "a saved report, bytes and field by field",
    "manifest": "a manifest, bytes and field by field",
    "candidates": "the report beside candidates, and a file of scores",
    "counts": "sample counts as JSON and as lines",
    "same": "one cohort stored in two ways",
}
"""Target -> what it is given; the others are files that clair keeps for itself, one spoilt."""


def kills(found: Mapping[str, Row]) -> dict[str, str]:
    """The parts of the page from the tallies of a campaign, by name."""
    total = {n: sum(t[n] for t in found.values()) for n in ("kills", "torn", "looks", "torn_looks")}
    count = {name: grouped(number) for name, number in total.items()}
    rows = [[PARTS[name], *(grouped(t[n]) for n in total)] for name, t in found.items()]
    at_random = [t["ends"] for name, t in found.items() if name.endswith("at random")]
    ends = sum(map(Counter, at_random), Counter[str]())
    return {
        "counts": f"**{count['kills']} kills, {count['torn']} torn outputs; {count['looks']} looks "
        f"of the reader, {count['torn_looks']} torn.**",
        "kills": table(["", "kills", "torn outputs", "looks of the reader", "torn looks"], rows),
        "ends": table(
            ["OUT after a kill at random", "times"],
            [[said, grouped(ends[end])] for end, said in ENDS.items() if ends[end]],
        ),
    }


def fuzzing(rows: list[Row]) -> dict[str, str]:
    """The parts of the page from runs of targets, by engine: inputs of repeated runs are added up."""
    made = {}
    plain = [row for row in rows if row["engine"] == "plain"]
    guided = [row for row in rows if row["engine"] != "plain"]
    if plain:
        head = ["target", "what is drawn", "seconds", "inputs", "findings"]
        body = [
            [name, DRAWN.get(name.strip("`"), "what clair keeps, spoilt"), *c]
            for name, *c in _runs(plain)
        ]
        made["plain"] = table(head, body)
    if guided:
        made["guided"] = table(["target", "seconds", "inputs", "findings"], [*_runs(guided)])
    return made


def _runs(rows: list[Row]) -> Iterable[list[str]]:
    for name in dict.fromkeys(row["target"] for row in rows):
        mine = [row for row in rows if row["target"] == name]
        seconds, inputs, found = (
            sum(r[n] for r in mine) for n in ("seconds", "inputs", "findings")
        )
        yield [f"`{name}`", f"{seconds:.0f}", grouped(inputs), str(found or "none")]


def grouped(number: int) -> str:
    """With a space between thousands."""
    return f"{number:,}".replace(",", " ")


def table(head: list[str], rows: Iterable[list[str]]) -> str:
    """Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
