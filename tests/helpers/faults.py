"""Runs of `clair refine` that are killed or fail at a chosen step, and what is at OUT afterwards."""

from __future__ import annotations

import json
import os
import shutil
import textwrap
from pathlib import Path

from clair_cli.output.manifest import verify
from tests.helpers.commands import fingerprint, forked

STEPS = """
    import errno, os, signal
    from clair_cli.output import publish
    NTH, HOW, LOG, NAMES = {nth}, {how!r}, {log!r}, {names!r}
    calls = []
    def step(name, args):
        calls.append(f"{{name}} {{args[0] if args else ''}} {{args[1] if name == 'move' else ''}}")
        if len(calls) == NTH:
            if HOW == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            raise OSError(getattr(errno, HOW), os.strerror(getattr(errno, HOW)))
    def watched(name, real, shown=lambda args: args):
        def call(*args, **kwargs):
            if name in NAMES and (name != "open" or args[1] & os.O_WRONLY):
                step(name, shown(args))
            return real(*args, **kwargs)
        return call
    def at(args):
        return (os.readlink(f"/proc/self/fd/{{args[0]}}"), *args[1:])
    close, real_open = os.close, os.open
    for name in ("write", "fsync"):
        setattr(os, name, watched(name, getattr(os, name), at))
    for name in ("open", "mkdir", "unlink", "rmdir", "replace", "rename"):
        setattr(os, name, watched(name, getattr(os, name)))
    publish._system_rename = watched("move", publish._system_rename if {atomic} else lambda *_: 38)
    import atexit
    def tell():
        with open(LOG, "w") as file:
            file.write("\\n".join(calls))
    publish_staged = publish.staged
    from contextlib import contextmanager
    @contextmanager
    def staged(*args):
        try:
            with publish_staged(*args) as stage:
                yield stage
        finally:
            tell()
    publish.staged = staged
"""
"""Before the `nth` of the calls that write, the process is killed, or the call fails with `how`."""

WRITING = ("open", "write", "fsync", "mkdir", "rename", "replace", "move")
ALL = (*WRITING, "unlink", "rmdir")


def weights(out: Path) -> dict[str, bytes]:
    """Every file but those that tell the time."""
    told = {"report.json", "manifest.json"}
    files = [p for p in out.rglob("*") if p.is_file() and p.name not in told]
    return {p.relative_to(out).as_posix(): p.read_bytes() for p in files}


class Runs:
    """`clair refine cohort --out OUT` in one folder, faults included."""

    def __init__(self, cohort: Path, folder: Path, wanted: dict[str, dict[str, bytes]]) -> None:
        self.cohort, self.folder, self.wanted = cohort, folder, wanted
        self.out, self.log = folder / "place" / "out", folder / "log"
        self.out.parent.mkdir()
        self.before = fingerprint(cohort)

    def refine(self, strength: int, hook: str = "") -> int:
        options = ("--out", self.out, "--strength", strength, "--overwrite", "-q")
        streams = {"stdout": self.folder / "1", "stderr": self.folder / "2"}
        return forked("refine", self.cohort, *options, hook=hook, **streams)

    def faulty(self, nth: int, how: str, names: tuple[str, ...] = ALL, atomic: bool = True) -> int:
        """A run at strength 1 with a fault at its `nth` step."""
        hook = STEPS.format(nth=nth, how=how, log=str(self.log), names=names, atomic=atomic)
        return self.refine(1, textwrap.dedent(hook))

    def state(self) -> str:
        """absent, old or new; anything else is a failure, as is any change to the input."""
        assert fingerprint(self.cohort) == self.before
        if not os.path.lexists(self.out):
            return "absent"
        assert verify(self.out) == []
        assert json.loads((self.out / "report.json").read_text())["status"] == "complete"
        (found,) = [n for n, files in self.wanted.items() if weights(self.out) == files]
        return found

    def reset(self, old: bool) -> None:
        if old and (not self.out.exists() or self.state() == "new"):
            assert self.refine(0) == 0
        elif not old:
            shutil.rmtree(self.out, ignore_errors=True)

    def left(self) -> list[Path]:
        return [p for p in self.out.parent.iterdir() if p != self.out]
