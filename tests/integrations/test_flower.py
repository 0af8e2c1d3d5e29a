"""clair around Flower's own strategies, with the messages that Flower's grid would carry."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("flwr", reason="needs the extra [flower]")

from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.serverapp.exception import InconsistentMessageReplies
from flwr.serverapp.strategy import FedAvg, FedTrimmedAvg, Krum
from flwr.supercore.task_identity import TaskIdentity

from clair_cli.errors import UsageError
from clair_cli.integrations.flower import ClairStrategy
from tests.helpers.messages import BAD, CONFIG, Tensors, clients, start, trained_on

IDS = {name: 2**63 + k for k, name in enumerate(clients())}
"""As large as Flower's own."""
NAMES = {node: name for name, node in IDS.items()}
KEY = next(k for k in start() if "lora_B" in k)


class Grid:
    """The nodes, and nothing to carry messages."""

    def get_node_ids(self) -> Iterable[int]:
        return IDS.values()


@pytest.fixture(autouse=True)
def _in_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Messages are made by a task of a run, which the runtime of Flower sets."""
    for name in ("_run_id", "_node_id", "_task_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)


def record(tensors: Tensors) -> ArrayRecord:
    return ArrayRecord({name: Array(values) for name, values in tensors.items()})


def values(arrays: ArrayRecord) -> Tensors:
    return {name: array.numpy() for name, array in arrays.items()}


def reply(message: Message, arrays: Any, **metrics: Any) -> Message:
    numbers = MetricRecord({"num-examples": 8, "loss": 1.0, **metrics})
    content = RecordDict({"arrays": arrays, "metrics": numbers})
    return Message(content, reply_to=message)


def asked(strategy: ClairStrategy, arrays: ArrayRecord, number: int = 1) -> dict[str, Message]:
    """Each client's message."""
    messages = strategy.configure_train(number, arrays, ConfigRecord(), Grid())
    return {NAMES[m.metadata.dst_node_id]: m for m in messages}


def opened(tmp_path: Path, inner: Any = None, **options: Any) -> ClairStrategy:
    inner = inner or FedAvg(min_train_nodes=8, min_available_nodes=8)
    return ClairStrategy(inner, CONFIG, tmp_path / "reports", names=NAMES, **options)


def replies(strategy: ClairStrategy, odd: dict[str, Message] | None = None) -> list[Message]:
    """The samples, but for what is odd."""
    messages = asked(strategy, record(start()))
    own = {n: reply(m, record(clients()[n])) for n, m in messages.items()}
    return list((own | {n: make(messages[n]) for n, make in (odd or {}).items()}).values())


def mean(names: Iterable[str]) -> Tensors:
    found = [clients()[name] for name in names]
    return {key: np.mean([tensors[key] for tensors in found], axis=0) for key in found[0]}


GOOD = clients().keys() - BAD


def close(arrays: ArrayRecord | None, expected: Tensors) -> bool:
    assert arrays is not None
    found = values(arrays)
    same = (np.allclose(found[key], expected[key], atol=1e-6) for key in expected)
    return found.keys() == expected.keys() and all(same)


def test_fedavg_aggregates_the_rest(tmp_path: Path) -> None:
    strategy = opened(tmp_path)
    arrays, metrics = strategy.aggregate_train(1, replies(strategy))
    assert close(arrays, mean(GOOD))
    assert metrics is not None
    assert (metrics["clair-contaminated"], metrics["clair-benign"]) == (2, 6)
    assert (metrics["clair-left-out"], metrics["clair-fallback"]) == (2, 0)
    assert metrics["loss"] == pytest.approx(1.0)


@pytest.mark.parametrize("inner", [Krum, FedTrimmedAvg])
def test_any_strategy_gets_the_same_replies(tmp_path: Path, inner: Any) -> None:
    options = {"min_train_nodes": 8, "min_available_nodes": 8}
    strategy = opened(tmp_path, inner(**options))
    found = replies(strategy)
    messages = asked(opened(tmp_path / "alone"), record(start()))
    kept = [reply(messages[n], record(clients()[n])) for n in messages if n not in BAD]
    arrays, _ = strategy.aggregate_train(1, found)
    alone, _ = inner(**options).aggregate_train(1, kept)
    assert close(arrays, values(alone))


def test_the_mean_goes_to_everybody_and_the_next_round_is_judged_since_then(tmp_path: Path) -> None:
    strategy = opened(tmp_path, mode="mean")
    arrays, metrics = strategy.aggregate_train(1, replies(strategy))
    assert arrays is not None
    assert metrics is not None
    assert 0 <= metrics["clair-truncation-error"] < 1
    sent = values(arrays)
    assert {k: (v.shape, v.dtype) for k, v in sent.items()} == {
        k: (v.shape, v.dtype) for k, v in start().items()
    }
    messages = asked(strategy, arrays, 2)
    later = trained_on(sent, list(messages), BAD)
    _, metrics = strategy.aggregate_train(
        2, [reply(m, record(later[n])) for n, m in messages.items()]
    )
    assert strategy.outcome is not None
    assert strategy.outcome.left_out.keys() == BAD


