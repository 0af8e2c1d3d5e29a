"""Output written whole or not at all: staged beside its place, synced, published by one rename."""

from __future__ import annotations

import ctypes
import errno
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from clair_cli.errors import OutputError, UsageError
from clair_cli.output import manifest
from clair_cli.output.leftovers import aside, passing, sweep
from clair_cli.output.manifest import MANIFEST, STATEMENT, load_manifest, read_manifest, verify

__all__ = [
    "MANIFEST",
    "NewFile",
    "append_bytes",
    "check_apart",
    "check_output",
    "linked_folders",
    "read_manifest",
    "rename_new",
    "replace_bytes",
    "staged",
    "sync",
    "verify",
    "write_bytes",
    "write_manifest",
]

WRITE_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0)
RENAME_NOREPLACE, RENAME_EXCHANGE = 1, 2
AT_FDCWD = -100

log = logging.getLogger(__name__)

STAGED: set[Path] = set()
"""The staging folders of this process, which go where it must end at once."""


def check_output(
    out: Path, inputs: Path, overwrite: bool = False, called: str = "the input folder"
) -> None:
    """Raises UsageError, before anything is read, where `out` cannot become the output of `inputs`,
    which messages call `called`.

    `out` must not exist, or with `overwrite` be a folder that clair wrote; its parent must be a
    writable folder, and no part of another output; neither may lie in the other, whatever names lead
    there.
    """
    shown = repr(str(out))
    try:
        _check_place(out, inputs, shown, called)
        if out.is_symlink():
            raise UsageError(f"--out {shown}: is a link; give the folder itself")
        if os.path.lexists(out):
            _check_replaceable(out, shown, overwrite)
    except (OSError, ValueError, RuntimeError) as cause:
        raise UsageError(f"--out {shown}: cannot be used: {_reason(cause)}") from None


def _check_place(out: Path, inputs: Path, shown: str, called: str) -> None:
    parent = out.parent.resolve()
    if not parent.is_dir():
        raise UsageError(f"--out {shown}: its parent folder does not exist; create it first")
    if out.name in ("", ".."):
        raise UsageError(f"--out {shown}: give the name of a new folder")
    with suppress(FileNotFoundError):
        os.lstat(aside(passing(out)))  # says if the name is too long
    own = _key(out) if out.exists() else None
    source = inputs.resolve()
    if own == _key(source):
        raise UsageError(f"--out {shown}: is {called}; give another")
    by_name = Path(os.path.abspath(out)).parents
    if _key(source) in {_key(p) for p in (parent, *parent.parents, *by_name) if p.exists()}:
        raise UsageError(f"--out {shown}: lies inside {called}; give one outside")
    if any(read_manifest(p) for p in (parent, *parent.parents)):
        text = "lies inside an output of clair, which would no longer verify; give one outside"
        raise UsageError(f"--out {shown}: {text}")
    if own in {_key(p) for p in source.parents}:
        raise UsageError(f"--out {shown}: contains {called}; give another")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise UsageError(f"--out {shown}: its parent folder is not writable")


def check_apart(out: Path, inputs: Path) -> None:
    """Raises UsageError where `out` lies in a folder that a link among the clients leads to.

    For runs that follow links: then what they lead to is input, too.
    """
    parent = out.parent.resolve()
    for name, folder in linked_folders(inputs).items():
        if parent.is_relative_to(folder) or out.resolve() == folder:
            where = f"{str(folder)!r}, which the link {name!r} among the clients leads to"
            raise UsageError(f"--out {str(out)!r}: lies inside {where}; give another")


def linked_folders(inputs: Path) -> dict[str, Path]:
    """Names of links in `inputs` and the folders outside that they, or the files they are, lie in.

    A link that leads nowhere, or to a folder around `inputs`, is no client and not among them.
    """
    try:
        links = {p.name: p.resolve() for p in inputs.iterdir() if p.is_symlink()}
    except (OSError, RuntimeError):
        return {}
    around = inputs.resolve()
    folders = {n: p if p.is_dir() else p.parent for n, p in links.items() if p.exists()}
    return {n: p for n, p in folders.items() if not around.is_relative_to(p)}


