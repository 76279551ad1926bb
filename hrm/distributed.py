"""Several processes that train one model (torchrun): each holds a share of the global batch.

One all-reduce a step averages gradients and loss as one flat tensor; at 27 M parameters it is 109 MB, under 2 % of a
step between two GPUs of one host, so there is nothing for bucketed overlap to hide, and a CUDA graph can hold it.

    torchrun --standalone --nproc-per-node 2 --no-python hrm train
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Self

import torch
from torch import Tensor, distributed

from core.errors import ConfigError

# The others wait while the first process validates and exports. torchrun ends all when one dies, so no timeout must.
PATIENCE = timedelta(days=7)


@dataclass(frozen=True)
class World:
    """This process among those that train together."""

    rank: int = 0
    size: int = 1

    @classmethod
    def current(cls) -> Self:
        """One process alone, unless torch.distributed has been initialised."""
        if not (distributed.is_available() and distributed.is_initialized()):
            return cls()
        return cls(distributed.get_rank(), distributed.get_world_size())

    @property
    def leads(self) -> bool:
        """Whether this is the one process that validates, reports, writes and publishes."""
        return self.rank == 0

    def share(self, rows: Tensor) -> Tensor:
        """This process's part of global rows [size * B, ...]. Raises ConfigError if they cannot be shared equally."""
        if len(rows) % self.size:
            raise ConfigError(
                f"a batch of {len(rows)} rows cannot be shared equally by {self.size} processes; "
                f"choose a performance.batch_size that is a multiple of {self.size}"
            )
        return rows.chunk(self.size)[self.rank]

    @torch.no_grad()
    def average(self, tensors: list[Tensor]) -> None:
        """Replace each tensor by its mean over the processes."""
        if self.size == 1:
            return
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        distributed.all_reduce(flat)
        flat /= self.size
        parts = torch.split(flat, [tensor.numel() for tensor in tensors])
        torch._foreach_copy_(tensors, [part.view_as(tensor) for part, tensor in zip(parts, tensors, strict=True)])

    def gather(self, data: bytes) -> list[bytes]:
        """What each process has, in order of rank; all of the same length."""
        if self.size == 1:
            return [data]
        own = _as_tensor(data)
        found = [torch.empty_like(own) for _ in range(self.size)]
        distributed.all_gather(found, own)
        return [bytes(each.tolist()) for each in found]

    def tell(self, text: str) -> str:
        """The text of the process that leads, in every process."""
        if self.size == 1:
            return text
        data = _as_tensor(text.encode())
        length = torch.tensor(len(data), device=data.device)
        distributed.broadcast(length, 0)
        if not self.leads:
            data = data.new_empty(int(length))
        distributed.broadcast(data, 0)
        return bytes(data.tolist()).decode()

    def wait(self) -> None:
        """Until every process is here."""
        if self.size > 1:
            distributed.barrier()


@contextmanager
def joined() -> Iterator[World]:
    """This process among those that torchrun started, or alone without torchrun; they part when the block ends."""
    if not distributed.is_torchelastic_launched():
        yield World()
        return
    device = training_device()
    if device.type == "cuda":
        torch.cuda.set_device(device)
        distributed.init_process_group("nccl", timeout=PATIENCE, device_id=device)
    else:
        distributed.init_process_group("gloo", timeout=PATIENCE)
    try:
        yield World.current()
    finally:
        distributed.destroy_process_group()


def training_device() -> torch.device:
    """The GPU of this process (torchrun's LOCAL_RANK), or the CPU where there is none.

    Raises ConfigError if torchrun started more processes on this host than it has GPUs.
    """
    if not torch.cuda.is_available():
        return torch.device("cpu")
    local, devices = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if local >= devices:
        raise ConfigError(f"process {local} of this host has no GPU; use torchrun --nproc-per-node {devices} or fewer")
    return torch.device("cuda", local)


def _as_tensor(data: bytes) -> Tensor:
    device = "cuda" if distributed.get_backend() == "nccl" else "cpu"
    return torch.tensor(list(data), dtype=torch.uint8, device=device)
