"""What `clair select` has chosen: one line per client, or the JSON that lies beside the adapters."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict

from clair_cli._version import __version__
from clair_cli.renderers.safe import safe_text
from clair_cli.renderers.words import times
from clair_cli.results import Selection, Tried


def as_json(selection: Selection) -> str:
    """One JSON document with a final newline; scores to their last digit."""
    data = {
        "schema_version": "1.0",
        "tool": {"name": "clair", "version": __version__},
        "command": selection.command,
        "higher_is_better": selection.higher_is_better,
        "clients": [
            {
                "id": c.client,
                "chosen": c.best.path if c.best else None,
                "candidates": [asdict(t) for t in c.tried],
            }
            for c in selection.choices
        ],
    }
    return json.dumps(data, indent=2, allow_nan=False) + "\n"


def as_text(selection: Selection) -> str:
    """One line per client with what was chosen and every score; then each way to fail once."""
    lines = [
        f"{c.client}   {c.best.label if c.best else 'none'}   ({', '.join(map(_score, c.tried))})"
        for c in selection.choices
    ]
    failures = Counter(t.error for c in selection.choices for t in c.tried if t.error is not None)
    lines += [f"failed {times(n)}: {error}" for error, n in failures.most_common()]
    done, without = _counted(selection)
    lines += [f"{done}.", *([without] if without else [])]
    return "".join(f"{safe_text(line)}\n" for line in lines)


def verdict_line(selection: Selection) -> str:
    """The one line that says it all: how many have a choice, and who has none."""
    return safe_text("; ".join(filter(None, _counted(selection))))


def _counted(selection: Selection) -> tuple[str, str]:
    without = [c.client for c in selection.choices if c.best is None]
    done = len(selection.choices) - len(without)
    what = "they get no adapter" if done else "mend the command"
    named = f"without: {', '.join(without)}; {what}" if without else ""
    return f"{done} of {len(selection.choices)} clients have a choice", named


def _score(tried: Tried) -> str:
    return f"{tried.label}: {'failed' if tried.score is None else format(tried.score, '.4g')}"
