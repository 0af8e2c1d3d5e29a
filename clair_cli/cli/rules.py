"""clair rules and clair schema: what reports may say, for people and for programs."""

from __future__ import annotations

from clair_cli.cli import options as o
from clair_cli.cli.streams import print_out
from clair_cli.errors import UsageError
from clair_cli.reasons import RULES
from clair_cli.renderers import RENDERERS
from clair_cli.results import Rules
from clair_cli.schema import schema_texts


def rules(
    format: o.Format = "text",
    config_file: o.ConfigFile = None,
    no_config: o.NoConfig = False,
) -> int:
    """List every reason code: how severe it is, and what it says."""
    print_out(RENDERERS[format](Rules(tuple(RULES.values()))))
    return 0


def schema(document: o.SchemaOf = "report") -> int:
    """Print the JSON Schema that every report keeps to."""
    known = schema_texts()
    if document not in known:
        raise UsageError(f"{document}: there is no such schema; there is {', '.join(known)}")
    print_out(known[document])
    return 0
