"""A strategy for Flower's Message API that judges each round before another strategy aggregates it.

Needs the extra [flower]. Messages carry one ArrayRecord: the tensors of an adapter under PEFT's names,
as get_peft_model_state_dict gives them.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from clair_cli.errors import UsageError
from clair_cli.formats import npz
from clair_cli.integrations.rounds import Arrays, Mode, Outcome, Rounds
from clair_cli.renderers.safe import safe_text
from clair_cli.settings import Settings

NoVerdict = Literal["aggregate", "keep"]
NUMPY = "numpy.ndarray"
"""The only serialisation of an Array that Flower's strategies read."""
log = logging.getLogger("flwr")


class ClairStrategy(Strategy):
    """Each round: write down the replies, judge what each client changed since it was sent, then
    aggregate.

    `strategy` samples the nodes and aggregates. `adapter_config` is the adapter_config.json of all
    clients, a folder with it, or what is in it (LoraConfig.to_dict()). `report_dir` is a new or empty
    folder. `mode` says what becomes of a round that has a verdict:

    - "exclude": `strategy` aggregates without those who fail the gate `settings.fail_on`;
    - "mean": what was sent and the mean change of the benign clients is sent to all;
    - "refined": each benign client gets its own refined adapter, all others that mean.

    Without a verdict, as with fewer than three replies, `strategy` aggregates all that can be read, and
    the log and the metrics say so; with `no_verdict` "keep" the arrays stay what they were. `names`
    gives nodes the names they have in reports, else node-ID. Without `keep` adapters are deleted once
    judged, and the reports stay. Raises UsageError, and OutputError where the disk is full.
    """

    def __init__(
        self,
        strategy: Strategy,
        adapter_config: Path | str | Mapping[str, Any],
        report_dir: Path | str,
        *,
        mode: Mode = "exclude",
        settings: Settings | None = None,
        names: Mapping[int, str] | None = None,
        no_verdict: NoVerdict = "aggregate",
        keep: bool = True,
    ) -> None:
        self.strategy, self.no_verdict, self.names = strategy, no_verdict, dict(names or {})
        if no_verdict not in get_args(NoVerdict):
            text = f"expected one of {', '.join(get_args(NoVerdict))}, got {no_verdict!r}"
            raise UsageError(f"no_verdict: {text}")
        if twice := [n for n, k in Counter(self.names.values()).items() if k > 1]:
            raise UsageError(f"names: {twice[0]!r} stands for several nodes")
        if taken := [n for n in self.names.values() if n.startswith("node-")]:
            raise UsageError(
                f"names: {taken[0]!r} could be another node's; choose one without node-"
            )
        self.rounds = Rounds(report_dir, adapter_config, mode, settings, keep)
        self.own: dict[int, ArrayRecord] = {}
        self.outcome: Outcome | None = None

    def summary(self) -> None:
        """Log what is wrapped, and how."""
        log.info("\t├──> clair: mode %r, reports in %s", self.rounds.mode, self.rounds.place)
        log.info("\t└──> aggregated by %s:", type(self.strategy).__name__)
        self.strategy.summary()

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """The messages of the wrapped strategy, with a node's own adapter where it has one."""
        messages = list(self.strategy.configure_train(server_round, arrays, config, grid))
        self._address(messages)
        if messages:
            self.rounds.send(server_round, self._sent(messages))
        return messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Judge the replies, and aggregate those that are not left out."""
        replies = list(replies)
        by_name: dict[str, Message] = {}
        for reply in replies:
            if not reply.has_error():
                by_name.setdefault(self._name(reply.metadata.src_node_id), reply)
        if not by_name:
            aggregated, metrics = self.strategy.aggregate_train(server_round, replies)
            return aggregated, metrics
        outcome = self.rounds.judge(server_round, self._read(by_name))
        self.outcome = outcome
        _say(server_round, outcome)
        kept = [reply for name, reply in by_name.items() if name not in outcome.left_out]
        failed = [reply for reply in replies if reply.has_error()]
        aggregated, metrics = None, None
        if outcome.fallback is None or self.no_verdict == "aggregate":
            aggregated, metrics = self.strategy.aggregate_train(server_round, kept + failed)
            nodes = {name: reply.metadata.src_node_id for name, reply in by_name.items()}
            self.own = {nodes[name]: _record(a) for name, a in outcome.own.items()}
        if outcome.mean is not None:
            aggregated = _record(outcome.mean)
        metrics = MetricRecord() if metrics is None else metrics
        metrics.update({f"clair-{name}": value for name, value in outcome.numbers.items()})
        return aggregated, metrics

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """The messages of the wrapped strategy, with a node's own adapter where it has one."""
        messages = list(self.strategy.configure_evaluate(server_round, arrays, config, grid))
        self._address(messages)
        return messages

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """What the wrapped strategy makes of them."""
        return self.strategy.aggregate_evaluate(server_round, replies)

    def _name(self, node: int) -> str:
        return self.names.get(node, f"node-{node}")

    def _address(self, messages: Iterable[Message]) -> None:
        """Each node that has an adapter of its own gets that; messages may share one content."""
        for message in messages:
            own = self.own.get(message.metadata.dst_node_id)
            if own is not None:
                arrays = message.content.array_records
                content = {k: own if k in arrays else v for k, v in message.content.items()}
                message.content = RecordDict(content)

    def _sent(self, messages: Iterable[Message]) -> dict[str, Arrays]:
        """Name -> what that node is sent. Raises UsageError where that is not one ArrayRecord."""
        found: dict[int, Arrays] = {}
        sent = {}
        for message in messages:
            records = list(message.content.array_records.values())
            if len(records) != 1:
                text = f"{type(self.strategy).__name__} sends {len(records)} ArrayRecords"
                raise UsageError(f"{text}, and clair judges one: the tensors of an adapter")
            files = {name: array.data for name, array in records[0].items()}
            arrays = found.setdefault(id(records[0]), files)
            sent[self._name(message.metadata.dst_node_id)] = arrays
        return sent

    def _read(self, replies: Mapping[str, Message]) -> dict[str, Arrays | str]:
        """Name -> its arrays, or what would make the wrapped strategy give up the whole round."""
        kinds = Counter(_kind(reply.content) for reply in replies.values())
        usual = kinds.most_common(1)[0][0]
        weight = getattr(self.strategy, "weighted_by_key", None)
        read: dict[str, Arrays | str] = {}
        for name, reply in replies.items():
            if _kind(reply.content) != usual:
                read[name] = "its records have other names than those of the other replies"
            else:
                read[name] = _usable(reply.content, weight)
        return read


