"""Work on tensors that stay in place, replayed as one CUDA graph: no launch costs, no Python between kernels."""

from __future__ import annotations

from collections.abc import Callable

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
