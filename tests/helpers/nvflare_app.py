"""What an app of NVFlare needs besides an aggregator: where the weights begin, and who trains them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from nvflare.apis.dxo import DXO, DataKind, from_shareable
from nvflare.apis.executor import Executor
from nvflare.apis.shareable import Shareable
from nvflare.app_common.abstract.learnable_persistor import LearnablePersistor
from nvflare.app_common.abstract.model import ModelLearnableKey, make_model_learnable

from tests.helpers.messages import BAD, clients, start, trained_on


class Trainer(Executor):
    """Changes what it is sent as the sample of its name would: contaminated or not."""

    def execute(self, task_name: str, shareable: Any, fl_ctx: Any, abort_signal: Any) -> Shareable:
        sent = from_shareable(shareable).data
        name, number = fl_ctx.get_identity_name(), int(shareable.get_header("current_round"))
        found = trained_on(sent, list(clients()), BAD, seed=number)[name]
        return DXO(data_kind=DataKind.WEIGHTS, data=found).to_shareable()


class Persistor(LearnablePersistor):
    """Begins with an adapter that adds nothing, and leaves the last weights in a file."""

    def __init__(self, out: str) -> None:
        super().__init__()
        self.out = out

    def load(self, fl_ctx: Any) -> Any:
        return make_model_learnable(start(), {})

    def save(self, learnable: Any, fl_ctx: Any) -> None:
        np.savez(Path(self.out), **learnable[ModelLearnableKey.WEIGHTS])
