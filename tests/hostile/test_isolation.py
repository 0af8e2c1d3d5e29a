"""Whatever one client makes fail is that client's failure, and the others get their verdicts."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from clair_cli import formats
from clair_cli.detection import forms, full, judging
from clair_cli.detection.guard import spared
from clair_cli.errors import AdapterError, ChangedWhileRead, UsageError
from clair_cli.inspection import inspect
from clair_cli.pipeline import detect
from clair_cli.report import Report
from clair_cli.settings import Settings
from tests.helpers.cohorts import save_cohort

BAD = "client-3"
FAILURES = [
    IndexError("index -1 is out of bounds for dimension 0 with size 0"),
    RuntimeError("DefaultCPUAllocator: can't allocate memory\nby two lines"),
    MemoryError(),
    RecursionError("maximum recursion depth exceeded"),
    torch.linalg.LinAlgError("the algorithm failed to converge"),
    torch.OutOfMemoryError("CUDA out of memory"),
    AssertionError(),
    ZeroDivisionError("division by zero"),
    KeyError("x"),
    UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"),
]


def ids(error: object) -> str:
    return type(error).__name__


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_cohort(tmp_path / "round", 7)
    return tmp_path / "round"


def verdicts(report: Report) -> dict[str, str]:
    return {c.client: c.verdict for c in report.clients}


def without_bad(folder: Path) -> Report:
    return detect(folder, Settings(ignore=(BAD,)))


def assert_alone(report: Report, others: Report, code: str = "CLR120") -> None:
    """The bad client is broken for a reason of one line; all else is as if it had not come."""
    found = {c.client: c for c in report.clients}
    assert found[BAD].verdict == "broken"
    (reason,) = found.pop(BAD).reasons
    assert reason.code == code
    assert reason.message == " ".join(reason.message.split())
    assert [(c.client, c.verdict, c.score) for c in found.values()] == [
        (c.client, c.verdict, c.score) for c in others.clients
    ]
    assert report.status == "complete"


def failing(real: Callable[..., Any], error: BaseException, *places: Any) -> Callable[..., Any]:
    """`real`, but for the bad client."""

    def fails(first: Any, *rest: Any, **named: Any) -> Any:
        if BAD in str(first) or getattr(first, "client", "") == BAD:
            raise error
        return real(first, *rest, **named)

    return fails


@pytest.mark.parametrize("error", FAILURES, ids=ids)
def test_a_failure_in_opening_is_one_clients(
    error: Exception, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    others = without_bad(folder)
    monkeypatch.setattr(formats, "locate", failing(formats.locate, error))
    assert_alone(detect(folder), others)


@pytest.mark.parametrize("error", FAILURES, ids=ids)
def test_a_failure_in_reading_is_one_clients(
    error: Exception, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    others = without_bad(folder)
    monkeypatch.setattr(forms, "read_estimate", failing(forms.read_estimate, error))
    assert_alone(detect(folder), others)


@pytest.mark.parametrize("error", FAILURES[:4], ids=ids)
def test_a_failure_in_a_module_of_all_is_of_the_client_without_whom_there_is_none(
    error: Exception, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    others, real = without_bad(folder), forms.stack_module
    marked = formats.read_update(formats.open_adapter(folder / BAD), "layers.1.q_proj").up

    def fails(module: str, updates: Any, *rest: Any) -> Any:
        if any(u.up.shape == marked.shape and torch.equal(u.up, marked) for u in updates):
            raise error
        return real(module, updates, *rest)

    monkeypatch.setattr(forms, "stack_module", fails)
    assert_alone(detect(folder), others)


@pytest.mark.parametrize("error", FAILURES[:4], ids=ids)
@pytest.mark.parametrize("step", ["decompose", "judge", "settled"])
def test_a_failure_of_the_decomposition_is_of_the_client_without_whom_there_is_none(
    step: str, error: Exception, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    others, real = without_bad(folder), getattr(judging, step)
    energy = float(formats.norm(formats.open_adapter(folder / BAD), "layers.0.q_proj") ** 2)
    seen: list[bool] = []

    def there(stacks: Any) -> bool:
        return bool(((stacks[0].energies - energy).abs() < 1e-4 * energy).any())

    def noted(stacks: Any, *rest: Any) -> Any:
        seen.append(there(stacks))
        return solver(stacks, *rest)

    def fails(*given: Any) -> Any:
        if seen[-1]:
            raise error
        return real(*given)

    solver = judging.decompose
    monkeypatch.setattr(judging, step, fails)
    if step == "decompose":
        monkeypatch.setattr(
            judging, step, lambda s, *rest: (seen.append(there(s)), fails(s, *rest))[1]
        )
    else:
        monkeypatch.setattr(judging, "decompose", noted)
    assert_alone(detect(folder), others)


def test_what_fails_whoever_is_left_out_is_no_clients_failure(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any) -> Any:
        raise IndexError("of clair's own")

    monkeypatch.setattr(judging, "decompose", fails)
    with pytest.raises(IndexError, match="of clair's own"):
        detect(folder)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(3), UsageError("--base")])
def test_an_interrupt_and_a_usage_error_are_nobodys(
    error: BaseException, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forms, "read_estimate", failing(forms.read_estimate, error))
    with pytest.raises(type(error)):
        detect(folder)


def test_an_error_that_clair_knows_keeps_its_code(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    others, error = without_bad(folder), ChangedWhileRead("changed")
    monkeypatch.setattr(forms, "read_estimate", failing(forms.read_estimate, error))
    assert_alone(detect(folder), others, "CLR112")


def test_inspecting_it_says_that_it_is_broken(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(formats, "norm", failing(formats.norm, IndexError("x")))
    with pytest.raises(AdapterError, match="cannot be read: IndexError: x") as caught:
        inspect(folder / BAD, Settings())
    assert caught.value.code == "CLR120"


# --- time


def slow(real: Callable[..., Any], clients: tuple[str, ...], seconds: float) -> Callable[..., Any]:
    def reads(adapter: Any, *rest: Any) -> Any:
        if adapter.client in clients:
            time.sleep(seconds)
        return real(adapter, *rest)

    return reads


def test_a_client_that_takes_too_long_is_broken(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    others = without_bad(folder)
    monkeypatch.setattr(forms, "read_estimate", slow(forms.read_estimate, (BAD,), 0.4))
    report = detect(folder, Settings(client_timeout=0.3))
    assert_alone(report, others, "CLR111")
    assert (
        "--client-timeout" in next(c for c in report.clients if c.client == BAD).reasons[0].message
    )


def test_where_all_take_long_nobody_takes_too_long(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """0.35 s over both modules, of which 0.2 are granted to begin with."""
    everybody = tuple(p.name for p in folder.iterdir())
    monkeypatch.setattr(forms, "read_estimate", slow(forms.read_estimate, everybody, 0.17))
    assert set(verdicts(detect(folder, Settings(client_timeout=0.2))).values()) == {"benign"}


def test_a_client_that_is_opened_for_too_long_is_broken(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    others, real = without_bad(folder), formats.locate

    def locate(path: Path, *rest: Any) -> Any:
        if path.name == BAD:
            time.sleep(1.2)
        return real(path, *rest)

    monkeypatch.setattr(formats, "locate", locate)
    assert_alone(detect(folder, Settings(client_timeout=1.0)), others, "CLR111")


# --- who is to blame


def blamed(guilty: set[int], together: int = 1, count: int = 8) -> set[int]:
    """Who is left out where `together` of the guilty make it fail."""

    def compute(kept: Any) -> int:
        if len(guilty & set(kept)) >= together:
            raise ValueError("x")
        return len(kept)

    found, failed = spared(compute, list(range(count)), "adding up")
    assert found == count - len(failed)
    return set(failed)


@pytest.mark.parametrize("guilty", [set(), {0}, {7}, {6}, {3}, {2, 5}, {0, 1, 2}, {0, 6, 7}])
def test_the_guilty_are_left_out(guilty: set[int]) -> None:
    assert blamed(guilty) == guilty


def test_few_trials_find_who_is_guilty() -> None:
    tried = []

    def compute(kept: Any) -> int:
        tried.append(kept)
        if 5 in kept:
            raise ValueError("x")
        return 1

    assert set(spared(compute, list(range(1000)), "adding up")[1]) == {5}
    assert len(tried) < 40


def test_of_two_that_fail_together_one_is_left_out() -> None:
    assert blamed({2, 6}, together=2) in ({2}, {6})


def test_full_matrices_that_fail_are_one_clients(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors.torch import load_file, save_file

    for k, client in enumerate(sorted(folder.iterdir())):
        path = client / "adapter_model.safetensors"
        head = torch.ones(3, 4) + 0.01 * torch.randn(
            3, 4, generator=torch.Generator().manual_seed(k)
        )
        save_file(load_file(path) | {"base_model.model.score.weight": head}, path)
    others = without_bad(folder)
    monkeypatch.setattr(full, "read_full_estimate", failing(full.read_full_estimate, MemoryError()))
    assert_alone(detect(folder), others)
