"""The suite: folders as in clair_cli, beside what a user does, what a stranger sends, and the docs."""

from pathlib import Path

ROOT = Path(__file__).parents[1]
