"""The server that the page on Flower shows, run with clients that send the samples."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

import pytest

pytest.importorskip("flwr", reason="needs the extra [flower]")

from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from safetensors.numpy import save_file

from tests import ROOT
from tests.docs.pages import blocks
from tests.helpers.messages import BAD, CONFIG, clients, start, trained_on

NODES = dict(enumerate(clients(), start=1))


class Grid:
    """Nodes that change what they are sent; the contaminated each in a way of its own."""

    def get_node_ids(self) -> Iterable[int]:
        return NODES

    def send_and_receive(self, messages: Iterable[Message], timeout: float) -> list[Message]:
        return [self._reply(message) for message in messages]

    def _reply(self, message: Message) -> Message:
        numbers = MetricRecord({"num-examples": 8, "loss": 1.0})
        if message.metadata.message_type == "evaluate":
            return Message(RecordDict({"metrics": numbers}), reply_to=message)
        sent = {name: array.numpy() for name, array in message.content["arrays"].items()}
        own = NODES[message.metadata.dst_node_id]
        number = message.content["config"]["server-round"]
        found = trained_on(sent, list(clients()), BAD, seed=number)[own]
        arrays = ArrayRecord({name: Array(values) for name, values in found.items()})
        return Message(RecordDict({"arrays": arrays, "metrics": numbers}), reply_to=message)


def test_the_server_of_the_page_leaves_out_the_contaminated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = ROOT / "docs" / "how-to" / "flower.md"
    (block,) = [b for b in blocks(page) if "ServerApp" in b.text and b.language == "python"]
    (tmp_path / "adapter").mkdir()
    shutil.copy(CONFIG, tmp_path / "adapter")
    save_file(start(), tmp_path / "adapter" / "adapter_model.safetensors")
    monkeypatch.chdir(tmp_path)
    for name in ("_run_id", "_node_id", "_task_id"):
        monkeypatch.setattr(TaskIdentity, name, 7)
    space: dict[str, object] = {"__name__": "server"}
    exec(compile(block.text, str(page), "exec"), space)
    context = Context(run_id=7, node_id=0, node_config={}, state=RecordDict(), run_config={})
    space["main"](Grid(), context)  # type: ignore[operator]
    names = {f"node-{node}" for node, name in NODES.items() if name in BAD}
    for number in (1, 2, 3):
        here = tmp_path / "reports" / "7" / f"round-{number}"
        record = (here / "round.json").read_text()
        assert all(f'"{name}"' in record for name in names)
        assert record.count('"contaminated') == len(BAD)
        assert {p.name for p in here.iterdir()} == {
            "sent",
            "clients",
            "report.json",
            "round.json",
        }