def _key(path: Path) -> tuple[int, int]:
    """What a folder is, under whatever name."""
    s = path.stat()
    return s.st_dev, s.st_ino


def _check_replaceable(out: Path, shown: str, overwrite: bool) -> None:
    foreign = manifest.steady(out, _foreign)
    if foreign is None:
        text = f"exists, has no {MANIFEST} of clair and is not overwritten"
        raise UsageError(f"--out {shown}: {text}; delete it yourself or give a new name")
    if foreign:
        text = f"holds {foreign[0]!r}, which clair did not write; move it away or give a new name"
        raise UsageError(f"--out {shown}: {text}")
    if not overwrite:
        raise UsageError(f"--out {shown}: exists; give a new name, or pass --overwrite")


def _foreign(out: Path) -> list[str] | None:
    """What is in the folder and not in its manifest; None where it has no manifest of clair."""
    found = load_manifest(out)
    if found is None:
        return None
    listed = {f.name for f in found.files} | {MANIFEST, STATEMENT}
    return sorted(set(manifest.names(out)) - listed)


def _reason(cause: BaseException) -> str:
    return getattr(cause, "strerror", None) or str(cause)


@contextmanager
def staged(
    out: Path,
    overwrite: bool,
    inputs: Path,
    version: str,
    seal: Callable[[Path], None] | None = None,
) -> Iterator[Path]:
    """A new folder beside `out` to write into; it becomes `out` when the block ends without error.

    Every file is on disk and in manifest.json before the one rename that publishes them; `seal` may
    then write what vouches for them into the folder. On any
    exception, an interrupt included, the staging folder is removed and what was at `out` is still
    there. Raises UsageError as `check_output`, OutputError where writing fails or something else
    has appeared at `out` meanwhile.
    """
    check_output(out, inputs, overwrite)
    staging = passing(out)
    try:
        sweep(out)
        STAGED.add(staging)
        os.mkdir(staging)
        yield staging
        write_manifest(staging, version)
        if seal is not None:
            seal(staging)
        _sync_tree(staging)
        _publish(staging, out, overwrite)
    except OSError as cause:
        remedy = (
            "; another run wrote it meanwhile: give a new name, or pass --overwrite"
            if isinstance(cause, OSError) and cause.errno == errno.EEXIST
            else ""
        )
        raise OutputError(f"{str(out)!r}: cannot be written: {_reason(cause)}{remedy}") from None
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        STAGED.discard(staging)
        if os.path.lexists(out):  # else what was moved aside is the only copy
            shutil.rmtree(aside(staging), ignore_errors=True)


class NewFile:
    """A file that was not there before, written at any offset; on disk when `close` returns.

    Raises OutputError, with the words of the system, where it exists already or cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with self._explained():
            self.fd = os.open(path, WRITE_NEW, 0o666)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as cause:
            text = f"{self.path.name!r}: cannot be written: {_reason(cause)}"
            raise OutputError(text) from None

    def write(self, begin: int, data: bytes | bytearray) -> None:
        """All of `data` from byte `begin` on."""
        left = memoryview(data)
        with self._explained():
            os.lseek(self.fd, begin, os.SEEK_SET)
            while left:
                left = left[os.write(self.fd, left) :]

    def close(self) -> None:
        """Everything is on disk, with the permissions of the umask."""
        with self._explained():
            os.fsync(self.fd)
            os.close(self.fd)
        self.fd = -1

    def abandon(self) -> None:
        """Remove the file unless it was closed; a second time does nothing."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)
            self.path.unlink(missing_ok=True)


def write_bytes(path: Path, data: bytes) -> None:
    """A new file holding `data`, on disk when this returns, with the permissions of the umask.

    Raises OutputError, with the words of the system, where it exists already or cannot be written.
    """
    file = NewFile(path)
    try:
        file.write(0, data)
        file.close()
    finally:
        file.abandon()


