"""The outputs of the action: result.py FOLDER prints a line `name=value` for each of them.

FOLDER holds what the step before wrote: exit-code, clair.json, clair.sarif, clair.html. Only numbers
and paths are printed, never a name out of an adapter.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

COUNTS = ("clients", "benign", "suspicious", "minority", "contaminated", "broken")


def outputs(folder: Path) -> dict[str, str | int]:
    """Name to value, as far as there is something; without an exit code, that of a crash."""
    code, report = folder / "exit-code", folder / "clair.json"
    files = {"sarif": folder / "clair.sarif", "page": folder / "clair.html"}
    found: dict[str, str | int] = {"exit-code": int(code.read_text()) if code.is_file() else 70}
    if report.is_file():
        counts = json.loads(report.read_text(encoding="utf-8"))["counts"]
        found |= {"report": str(report)} | {name: int(counts.get(name, 0)) for name in COUNTS}
    return found | {name: str(path) for name, path in files.items() if path.is_file()}


def main() -> None:
    for name, value in outputs(Path(sys.argv[1])).items():
        print(f"{name}={value}")


if __name__ == "__main__":
    main()
