"""byzfl's aggregators, where it is installed, without what byzfl/__init__.py wants beside them:
torchvision, matplotlib and seaborn."""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType


def aggregators() -> ModuleType | None:
    """`byzfl.aggregators`; None where it cannot be imported."""
    spec = find_spec("byzfl")
    if spec is None:
        return None
    package = ModuleType("byzfl")
    package.__spec__ = spec
    package.__path__ = list(spec.submodule_search_locations or ())
    sys.modules.setdefault("byzfl", package)
    try:
        return import_module("byzfl.aggregators")
    except ImportError:
        del sys.modules["byzfl"]
        return None
