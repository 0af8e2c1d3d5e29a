"""Refining without those with whom it fails: each costs itself its adapter, and nobody else."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path

from clair_cli.errors import NoVerdict
from clair_cli.progress import Progress, silent
from clair_cli.refined import Refinement
from clair_cli.refinement.blame import LeftOut, how
from clair_cli.refinement.plan import Plan
from clair_cli.refinement.write import write_refined
from clair_cli.report import Reason

CODE = "CLR121"
NOBODY: Mapping[str, Exception] = {}


def write_spared(
    plan: Callable[[Collection[str]], Plan],
    stage: Path,
    on_progress: Progress = silent,
    odd: Mapping[str, Exception] = NOBODY,
) -> tuple[Refinement, dict[str, tuple[Reason, ...]]]:
    """Write what plan(gone) says below the empty `stage`, `gone` being those with whom that fails: first
    the `odd`, of whom that is known.

    Also returned are the clients that get no adapter, and why. All others get what they would get if
    those that are gone had been excluded. Raises what the first of these raised where nobody is left,
    and all else that `plan` and `write_refined` raise.
    """
    gone, unfit = dict(odd), dict[str, Exception]()
    while True:
        try:
            planned = replace(plan(gone), unfit=frozenset(unfit))
            on_progress("planning", 1, 1)
            done = write_refined(planned, stage, on_progress)
            break
        except LeftOut as error:
            if error.failed.keys() <= gone.keys() and error.unfit.keys() <= unfit.keys():
                raise
            gone, unfit = error.failed | gone, error.unfit | unfit
            for folder in stage.iterdir():
                shutil.rmtree(folder)
        except NoVerdict as error:
            raise next(iter(gone.values()), error) from None
    without = {c: f"gets no refined adapter: {how(e)}" for c, e in {**gone, **done.without}.items()}
    said = [f"{client} {text}" for client, text in without.items()]
    refinement = replace(done.refinement, warnings=(*done.refinement.warnings, *said))
    return refinement, {c: (Reason(CODE, text),) for c, text in without.items()}
