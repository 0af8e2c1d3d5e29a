"""What there is: adapters as their headers describe them, and the clients that can be compared.

Nothing here holds a tensor. `align` checks once what the rest of clair relies on: every module of a
`Cohort` exists in every client with one shape.
"""

from clair_cli.cohort.alignment import align, without_sketches
from clair_cli.cohort.grouping import By, Group, Groups, grouped
from clair_cli.cohort.records import (
    SKETCH_SIZE,
    WHOLE,
    Adapter,
    Broken,
    Cohort,
    Entries,
    FullSpec,
    InputFile,
    Origin,
    Sketching,
    Start,
    TensorSpec,
    UpdateSpec,
    natural_key,
)

__all__ = [
    "SKETCH_SIZE",
    "WHOLE",
    "Adapter",
    "Broken",
    "By",
    "Cohort",
    "Entries",
    "FullSpec",
    "Group",
    "Groups",
    "InputFile",
    "Origin",
    "Sketching",
    "Start",
    "TensorSpec",
    "UpdateSpec",
    "align",
    "grouped",
    "natural_key",
    "without_sketches",
]
