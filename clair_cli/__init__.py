"""clair: find contaminated clients in a folder of LoRA adapters, and refine the others.

The names below are the public interface; they are loaded when first used, so that importing the
package costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from clair_cli._version import __version__ as __version__

if TYPE_CHECKING:
    from clair_cli.accepted import Accept
    from clair_cli.cohort import Adapter, UpdateSpec
    from clair_cli.errors import AdapterError, ClairError, NoVerdict, OutputError, UsageError
    from clair_cli.formats import open_adapter, read_update
    from clair_cli.pipeline import detect, detect_groups, refine
    from clair_cli.refined import Refinement
    from clair_cli.renderers import render
    from clair_cli.report import Reason, Report, Verdict, from_dict, to_dict
    from clair_cli.results import Survey
    from clair_cli.settings import Settings
    from clair_cli.update import LowRankUpdate

_HOMES = {
    "accepted": ("Accept",),
    "cohort": ("Adapter", "UpdateSpec"),
    "errors": ("AdapterError", "ClairError", "NoVerdict", "OutputError", "UsageError"),
    "formats": ("open_adapter", "read_update"),
    "pipeline": ("detect", "detect_groups", "refine"),
    "renderers": ("render",),
    "refined": ("Refinement",),
    "results": ("Survey",),
    "report": ("Reason", "Report", "Verdict", "from_dict", "to_dict"),
    "settings": ("Settings",),
    "update": ("LowRankUpdate",),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "Accept",
    "Adapter",
    "AdapterError",
    "ClairError",
    "LowRankUpdate",
    "NoVerdict",
    "OutputError",
    "Reason",
    "Refinement",
    "Report",
    "Settings",
    "Survey",
    "UpdateSpec",
    "UsageError",
    "Verdict",
    "detect",
    "detect_groups",
    "from_dict",
    "open_adapter",
    "read_update",
    "refine",
    "render",
    "to_dict",
]


def __getattr__(name: str) -> Any:
    """Load a public name from where it lives."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    """The public names, loaded or not, and what Python keeps with every module."""
    return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})
