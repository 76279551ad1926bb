"""Rows of training data as tensors: what the trainer refills, carries and asks its objective about.

A batch is a dict of tensors with B rows each, on the trainer's device; its names are the model's inputs and the
objective's labels. One (bar, position) of a market (docs/architecture.md, "Training rows"):

    bars [B, W, F], account [B, A], complexity [B], position int64 [B], q_values [B, 3] bps, log_quantity [B]
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from core.errors import DataError
from hrm.distributed import World

Batch = dict[str, Tensor]

ALONE = World()
MARKET_ROWS = ("bars", "account", "complexity", "position", "q_values", "log_quantity")


def market_batch(arrays: Mapping[str, Any], device: torch.device | str = "cpu") -> Batch:
    """Tensors of market rows. Raises DataError for a missing name, unequal lengths or an unknown position."""
    missing = [name for name in MARKET_ROWS if name not in arrays]
    if missing:
        raise DataError(f"training rows lack {', '.join(missing)}; see docs/architecture.md, Training rows")
    lengths = {name: len(arrays[name]) for name in MARKET_ROWS}
    if len(set(lengths.values())) != 1:
        raise DataError(f"training rows of unequal lengths: {lengths}")
    if not np.isin(arrays["position"], (-1, 0, 1)).all():
        raise DataError("training rows: position must be -1, 0 or +1")
    return {name: _to_tensor(name, arrays[name], device) for name in MARKET_ROWS}


def rows_of(batch: Batch) -> int:
    """B."""
    return len(next(iter(batch.values())))


# A coarser timeframe: its bar features [m, F]; by base bar t [n] the row before which they are known; rows of it shown.
Coarse = tuple[NDArray[np.float32], NDArray[np.int64], int]


@dataclass(frozen=True)
class MarketTable:
    """Every (bar, position) a market can teach, n bars and position index p = position + 1."""

    bar_features: NDArray[np.float32]  # [n, F]
    decision_bars: NDArray[np.int64]  # [m] bars t with W bars behind them
    account: NDArray[np.float32]  # [n, 3, A] by position
    complexity: NDArray[np.float32]  # [n]
    q_values: NDArray[np.float32]  # [n, 3, 3] bps by position and target
    log_quantity: NDArray[np.float32]  # [n]
    coarse: tuple[Coarse, ...] = ()  # the blocks before the base bars', in an observation's order


class MarketSampler:
    """Endless batches of random rows of a market, gathered where the model trains: nothing crosses a bus.

    Processes that train together draw the same global batch, and each gathers its share.
    """

    def __init__(
        self,
        table: MarketTable,
        window: int,
        *,
        seed: int,
        device: torch.device | str = "cpu",
        world: World = ALONE,
    ) -> None:
        """`window`: W, all timeframes together. `seed` must be the same in every process of the `world`."""
        self.device, self.world = torch.device(device), world
        self.generator = torch.Generator(self.device).manual_seed(seed)
        self._decision_bars = torch.from_numpy(table.decision_bars).to(self.device)
        self._by_position = {
            name: torch.from_numpy(getattr(table, name)).to(self.device) for name in ("account", "q_values")
        }
        self._by_bar = {
            name: torch.from_numpy(getattr(table, name)).to(self.device) for name in ("complexity", "log_quantity")
        }
        self._bars = torch.from_numpy(table.bar_features).to(self.device)
        self._window = torch.arange(1 + sum(rows for *_, rows in table.coarse) - window, 1, device=self.device)
        self._coarse = [
            (
                torch.from_numpy(features).to(self.device),
                torch.from_numpy(closed).to(self.device),
                torch.arange(-rows, 0, device=self.device),
            )
            for features, closed, rows in table.coarse
        ]

    def batch(self, rows: int) -> Batch:
        """`rows` random (bar, position) pairs, each as likely; in several processes this one's share of them."""
        drawn = torch.randint(len(self._decision_bars), (rows,), generator=self.generator, device=self.device)
        index = torch.randint(3, (rows,), generator=self.generator, device=self.device)
        drawn, index = self.world.share(drawn), self.world.share(index)
        at = self._decision_bars[drawn]
        return (
            {"bars": self._windows(at), "position": index - 1}
            | {name: table[at, index] for name, table in self._by_position.items()}
            | {name: table[at] for name, table in self._by_bar.items()}
        )

    def _windows(self, at: Tensor) -> Tensor:
        """What is seen at bars `at` [B]: [B, W, F]."""
        base = self._bars[at[:, None] + self._window]
        blocks = [features[closed[at][:, None] + back] for features, closed, back in self._coarse]
        return torch.cat((*blocks, base), dim=1) if blocks else base

    def batches(self, rows: int) -> Iterator[Batch]:
        while True:
            yield self.batch(rows)


def _to_tensor(name: str, array: Any, device: torch.device | str) -> Tensor:
    dtype = np.int64 if name == "position" else np.float32
    return torch.from_numpy(np.ascontiguousarray(array, dtype=dtype)).to(device)
