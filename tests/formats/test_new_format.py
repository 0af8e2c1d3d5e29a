"""A new format is one file and one line: the example of CONTRIBUTING.md, taken from the page itself."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from safetensors.torch import save

import clair_cli
from clair_cli import detect, formats, refine
from clair_cli.errors import ShapeMismatch
from clair_cli.formats import open_adapter, read_update
from clair_cli.settings import Settings
from tests import ROOT
from tests.formats import test_contract as contract
from tests.helpers.builders import factor
from tests.helpers.cohorts import SHAPE, Array, drawn, module, truths
from tests.helpers.commands import ENVIRONMENT

PAGE = (ROOT / "CONTRIBUTING.md").read_text()
((SOURCE, LINE),) = re.findall(
    r"^```python\n(.*?)^```$.*?^```text\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL
)


@pytest.fixture
def pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The page's module, entered into the table above those that take what is left."""
    file = tmp_path / "pair.py"
    file.write_text(SOURCE)
    spec = importlib.util.spec_from_file_location("clair_cli.formats.pair", file)
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    monkeypatch.setattr(formats, "FORMATS", {made.FORMAT.name: made.FORMAT} | formats.FORMATS)
    return made


def save_pair(folder: Path, updates: Array, rank: int | None = None) -> Path:
    """A client of one update (d_out, d_in) per module."""
    tensors = {}
    for m, update in enumerate(updates):
        low = factor(torch.from_numpy(np.asarray(update)).double(), rank or min(SHAPE))
        tensors[f"{module(m)}/left"] = low.up.float().contiguous()
        tensors[f"{module(m)}/right"] = low.down.float().contiguous()
    folder.mkdir(parents=True)
    (folder / "a.safetensors").write_bytes(save(tensors, {"format": "pair"}))
    return folder


def cohort(root: Path) -> Array:
    """Five clients that learned alike and a stranger, below `root`; their updates."""
    updates = truths(6)
    updates[-1:] = 1.2 * drawn(2, 1, 2, *SHAPE)
    for k, update in enumerate(updates):
        save_pair(root / f"client-{k + 1}", update)
    return updates


LAWS = [
    contract.test_write_open_read_is_the_identity,
    contract.test_other_updates_are_what_is_read_back,
    contract.test_a_writer_takes_modules_in_any_order_and_one_file_is_never_replaced,
    contract.test_a_writer_refuses_what_does_not_fit_and_leaves_nothing_unfinished,
    contract.test_a_file_that_changes_is_neither_read_nor_written_on,
]


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__.removeprefix("test_"))
def test_the_new_format_keeps_the_contract(
    law: Callable[[str, Path], None],
    pair: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def make(root: Path) -> tuple[Path, Settings]:
        return save_pair(root / "client", truths(1)[0], rank=3), Settings()

    monkeypatch.setitem(contract.MAKERS, "pair", make)
    law("pair", tmp_path / "law")


def test_a_cohort_of_the_new_format_is_judged_and_refined(pair: ModuleType, tmp_path: Path) -> None:
    updates = cohort(tmp_path / "in")
    report = detect(tmp_path / "in")
    found = {c.client: c.verdict for c in report.clients}
    assert found == {f"client-{k}": "benign" for k in range(1, 6)} | {"client-6": "contaminated"}
    refine(tmp_path / "in", tmp_path / "out", Settings(strength=0.5, rank="exact"))
    assert not (tmp_path / "out" / "client-6").exists()
    mean = updates[:5].mean(0)
    for k in range(5):
        adapter = open_adapter(tmp_path / "out" / f"client-{k + 1}")
        assert adapter.format == formats.record(adapter).name == "pair"
        for m, own in enumerate(updates[k]):
            dense = read_update(adapter, module(m), "float64").dense().numpy()
            assert np.linalg.norm(dense - mean[m]) < np.linalg.norm(own - mean[m])


def test_what_does_not_fit_the_new_format_is_refused(pair: ModuleType, tmp_path: Path) -> None:
    one, other = torch.ones(4, 2), torch.ones(3, 5)
    for n, tensors in enumerate(({"m/left": one}, {"m/left": one, "m/right": other})):
        folder = tmp_path / str(n)
        folder.mkdir()
        (folder / "a.safetensors").write_bytes(save(tensors, {"format": "pair"}))
        with pytest.raises(ShapeMismatch, match=r"a\.safetensors: 'm' has .*save"):
            open_adapter(folder)


def test_one_file_and_one_line_of_the_table_are_all_it_takes(tmp_path: Path) -> None:
    """In a copy of the package, as a contributor would do it, seen by the command."""
    package = tmp_path / "site" / "clair_cli"
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(Path(clair_cli.__file__).parent, package, ignore=ignored)
    (package / "formats" / "pair.py").write_text(SOURCE)
    table = package / "formats" / "__init__.py"
    text = table.read_text()
    for mark, line in (
        ("        peft.LORA,\n", LINE),
        ("from clair_cli.formats.bounds import", "from clair_cli.formats import pair\n"),
    ):
        assert text.count(mark) == 1
        text = text.replace(mark, line + mark)
    table.write_text(text)
    client = save_pair(tmp_path / "client", truths(1)[0])
    command = "import sys; sys.argv[0] = 'clair'; from clair_cli.entry import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", command, "inspect", client],
        cwd=tmp_path,
        env=ENVIRONMENT | {"PYTHONPATH": str(package.parent)},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("client: pair, base unknown, 2 modules")
    assert not (set(formats.FORMATS) & {"pair"})
