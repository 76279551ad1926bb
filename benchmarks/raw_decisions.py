"""Our engine behind one raw body, for servers that are not ours: they differ from each other in nothing else.

    body      float32, little-endian: bars [W, F], account [A], complexity, position
    answer    {"action", "quantity", "segments"}

A peer's script appends this folder's parent to its path; the packages it needs (core, serving.engine) know no server.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.settings import load_settings
from serving.engine import load_engine

Floats = NDArray[np.float32]


class RawEngine:
    """The model `name/version` of the store that HRM_SETTINGS leads to. A batch runs until its last row halts."""

    def __init__(self, model_id: str) -> None:
        self.engine = load_engine(load_settings(), model_id)
        seen = self.engine.manifest.market
        self._bars = (seen.window, len(seen.bar_features))
        self.numbers = seen.window * len(seen.bar_features) + len(seen.account_features) + 2

    def row(self, body: bytes) -> Floats:
        """[numbers] of one request. Raises ValueError on another length."""
        row = np.frombuffer(body, dtype="<f4")
        if len(row) != self.numbers:
            raise ValueError(f"a body has {self.numbers} numbers, got {len(row)}")
        return row

    def decide(self, rows: Floats) -> list[dict[str, Any]]:
        """rows [B, numbers] -> one answer each."""
        bars = rows[:, : self._bars[0] * self._bars[1]].reshape(len(rows), *self._bars)
        account, complexity = rows[:, bars[0].size : -2], rows[:, -2]
        made = self.engine.decide(bars, account, complexity, rows[:, -1].astype(np.int64))
        answers = zip(made.action.tolist(), made.quantity.tolist(), made.segments.tolist(), strict=True)
        return [{"action": action, "quantity": units, "segments": depth} for action, units, depth in answers]
