"""clair as the aggregator of NVFlare: by itself, and in NVFlare's simulator."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("nvflare", reason="needs the extra [nvflare]")

from nvflare.apis.dxo import DXO, DataKind, from_shareable
from nvflare.apis.fl_constant import ReservedKey, ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable, make_reply
from nvflare.app_common.abstract.model import make_model_learnable
from nvflare.app_common.app_constant import AppConstants

from clair_cli.integrations.nvflare import ClairAggregator
from tests import ROOT
from tests.docs.pages import blocks
from tests.helpers.messages import BAD, CONFIG, Tensors, clients, start
from tests.helpers.superlink import environment

KEY = next(k for k in start() if "lora_B" in k)
GOOD = clients().keys() - BAD


def in_round(number: int, weights: Tensors) -> FLContext:
    context = FLContext()
    context.set_prop(AppConstants.GLOBAL_MODEL, make_model_learnable(weights, {}))
    context.set_prop(AppConstants.CURRENT_ROUND, number)
    return context


def reply(client: str, data: Any, kind: str = DataKind.WEIGHTS) -> Shareable:
    return named(client, DXO(data_kind=kind, data=data).to_shareable())


def named(client: str, found: Shareable) -> Shareable:
    found.set_peer_props({ReservedKey.IDENTITY_NAME: client})
    return found


def opened(tmp_path: Path) -> ClairAggregator:
    return ClairAggregator(str(CONFIG), str(tmp_path / "reports"))


def left_out(tmp_path: Path) -> set[str]:
    record = json.loads((tmp_path / "reports" / "round-1" / "round.json").read_text())
    return {c["id"] for c in record["clients"] if c["left_out"]}


def test_the_mean_is_sent_and_the_contaminated_are_left_out(tmp_path: Path) -> None:
    aggregator, context = opened(tmp_path), in_round(0, start())
    assert all(aggregator.accept(reply(n, t), context) for n, t in clients().items())
    found = from_shareable(aggregator.aggregate(context)).data
    assert left_out(tmp_path) == BAD
    assert {k: (v.shape, v.dtype) for k, v in found.items()} == {
        k: (v.shape, v.dtype) for k, v in start().items()
    }
    assert any(np.abs(found[k]).max() > 0 for k in found if "lora_B" in k)


ODD = {
    "a difference": lambda n: reply(n, clients()[n], DataKind.WEIGHT_DIFF),
    "metrics": lambda n: reply(n, {"loss": 1.0}, DataKind.METRICS),
    "Python objects": lambda n: reply(n, {**clients()[n], KEY: np.array([{}])}),
    "text": lambda n: reply(n, {**clients()[n], KEY: "x"}),
    "another shape": lambda n: reply(n, {**clients()[n], KEY: np.zeros((2, 2), np.float32)}),
    "nothing": lambda n: named(n, Shareable()),
}


@pytest.mark.parametrize("what", ODD)
def test_one_reply_never_ends_the_round_of_the_others(tmp_path: Path, what: str) -> None:
    aggregator, context, odd = opened(tmp_path), in_round(0, start()), min(GOOD)
    for name, tensors in clients().items():
        aggregator.accept(ODD[what](name) if name == odd else reply(name, tensors), context)
    aggregator.aggregate(context)
    assert left_out(tmp_path) == BAD | {odd}


def test_a_client_has_one_voice_and_a_failure_is_none(tmp_path: Path) -> None:
    aggregator, context = opened(tmp_path), in_round(0, start())
    assert aggregator.accept(reply("a", start()), context)
    assert not aggregator.accept(reply("a", start()), context)
    assert not aggregator.accept(named("b", make_reply(ReturnCode.EXECUTION_EXCEPTION)), context)


def test_without_a_verdict_the_weights_stay(tmp_path: Path) -> None:
    aggregator, context = opened(tmp_path), in_round(0, start())
    for name in sorted(clients())[:2]:
        aggregator.accept(reply(name, clients()[name]), context)
    found = from_shareable(aggregator.aggregate(context)).data
    assert all(np.array_equal(found[k], v) for k, v in start().items())


def test_the_job_of_the_page_takes_the_aggregator() -> None:
    page = ROOT / "docs" / "how-to" / "flower.md"
    (block,) = [b for b in blocks(page) if "FedJob" in b.text and b.language == "python"]
    space: dict[str, object] = {}
    exec(compile(block.text, str(page), "exec"), space)
    assert space["aggregator_id"] == "aggregator_id"


JOB = """
import sys
from nvflare.app_common.shareablegenerators.full_model_shareable_generator import (
    FullModelShareableGenerator,
)
from nvflare.app_common.workflows.scatter_and_gather import ScatterAndGather
from nvflare.job_config.api import FedJob
from clair_cli.integrations.nvflare import ClairAggregator
from tests.helpers.messages import CONFIG, clients
from tests.helpers.nvflare_app import Persistor, Trainer

folder, names = sys.argv[1], list(clients())
job = FedJob(name="rounds", min_clients=len(names))
parts = {
    "persistor_id": Persistor(f"{folder}/last.npz"),
    "shareable_generator_id": FullModelShareableGenerator(),
    "aggregator_id": ClairAggregator(str(CONFIG), f"{folder}/reports"),
}
ids = {key: job.to_server(part, id=key) or key for key, part in parts.items()}
flow = ScatterAndGather(min_clients=len(names), num_rounds=3, train_task_name="train",
                        wait_time_after_min_received=0, **ids)
job.to_server(flow)
for name in names:
    job.to(Trainer(), name, tasks=["train"])
job.simulator_run(f"{folder}/work", threads=1)
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_three_rounds_in_the_simulator_leave_out_the_contaminated(tmp_path: Path) -> None:
    command = [sys.executable, "-c", JOB, str(tmp_path)]
    env = environment(tmp_path / "home")
    done = subprocess.run(
        command, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=800
    )
    assert done.returncode == 0, done.stderr[-4000:]
    for number in (1, 2, 3):
        record = json.loads((tmp_path / "reports" / f"round-{number}" / "round.json").read_text())
        assert {c["id"] for c in record["clients"]} == clients().keys(), done.stdout[-4000:]
        assert {c["id"] for c in record["clients"] if c["left_out"]} == BAD
    with np.load(tmp_path / "last.npz") as last:
        assert last[KEY].shape == start()[KEY].shape
