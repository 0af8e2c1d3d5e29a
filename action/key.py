"""The cache key of the action: key.py ADAPTERS SETTINGS prints `key=clair-<version>-<sha256>`.

The hash is that of every file's name and bytes among the adapters, of clair's own source, of the
settings and the files that they name, and of what clair remembers here: files of decisions from the
working folder upwards, and variables. Decisions end with a day, so where there are any the day counts.
A link counts by where it points and is not followed; what cannot be read counts as that.
"""

from __future__ import annotations

import hashlib
import os
import re
import sys
from datetime import datetime, timezone
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / "clair_cli"
FILES = ("clair.toml", "pyproject.toml")


def content(path: Path) -> bytes:
    """The sha256 of a file's bytes, or what stands for it."""
    if path.is_symlink():
        return b"link " + os.fsencode(os.readlink(path))
    if not path.is_file():
        return b"no file"
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while piece := file.read(1 << 20):
                digest.update(piece)
    except OSError:
        return b"unreadable"
    return digest.digest()


def tree(folder: Path, pattern: str = "*") -> bytes:
    """The sha256 of names and contents of all that is below a folder."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob(pattern), key=os.fsencode):
        for part in (os.fsencode(path.relative_to(folder)), content(path)):
            digest.update(len(part).to_bytes(8, "big") + part)
    return digest.digest()


def remembered(settings: str) -> bytes:
    """The sha256 of files and variables that count beside the settings; of nothing where none do."""
    here = Path.cwd()
    above = [folder / name for folder in (here, *here.parents) for name in FILES]
    named = [Path(word) for word in settings.replace("=", " ").split()]
    parts = [content(path) for path in (*above, *named) if path.is_file() and about_clair(path)]
    parts += [f"{k}={v}".encode() for k, v in sorted(os.environ.items()) if k.startswith("CLAIR_")]
    if parts:
        parts.append(str(datetime.now(timezone.utc).date()).encode())
    return b"".join(hashlib.sha256(part).digest() for part in parts)


def about_clair(path: Path) -> bool:
    """Whether a file may hold decisions: a pyproject.toml without the word holds none."""
    return path.name != FILES[1] or b"clair" in path.read_bytes()


def main() -> None:
    adapters, settings = Path(sys.argv[1]), sys.argv[2]
    (version,) = re.findall(r'__version__ = "([\w.+]+)"', (PACKAGE / "_version.py").read_text())
    parts = (tree(adapters), tree(PACKAGE, "*.py"), tree(PACKAGE, "*.json"), settings.encode())
    parts += (remembered(settings),)
    key = hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()
    print(f"key=clair-{version}-{key}")


if __name__ == "__main__":
    main()
