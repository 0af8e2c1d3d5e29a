"""Judges folders with the clair that this interpreter finds; run by real_judges.py.

One JSON line in, [folder, settings]; one out, {report, seconds} or {error}. Imports nothing but
clair_cli, so that any version in any environment can be asked.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any


def judged(folder: str, settings: dict[str, Any]) -> dict[str, Any]:
    """The report as JSON-ready values, and how long it took."""
    from clair_cli import Settings, detect, to_dict

    began = time.perf_counter()
    report = to_dict(detect(Path(folder), Settings(threads=1, **settings)))
    return {"report": report, "seconds": time.perf_counter() - began}


def main() -> None:
    """Until the input ends."""
    answers, sys.stdout = sys.stdout, sys.stderr
    for line in sys.stdin:
        try:
            answer = judged(*json.loads(line))
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
