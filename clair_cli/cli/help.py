"""Help pages and usage errors: what a person reads who asks, or who has mistyped."""

from __future__ import annotations

from difflib import get_close_matches
from typing import Any

from clair_cli.cli.configuration import origin

EXIT_CODES = """\b
Exit codes:
    0  done, every client accounted for, nothing that --fail-on names
    1  done, and at least one client that --fail-on names
       (with --baseline: that is new)
    2  usage: bad option, or something is not there
    3  no verdict: fewer than 3 usable clients, nothing comparable,
       not identifiable
    4  result computed but could not be written
   70  internal error
  130  interrupted (143: terminated, 129: hung up); nothing is left behind"""

INSPECT_CODES = """\b
Exit codes:
    0  the adapter can be read, and every number in it is finite
    1  the adapter is broken; of a folder: a client is broken or not
       compared, or no module is common to all
    2  usage: bad option, no such file or folder
    4  the answer could not be written
   70  internal error"""

SKETCH_CODES = """\b
Exit codes:
    0  the sketch was written
    1  the adapter is broken, or cannot be sketched
    2  usage: bad option, no such file or folder
    4  the sketch could not be written
   70  internal error
  130  interrupted (143: terminated, 129: hung up); nothing is left behind"""

FIT_CODES = """\b
Exit codes:
    0  the reference was written
    2  usage: bad option, no such folder
    3  no verdict: fewer than 3 usable clients, nothing comparable,
       not identifiable; nothing was written
    4  the reference could not be written
   70  internal error
  130  interrupted (143: terminated, 129: hung up); nothing is left behind"""

CHECK_CODES = """\b
Exit codes:
    0  the upload was judged, and --fail-on does not name its verdict
    1  --fail-on names its verdict, or it is broken or not comparable
    2  usage: bad option, no such file or folder, or no reference
    3  no verdict: not identifiable, or too few clients
    4  the reference could not be written
   70  internal error
  130  interrupted (143: terminated, 129: hung up); nothing is left behind"""

CONFIG_CODES = """\b
Exit codes:
    0  shown
    2  usage: no such command, or a file with a key or a value that none has
    4  the answer could not be written
   70  internal error"""

EXPLAIN_CODES = """\b
Exit codes:
    0  explained
    2  usage: no such code, no report, or no such client in it
    4  the answer could not be written
   70  internal error"""

PLOT_CODES = """\b
Exit codes:
    0  drawn
    2  usage: bad option, no report, nothing of this kind in it, or no
       matplotlib
    4  the figure could not be written
   70  internal error"""

PRINT_CODES = """\b
Exit codes:
    0  printed
    2  usage: bad option or argument
    4  the answer could not be written
   70  internal error"""

VERIFY_CODES = """\b
Exit codes:
    0  every file is as it was written, or with --key as it was signed
    1  a file is missing, changed, foreign or unsigned, or the manifest torn
    2  usage: no such folder, no manifest in it, or no such key
    4  the answer could not be written
   70  internal error"""

SELECT_CODES = """\b
Exit codes:
    0  every client has a choice
    1  some client has none: its command failed for every candidate
    2  usage: no whole output of clair refine --path, no {adapter} in CMD,
       or a name that CMD would run as code
    3  no client has a choice; nothing was written
    4  the chosen adapters could not be written
   70  internal error
  130  interrupted (143: terminated, 129: hung up); nothing is left behind"""

NEAR = 0.6
"""Likeness from which on another option is what was meant, as difflib measures it."""


def group_of(param: Any) -> str:
    """The title under which the help lists a parameter."""
    if param.param_type_name == "argument":
        return "Arguments"
    return getattr(param, "rich_help_panel", None) or "Options"


def usage_message(error: Any, arguments: list[str]) -> str:
    """What the parser complains of, as a sentence that names the help of the very command."""
    context = getattr(error, "ctx", None)  # some complaints come without
    called = [a for a in arguments if not a.startswith("-")][:1]
    path = context.command_path if context else " ".join(["clair", *called])
    return f"{' '.join(_complaint(error).split())} (see {path} --help)"


def _complaint(error: Any) -> str:
    param = getattr(error, "param", None)
    mistyped = getattr(error, "option_name", None)
    if mistyped and type(error).__name__ == "NoSuchOption":
        nearest = _nearest(mistyped, error.ctx)
        return f"there is no option {mistyped}" + (f"; did you mean {nearest}?" if nearest else "")
    if param is not None and error.message:
        option = param.param_type_name == "option"
        name = param.opts[0] if option else param.metavar or param.human_readable_name
        name = origin(error.ctx, param.name) or name if error.ctx else name
        said = error.message.removeprefix("Value error, ").rstrip(".")
        said = said.partition(", unable to parse")[0] + _got(error, said)
        return f"{name}: {said[:1].lower()}{said[1:]}"
    said = str(error.format_message()).rstrip(".")
    return f"{said[:1].lower()}{said[1:]}"


def _got(error: Any, said: str) -> str:
    """`, got ...` with the value, where the parser knows it and has not said it."""
    details = getattr(error.__cause__, "errors", None)
    values = [repr(d["input"])[:60] for d in details()[:1]] if callable(details) else []
    return "".join(f", got {value}" for value in values if value not in said)


def _nearest(mistyped: str, context: Any) -> str | None:
    """The option of this command that is spelt most alike, if one is near at all."""
    known = {o.lstrip("-"): o for p in context.command.get_params(context) for o in p.opts}
    known = {name: option for name, option in known.items() if option.startswith("--")}
    typed = mistyped.lstrip("-")
    begun = [name for name in known if len(typed) > 1 and name.startswith(typed)]
    found = begun or get_close_matches(typed, known, n=1, cutoff=NEAR)
    return known[found[0]] if found else None
