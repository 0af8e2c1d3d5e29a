"""Streams of a device: copies beside computations, and what keeps one from using what the other has not
finished. The one place that knows of streams, so that tests put something else there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
from torch import Tensor

Ticket = Any
"""What says when tensors are there: on CUDA an event."""


class Lane(Protocol):
    """Where a thread that reads ahead makes tensors."""

    def within(self) -> AbstractContextManager[Any]:
        """What is begun in the block, in this thread, runs beside what other threads begin."""

    def sent(self, tensors: Sequence[Tensor]) -> Ticket:
        """For these, which have been begun in the lane; called within it."""

    def received(self, ticket: Ticket, tensors: Sequence[Tensor]) -> None:
        """What this thread begins from now on finds these tensors finished, and their memory is not
        given to others before it has ended."""


class CudaLane:
    """A stream of its own on the current CUDA device."""

    def __init__(self) -> None:
        self.stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]

    def within(self) -> AbstractContextManager[Any]:
        """Copies from pinned memory run here, and conversions to the dtype of the computation."""
        return torch.cuda.stream(self.stream)

    def sent(self, tensors: Sequence[Tensor]) -> torch.cuda.Event:
        """An event behind all that is in the stream by now."""
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record(self.stream)
        return event

    def received(self, ticket: torch.cuda.Event, tensors: Sequence[Tensor]) -> None:
        """The device waits, not this thread."""
        now = torch.cuda.current_stream()
        now.wait_event(ticket)
        for tensor in tensors:
            tensor.record_stream(now)  # its memory was given out for the other stream


LANES: dict[str, Callable[[], Lane]] = {"cuda": CudaLane}
"""By the device. On others everything is read when its turn comes."""
