"""One row per client: CSV for a spreadsheet, lines of JSON for a log, Parquet for a data frame."""

from __future__ import annotations

import csv
import json
from io import StringIO
from typing import TYPE_CHECKING, Any

from clair_cli.renderers.safe import one_line
from clair_cli.report import Report, to_dict
from clair_cli.rows import COLUMNS, identity, refined, rows, storable

if TYPE_CHECKING:
    import pyarrow

FORMULA = ("=", "+", "-", "@", "\uff1d", "\uff0b", "\uff0d", "\uff20")
"""How a cell begins that a spreadsheet would compute, in full width, too; tabs and line ends are
escaped before."""
BETWEEN = "; "
"""What stands between the items of a cell with several."""


def as_csv(report: Report) -> str:
    """RFC 4180: a head, a row per client, lines that end with CR LF.

    Control characters are escaped. A text that a spreadsheet would take for a formula gets an
    apostrophe in front; numbers are numbers, negative ones too.
    """
    out = StringIO()
    writer = csv.DictWriter(out, list(COLUMNS), lineterminator="\r\n")
    writer.writeheader()
    for row in rows(to_dict(report)):
        writer.writerow({name: cell(value) for name, value in row.items()})
    return out.getvalue()


def cell(value: Any) -> Any:
    """A value as a cell: one line, and nothing that a spreadsheet would compute."""
    if isinstance(value, list):
        value = BETWEEN.join(value)
    if isinstance(value, bool):
        return str(value).lower()
    if not isinstance(value, str):
        return value
    text = one_line(value)
    return f"'{text}" if text.startswith(FORMULA) else text


def as_jsonl(report: Report) -> str:
    """One line of JSON per client: its entry of the report, what was written for it, and the run."""
    data = to_dict(report)
    run, done = identity(data), refined(data)
    lines = [{"run": run, **c, "refined": done.get(c["id"], [])} for c in data["clients"]]
    return "".join(f"{json.dumps(line, allow_nan=False)}\n" for line in lines)


def as_parquet(report: Report) -> bytes:
    """One Parquet file, a column per name of COLUMNS; the run is in its metadata under `clair`."""
    import pyarrow as pa
    from pyarrow import parquet

    data = to_dict(report)
    fields = [pa.field(name, _type(kind)) for name, kind in COLUMNS.items()]
    about = {"clair": json.dumps(identity(data), allow_nan=False)}
    found = [{name: storable(value) for name, value in row.items()} for row in rows(data)]
    sink = pa.BufferOutputStream()
    parquet.write_table(pa.Table.from_pylist(found, pa.schema(fields, metadata=about)), sink)
    return bytes(sink.getvalue().to_pybytes())


def _type(kind: str) -> pyarrow.DataType:
    import pyarrow as pa

    types = {"text": pa.string(), "number": pa.float64(), "count": pa.int64(), "truth": pa.bool_()}
    return pa.list_(pa.string()) if kind == "texts" else types[kind]
