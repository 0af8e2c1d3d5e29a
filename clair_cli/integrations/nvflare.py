"""An aggregator for NVFlare that sends what was sent and the mean change of the benign clients.

Needs the extra [nvflare]. For workflows as ScatterAndGather, whose clients reply with the tensors of an
adapter under PEFT's names, as a DXO of WEIGHTS in numpy.
"""

from __future__ import annotations

from io import BytesIO
from typing import Any

import numpy as np
from nvflare.apis.dxo import DXO, DataKind, from_shareable
from nvflare.apis.fl_constant import ReservedKey, ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable
from nvflare.app_common.abstract.aggregator import Aggregator
from nvflare.app_common.abstract.model import ModelLearnableKey
from nvflare.app_common.app_constant import AppConstants

from clair_cli.formats import npz
from clair_cli.integrations.rounds import Arrays, Rounds
from clair_cli.renderers.safe import safe_text
from clair_cli.settings import Settings


class ClairAggregator(Aggregator):
    """Judges each round, writes it below `report_dir`, a new or empty folder, and sends the mean.

    `adapter_config` is the path of the adapter_config.json of all, or of a folder with it. Without
    a verdict the weights stay what they were, and the log says so. Without `keep` adapters are deleted
    once judged, and the reports stay. Clients are known by their names in the federation. Raises
    UsageError in the first round where a path cannot be used or what is sent is no adapter.
    """

    def __init__(
        self,
        adapter_config: str,
        report_dir: str,
        fail_on: str = "contaminated",
        keep: bool = True,
    ) -> None:
        super().__init__()
        self.adapter_config, self.report_dir = adapter_config, report_dir
        self.fail_on, self.keep = fail_on, keep
        self._rounds: Rounds | None = None
        self._replies: dict[str, Arrays | str] = {}

    def accept(self, shareable: Shareable, fl_ctx: FLContext) -> bool:
        """Take the first reply of a client; whether it counts is known when all are there."""
        client = str(shareable.get_peer_prop(ReservedKey.IDENTITY_NAME, "?"))
        if client in self._replies or shareable.get_return_code() not in (None, ReturnCode.OK):
            return False
        self._replies[client] = _read(shareable)
        return True

    def aggregate(self, fl_ctx: FLContext) -> Shareable:
        """The mean of the round, or the weights as they were."""
        weights = fl_ctx.get_prop(AppConstants.GLOBAL_MODEL)[ModelLearnableKey.WEIGHTS]
        number = fl_ctx.get_prop(AppConstants.CURRENT_ROUND) + 1
        replies, self._replies = self._replies, {}
        if replies:
            weights = self._judged(number, replies, weights, fl_ctx)
        return DXO(data_kind=DataKind.WEIGHTS, data=weights).to_shareable()

    def reset(self, fl_ctx: FLContext) -> None:
        """Forget replies that no round took."""
        self._replies.clear()

    def _judged(
        self, number: int, replies: dict[str, Arrays | str], weights: Any, fl_ctx: FLContext
    ) -> Any:
        if self._rounds is None:
            settings = Settings(fail_on=self.fail_on)
            place, config = self.report_dir, self.adapter_config
            self._rounds = Rounds(place, config, "mean", settings, self.keep)
        sent = {name: _file(values) for name, values in weights.items()}
        self._rounds.send(number, dict.fromkeys(replies, sent))
        outcome = self._rounds.judge(number, replies)
        self.log_info(fl_ctx, f"clair, round {number}: {outcome.numbers}")
        for client, why in outcome.left_out.items():
            text = f"clair, round {number}: without {safe_text(client)}: {safe_text(why)}"
            self.log_warning(fl_ctx, text)
        if outcome.mean is None:
            text = f"clair, round {number} decided nothing: {outcome.fallback}"
            self.log_warning(fl_ctx, f"{text}; the weights stay as they were")
            return weights
        return {name: _values(data, name) for name, data in outcome.mean.items()}


def _read(shareable: Shareable) -> Arrays | str:
    """The arrays of a reply, or why it cannot count."""
    try:
        dxo = from_shareable(shareable)
        if dxo.data_kind != DataKind.WEIGHTS:
            return f"its reply is {dxo.data_kind}, expected {DataKind.WEIGHTS}"
        return {str(name): _file(values) for name, values in dxo.data.items()}
    except (AttributeError, TypeError, ValueError) as cause:
        return f"its reply holds no arrays of numbers: {str(cause)[:200]}"


def _file(values: Any) -> bytes:
    """A .npy file. Raises ValueError for what could only be pickled."""
    file = BytesIO()
    np.save(file, np.asarray(values), allow_pickle=False)
    return file.getvalue()


def _values(data: bytes, name: str) -> Any:
    """The array in a .npy file that clair wrote."""
    head = npz.array_header(data, len(data), repr(name))
    flat = np.frombuffer(data, head.descr[:3], offset=head.head)
    return flat.reshape(head.shape, order="F" if head.fortran else "C").copy()
