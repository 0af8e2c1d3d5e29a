"""Which machine this process runs on: of interest only where an engine uses several."""

from __future__ import annotations

_name = [""]


def machine() -> str:
    """The name of this machine among those of the engine; empty where there is but one."""
    return _name[0]


def call_machine(name: str) -> None:
    """From now on this machine is called so."""
    _name[0] = name
