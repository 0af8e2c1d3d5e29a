"""Where clients lie, seen from the repository: what tools that show findings beside files need."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from clair_cli.cohort import natural_key
from clair_cli.report import Report

CHECKPOINT = "checkpoint-*"
"""A folder of a client that its files may lie in."""


def located(report: Report) -> Report:
    """The report with paths as they are from the top of the repository, or else the working folder.

    Links are resolved. What lies elsewhere has an absolute path, and what is no longer there the path
    that the report gives.
    """
    folder = Path(str(report.inputs.get("root") or "."))
    top = _top(Path.cwd())
    listed = {str(c.get("id")): c for c in report.inputs.get("clients") or ()}
    clients: list[dict[str, Any]] = [
        {**listed.get(c.client, {}), "id": c.client, "path": _seen(found, top)}
        for c in report.clients
        if (found := _file(folder, c.client, listed.get(c.client, {}))) is not None
    ]
    known = {c["id"] for c in clients}
    clients += [{**c} for name, c in listed.items() if name not in known]
    root = _seen(folder, top) if folder.exists() else str(folder)
    return replace(report, inputs={**report.inputs, "root": root, "clients": clients})


def _top(folder: Path) -> Path:
    """The nearest folder above that is a repository; the folder itself where none is."""
    return next((p for p in (folder, *folder.parents) if (p / ".git").exists()), folder)


def _file(folder: Path, client: str, listed: dict[str, Any]) -> Path | None:
    """The first file of a client that is there, else its folder, else a file of its name that could
    not be read; None where there is nothing."""
    if "/" in client or "\0" in client or client in ("", ".", ".."):
        return None
    own = folder / client
    names = [str(f.get("name")) for f in listed.get("files") or ()][:1]
    names = [n for n in names if "\0" not in n and ".." not in n.split("/") and n[:1] != "/"]
    try:
        for name in names:
            deeper = sorted(own.glob(CHECKPOINT), key=lambda p: natural_key(p.name), reverse=True)
            for place in (own / name, *(p / name for p in deeper), folder / name):
                if place.is_file():
                    return place
        if own.exists():
            return own
        return next((p for p in sorted(folder.iterdir()) if p.stem == client and p.is_file()), None)
    except (OSError, ValueError):  # a name that no file can have
        return None


def _seen(path: Path, top: Path) -> str:
    real, above = os.path.realpath(path), os.path.realpath(top)
    return os.path.relpath(real, above) if Path(real).is_relative_to(above) else real