def test_each_benign_node_is_sent_its_own_and_the_others_the_mean(tmp_path: Path) -> None:
    strategy = opened(tmp_path, mode="refined")
    arrays, _ = strategy.aggregate_train(1, replies(strategy))
    assert arrays is not None
    for messages in (
        asked(strategy, arrays, 2),
        {
            NAMES[m.metadata.dst_node_id]: m
            for m in strategy.configure_evaluate(2, arrays, ConfigRecord(), Grid())
        },
    ):
        sent = {n: values(m.content["arrays"]) for n, m in messages.items()}
        same = {n for n in sent if np.array_equal(sent[n][KEY], values(arrays)[KEY])}
        assert same & GOOD == set()
        assert same == BAD & sent.keys()
        assert all(m.content["config"]["server-round"] == 2 for m in messages.values())


def test_two_replies_are_aggregated_by_the_wrapped_and_that_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    strategy = opened(tmp_path)
    given = replies(strategy)[:2]
    with caplog.at_level(logging.INFO, "flwr"):
        arrays, metrics = strategy.aggregate_train(1, given)
    assert close(arrays, mean(NAMES[m.metadata.src_node_id] for m in given))
    assert metrics is not None
    assert metrics["clair-fallback"] == 1
    assert "decided nothing: 2 of at least 3 clients" in caplog.text


def test_without_a_verdict_the_arrays_can_stay_what_they_were(tmp_path: Path) -> None:
    strategy = opened(tmp_path, no_verdict="keep")
    arrays, metrics = strategy.aggregate_train(1, replies(strategy)[:2])
    assert arrays is None
    assert metrics is not None
    assert metrics["clair-fallback"] == 1


def changed(**fields: Any) -> Any:
    """A reply one array of which says something else of itself."""

    def make(message: Message) -> Message:
        arrays = record(clients()["client-01"])
        own = arrays[KEY]
        said = {"dtype": own.dtype, "shape": own.shape, "stype": own.stype, "data": own.data}
        arrays[KEY] = Array(**(said | fields))
        return reply(message, arrays)

    return make


def counted(count: Any, **more: Any) -> Any:
    return lambda m: reply(m, record(clients()["client-01"]), **{"num-examples": count, **more})


def two_records(message: Message) -> Message:
    content = reply(message, record(start())).content
    return Message(RecordDict({**content, "more": record(start())}), reply_to=message)


ODD = {
    "another serialisation": changed(stype="pickle"),
    "cut short": changed(data=b"\x93NUMPY"),
    "no examples": counted(0),
    "fewer than none": counted(-8),
    "nobody knows": counted(float("nan")),
    "all examples there are": counted(float("inf")),
    "a list": counted([8, 8]),
    "a metric more": counted(8, accuracy=1.0),
    "two records of arrays": two_records,
    "no arrays": lambda m: reply(m, ArrayRecord()),
    "an error": lambda m: Message(Error(code=0, reason="it crashed"), reply_to=m),
}


@pytest.mark.parametrize("what", ODD)
def test_one_reply_never_ends_the_round_of_the_others(tmp_path: Path, what: str) -> None:
    strategy = opened(tmp_path)
    odd = min(GOOD)
    arrays, metrics = strategy.aggregate_train(1, replies(strategy, {odd: ODD[what]}))
    assert close(arrays, mean(GOOD - {odd}))
    assert metrics is not None
    assert metrics["clair-left-out"] == len(BAD) + (what != "an error")


@pytest.mark.parametrize("what", ["a metric more", "two records of arrays", "no arrays"])
def test_without_clair_flower_ends_the_run_there(tmp_path: Path, what: str) -> None:
    given = replies(opened(tmp_path), {min(GOOD): ODD[what]})
    with pytest.raises(InconsistentMessageReplies):
        FedAvg().aggregate_train(1, given)


def test_a_round_of_errors_is_the_wrapped_strategy_s(tmp_path: Path) -> None:
    strategy = opened(tmp_path)
    assert strategy.aggregate_train(1, replies(strategy, dict.fromkeys(IDS, ODD["an error"]))) == (
        None,
        None,
    )


def test_a_node_has_one_voice(tmp_path: Path) -> None:
    strategy = opened(tmp_path)
    given = replies(strategy)
    again = next(m for m in given if NAMES[m.metadata.src_node_id] in GOOD)
    arrays, _ = strategy.aggregate_train(1, [*given, again, again])
    assert close(arrays, mean(GOOD))


def test_a_node_without_a_name_is_known_by_its_id(tmp_path: Path) -> None:
    inner = FedAvg(min_train_nodes=8, min_available_nodes=8)
    strategy = ClairStrategy(inner, CONFIG, tmp_path / "reports")
    strategy.aggregate_train(1, replies(strategy))
    assert strategy.outcome is not None
    assert strategy.outcome.left_out.keys() == {f"node-{IDS[name]}" for name in BAD}


@pytest.mark.parametrize("names", [{1: "a", 2: "a"}, {1: "node-2"}])
def test_names_that_could_stand_for_two_nodes_are_refused(
    tmp_path: Path, names: dict[int, str]
) -> None:
    with pytest.raises(UsageError, match="names"):
        ClairStrategy(FedAvg(), CONFIG, tmp_path / "reports", names=names)


def test_evaluation_is_the_wrapped_strategy_s(tmp_path: Path) -> None:
    strategy = opened(tmp_path)
    messages = strategy.configure_evaluate(1, record(start()), ConfigRecord(), Grid())
    found = [
        Message(RecordDict({"metrics": MetricRecord({"num-examples": 2, "loss": k})}), reply_to=m)
        for k, m in enumerate(messages)
    ]
    metrics = strategy.aggregate_evaluate(1, found)
    assert metrics is not None
    assert metrics["loss"] == pytest.approx(np.mean(range(len(found))))
