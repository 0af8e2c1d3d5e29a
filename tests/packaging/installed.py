"""Ask the `clair` beside this Python to detect and refine the samples, from another folder.

    python tests/packaging/installed.py sample_adapters

It imports nothing of the checkout, so that only what is installed is asked. Exit code 1, with the
reason, where something is not as it should be.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

BENIGN = ["client-01", "client-02", "client-04", "client-05", "client-07", "client-08"]
CONTAMINATED = ["client-03", "client-06"]
SCRIPT = Path(sys.prefix) / "bin" / "clair"


def clair(home: Path, *arguments: object) -> int:
    """The exit code of one command, run in `home` without the checkout's paths."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    command = [str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, cwd=home, env=environment, check=False).returncode


def expect(what: str, found: object, wanted: object) -> None:
    """Ends the program where the two differ."""
    if found != wanted:
        sys.exit(f"{what}: {found!r} in place of {wanted!r}")


def main() -> None:
    samples = Path(sys.argv[1]).resolve()
    spec = find_spec("clair_cli")
    expect("installed", bool(spec and Path(spec.origin or "").is_relative_to(sys.prefix)), True)
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        expect("detect", clair(home, "detect", samples, "-q", "-o", "json=report.json"), 1)
        report = json.loads((home / "report.json").read_text())
        bad = [c["id"] for c in report["clients"] if c["verdict"] == "contaminated"]
        expect("contaminated", sorted(bad), CONTAMINATED)
        expect("refine", clair(home, "refine", samples, "--out", "refined", "-q"), 0)
        written = sorted(path.name for path in (home / "refined").iterdir() if path.is_dir())
        expect("refined", written, BENIGN)
        expect("verify", clair(home, "verify", "refined"), 0)
        expect("report", clair(home, "report", "report.json", "-q"), 1)
    print(f"clair works on Python {sys.version.split()[0]}, installed in {sys.prefix}")


if __name__ == "__main__":
    main()
