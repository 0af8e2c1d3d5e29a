"""Console script. No third-party import at the top: whatever fails, the exit code tells the truth.

Python exits 1 on an uncaught exception, and 1 is the code of a finding; so everything uncaught, a
failing import included, becomes 70 here.
"""

from __future__ import annotations

import atexit
import gc
import os
import shutil
import signal
import sys
import threading
import time
import warnings
from contextlib import suppress
from types import FrameType

INTERNAL_ERROR, INTERRUPTED = 70, 130
GRACE = 0.5
"""Seconds that the main thread has to answer a signal: one step of linear algebra may take longer."""
PATIENCE = 30.0
"""Seconds after which a folder that cannot be removed stays."""
ANSWERED = threading.Event()
"""Set once the main thread has said so itself."""
LEAVING = 5.0
"""Seconds that Ray gets then to stop a cluster that was started for this run."""
OBJECTS = 50_000
"""New objects before Python looks for cycles; at 700, the usual, it looks 350 times in loading torch."""
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Names of mallopt(3)."""
LARGEST, KEPT = 2**25, 2**30
"""Bytes: of the largest array that is made of freed memory, which glibc allows, and of what is kept."""
SAID = {signal.SIGINT: "interrupted", signal.SIGHUP: "hung up"}


class Terminated(BaseException):
    """SIGTERM or SIGHUP by number, raised in the main thread so that staging is removed on the way."""


def main() -> None:
    """Run the command line and exit with its code."""
    code = INTERNAL_ERROR
    try:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, _end)
        _watch_signals()
        _open_streams()
        _keep_quiet()
        prepare()
        from clair_cli.cli import run

        code = run(sys.argv[1:])
    except KeyboardInterrupt:
        ANSWERED.set()
        code = _say("interrupted; nothing was left behind", INTERRUPTED)
    except Terminated as end:
        ANSWERED.set()
        code = _say(f"{_said(end.args[0])}; nothing was left behind", 128 + end.args[0])
    except BaseException as error:
        code = _crashed(error)
    _leave(code)


def _said(number: int) -> str:
    return SAID.get(signal.Signals(number), "terminated")


def _end(number: int, frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_DFL)  # a second one does not wait, and nothing is claimed then
    raise KeyboardInterrupt if number == signal.SIGINT else Terminated(number)


def _watch_signals() -> None:
    """From now on a second thread answers what the main thread does not answer in time."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    threading.Thread(target=_answer, args=(reading,), daemon=True).start()


def _answer(reading: int) -> None:
    number = signal.Signals(os.read(reading, 1)[0])
    time.sleep(GRACE)
    publish = sys.modules.get("clair_cli.output.publish")
    staged = getattr(publish, "STAGED", ())
    until = time.monotonic() + PATIENCE
    while left := [folder for folder in tuple(staged) if os.path.lexists(folder)]:
        for folder in left:  # again where the main thread has written into it meanwhile
            shutil.rmtree(folder, ignore_errors=True)
        if time.monotonic() > until:
            os._exit(128 + number)
    if not ANSWERED.is_set():
        _say(f"{_said(number)}; nothing was left behind", 0)
    elif "ray" in sys.modules:
        time.sleep(LEAVING)
    os._exit(128 + number)


def _open_streams() -> None:
    """Python has no stream at all for a descriptor that was closed before it started (`>&-`)."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115


def _keep_quiet() -> None:
    """Warnings of libraries are for who writes programs: shown with -vv, or as Python's -W says."""
    if not sys.warnoptions and "-vv" not in sys.argv:
        warnings.simplefilter("ignore")


def prepare() -> None:
    """What is set for the whole process, before any number is loaded."""
    _few_threads()
    _keep_memory()
    gc.set_threshold(OBJECTS)


def _few_threads() -> None:
    """One thread in numpy's OpenBLAS: the tables of judging are small, and threads share them already.

    Its threads would spin while they wait. Elsewhere than on x86 torch may multiply with it as well.
    """
    if os.uname().machine in ("x86_64", "amd64") and "OMP_NUM_THREADS" not in os.environ:
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


def _keep_memory() -> None:
    """Memory that was freed is used again, where the C library is glibc.

    It would go back to the system after every large array, and the next one would wait for pages.
    """
    import ctypes  # after signals are answered

    with suppress(OSError, AttributeError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_MMAP_THRESHOLD, LARGEST)
        mallopt(M_TRIM_THRESHOLD, KEPT)


def _say(text: str, code: int) -> int:
    with suppress(OSError, ValueError):
        sys.stderr.write(f"clair: {text}\n")
    return code


def _crashed(error: BaseException) -> int:
    if "-vv" in sys.argv:
        import traceback

        traceback.print_exception(error)
    text = "".join(c if c.isprintable() else "?" for c in f"{type(error).__name__}: {error}")
    return _say(f"internal error: {text[:500]} (run with -vv for the traceback)", INTERNAL_ERROR)


def _leave(code: int) -> None:
    """Flush and exit without letting a closed stdout change the code.

    What was registered for the end is run. Nothing is taken down object by object: with torch that takes
    a third of the time that it took to load. Ray has a cluster to stop.
    """
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # nothing is left to be cleaned up
    if "ray" not in sys.modules:
        atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            _silence(stream.fileno())
    if "ray" in sys.modules:
        sys.exit(code)
    os._exit(code)


def _silence(descriptor: int) -> None:
    """Python flushes again at exit and would complain, or fail, on the same closed pipe."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, descriptor)
    os.close(null)


if __name__ == "__main__":
    main()