def _kind(content: RecordDict) -> tuple[Any, ...]:
    """What Flower's strategies want alike in all replies but the arrays themselves."""
    metrics = sorted(
        (record, sorted((k, len(v) if isinstance(v, list) else -1) for k, v in values.items()))
        for record, values in content.metric_records.items()
    )
    return tuple(sorted(content.array_records)), repr(metrics)


def _usable(content: RecordDict, weight: str | None) -> Arrays | str:
    """The arrays of a reply, or why it cannot count."""
    records = list(content.array_records.values())
    if len(records) != 1:
        return f"{len(records)} ArrayRecords, expected one"
    if odd := [a.stype for a in records[0].values() if a.stype != NUMPY]:
        return f"an array is serialised as {odd[0][:40]!r}, expected {NUMPY}"
    for metrics in content.metric_records.values():
        count = metrics.get(weight, 1)
        if isinstance(count, list) or not 0 < count < 2**63:
            return f"its {weight} is {str(count)[:40]}, expected a positive number"
    return {name: array.data for name, array in records[0].items()}


def _record(arrays: Arrays) -> ArrayRecord:
    """The same for Flower's messages."""
    found = {}
    for name, data in arrays.items():
        head = npz.array_header(data, len(data), repr(name))
        dtype = np.dtype(head.descr[:3]).name
        found[name] = Array(dtype=dtype, shape=head.shape, stype=NUMPY, data=data)
    return ArrayRecord(found)


def _say(number: int, outcome: Outcome) -> None:
    """One line for the round, and one for each client that is left out."""
    said = ", ".join(f"{n} {what}" for what, n in outcome.numbers.items() if what != "fallback")
    log.info("clair, round %d: %s", number, said)
    if outcome.fallback is not None:
        log.warning("clair, round %d decided nothing: %s", number, safe_text(outcome.fallback))
    for client, why in outcome.left_out.items():
        log.warning("clair, round %d: without %s: %s", number, safe_text(client), safe_text(why))