def replace_bytes(path: Path, data: bytes) -> None:
    """`data` at `path`, whole or not at all, in place of a regular file that may be there.

    What is no regular file, such as /dev/stdout, is written to as it is. Raises OutputError.
    """
    try:
        if path.exists() and not path.is_file():
            with open(path, "wb") as stream:
                stream.write(data)
            return
    except OSError as cause:
        raise OutputError(f"{str(path)!r}: cannot be written: {_reason(cause)}") from None
    target = Path(os.path.realpath(path))  # what a link points to is replaced, not the link
    fresh = passing(target)
    try:
        sweep(target)
        write_bytes(fresh, data)
        os.replace(fresh, target)
    except (OSError, OutputError) as cause:
        raise OutputError(f"{str(path)!r}: cannot be written: {_reason(cause)}") from None
    finally:
        fresh.unlink(missing_ok=True)


def append_bytes(path: Path, data: bytes) -> None:
    """`data` behind what is in the file at `path`, whole or not at all. Raises OutputError."""
    try:
        with open(path, "ab", buffering=0) as file:
            before = os.fstat(file.fileno()).st_size
            try:
                left = memoryview(data)
                while left:
                    left = left[file.write(left) :]
                os.fsync(file.fileno())
            except OSError:
                os.ftruncate(file.fileno(), before)
                raise
    except OSError as cause:
        raise OutputError(f"{str(path)!r}: cannot be written: {_reason(cause)}") from None


def write_manifest(folder: Path, version: str) -> None:
    """manifest.json: name, size and sha256 of every file below `folder`, and who wrote them."""
    write_bytes(folder / MANIFEST, manifest.described(folder, version))


def _sync_tree(folder: Path) -> None:
    for top, _, files in os.walk(folder):
        for name in files:
            sync(os.path.join(top, name))
        sync(top)


def sync(path: str | Path) -> None:
    """The file or folder is on disk when this returns. Raises OSError."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    except OSError as cause:
        if cause.errno != errno.EINVAL:  # network file systems that cannot sync a folder
            raise
    finally:
        os.close(fd)


def _publish(staging: Path, out: Path, overwrite: bool) -> None:
    """`staging` becomes `out`; with `overwrite` what clair wrote there makes way and is deleted."""
    if overwrite and os.path.lexists(out):
        _replace(staging, out)
    else:
        rename_new(staging, out)
    try:
        sync(out.parent)
    except OSError as cause:  # published all the same: not a failure, only less durable
        log.warning("%s: could not be synced: %s", out.parent, cause)


def _replace(staging: Path, out: Path) -> None:
    """In one step where the system can exchange two folders; else with a moment without OUT."""
    foreign = OSError(errno.EEXIST, f"it has no {MANIFEST} of clair and is not overwritten")
    if out.is_symlink() or load_manifest(out) is None:
        raise foreign
    if not _system_rename(staging, out, RENAME_EXCHANGE):
        if not staging.is_symlink() and load_manifest(staging) is not None:
            return
        _system_rename(staging, out, RENAME_EXCHANGE)  # it came after the look: back with it
        raise foreign
    old = aside(staging)
    rename_new(out, old)
    try:
        rename_new(staging, out)
    except BaseException:
        rename_new(old, out)
        raise
    shutil.rmtree(old, ignore_errors=True)


def rename_new(source: Path, target: Path) -> None:
    """Rename that never replaces anything, not even an empty folder. Raises OSError."""
    number = _system_rename(source, target, RENAME_NOREPLACE)
    if number in (errno.ENOSYS, errno.EINVAL):  # an older kernel, or a file system without it
        if os.path.lexists(target):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
        os.rename(source, target)
    elif number:
        raise OSError(number, os.strerror(number))


def _system_rename(source: Path, target: Path, how: int) -> int:
    """0, or the errno of Linux's renameat2; ENOSYS where the C library has none."""
    try:
        call = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError, TypeError):
        return errno.ENOSYS
    done = call(AT_FDCWD, os.fsencode(source), AT_FDCWD, os.fsencode(target), how)
    return ctypes.get_errno() if done != 0 else 0
