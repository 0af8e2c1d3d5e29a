"""clair completion: what makes a shell complete commands, options and files."""

from __future__ import annotations

import os

from typer.completion import (  # type: ignore[attr-defined]  # typer's own --show-completion
    completion_init,
    get_completion_script,
)

from clair_cli.cli import options as o
from clair_cli.cli.streams import print_out

VARIABLE = "_CLAIR_COMPLETE"
"""Set by the shell that asks what could come next."""


def completion(shell: o.Shell) -> int:
    """Print the script by which a shell completes commands.

    bash: clair completion bash > ~/.local/share/bash-completion/completions/clair. zsh: into a file
    _clair in a folder of $fpath. fish: into ~/.config/fish/completions/clair.fish.
    """
    script = get_completion_script(prog_name="clair", complete_var=VARIABLE, shell=shell)
    print_out(script + "\n")
    return 0


def is_asked() -> bool:
    """Whether a shell asks what could come next; if so, the parser is made ready to answer."""
    if VARIABLE not in os.environ:
        return False
    completion_init()
    return True
