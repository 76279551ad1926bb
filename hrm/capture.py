"""Keeping a GPU busy: work on tensors that stay in place, replayed as one CUDA graph, and numbers read later."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator

import torch

WARMUP_CALLS = 3  # compiles, autotunes and lets libraries allocate their workspaces, none of which may be captured


class Captured:
    """Calls `work`; on a CUDA device from the fourth call on by replaying what the capture recorded.

    `work` reads and writes the same tensors at every call and may not wait for the device.
    """

    def __init__(self, work: Callable[[], None], device: torch.device) -> None:
        self.work, self.device = work, device
        self.calls = 0
        self.graph: torch.cuda.CUDAGraph | None = None

    def __call__(self) -> None:
        if self.device.type != "cuda":
            self.work()
            return
        if self.calls < WARMUP_CALLS:
            self._warm_up()
            return
        if self.graph is None:
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph):
                self.work()
        self.graph.replay()

    def _warm_up(self) -> None:
        self.calls += 1
        stream = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(stream):
            self.work()
        torch.cuda.current_stream(self.device).wait_stream(stream)


class Readback:
    """Small device tensors as floats, in order, without waiting for the newest."""

    def __init__(self) -> None:
        self._pending: deque[tuple[int, torch.Tensor, torch.cuda.Event | None]] = deque()

    def put(self, step: int, values: torch.Tensor) -> None:
        """Ask for what `values` [k] hold once the work queued so far is done; `step` says of what they speak."""
        if values.device.type != "cuda":
            self._pending.append((step, values.clone(), None))
            return
        pinned = torch.empty(values.shape, dtype=values.dtype, pin_memory=True).copy_(values, non_blocking=True)
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record()
        self._pending.append((step, pinned, event))

    def take(self, lag: int) -> Iterator[tuple[int, list[float]]]:
        """(step, values) of all but the newest `lag`, oldest first, waiting for them."""
        while len(self._pending) > lag:
            step, values, event = self._pending.popleft()
            if event is not None:
                event.synchronize()
            yield step, values.tolist()

    def clear(self) -> None:
        self._pending.clear()
