"""The report as one JSON document; its schema is in clair_cli/report.schema.json."""

from __future__ import annotations

import json

from clair_cli.report import Report, to_dict


def render(report: Report) -> str:
    """Indented JSON with a final newline; finite numbers only, ASCII only."""
    return json.dumps(to_dict(report), indent=1, allow_nan=False) + "\n"
