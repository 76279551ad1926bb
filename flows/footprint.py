"""What a published model costs to run, measured in a process of its own: `python -m flows.footprint`.

A fresh interpreter loads the serving engine and nothing else, so its resident set is what a service with this
model alone would hold, and no training thread disturbs the clock.

    python -m flows.footprint STORE MODEL_ID OBSERVATIONS.npz      prints one JSON object
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np
import psutil

from core.settings import load_settings
from serving.engine import Engine
from serving.store import load_version

WARM_UP = 20
MB = 1e6


def measure(store: Path, model_id: str, observations: Path) -> dict[str, object]:
    """`latency_ms` of each decision taken alone, `rss_mb`, `model_mb` (the ONNX file), `provider`."""
    settings = load_settings()
    model = load_version(store, model_id, size_limit_mb=settings.performance.model_size_limit_mb)
    engine = Engine(model, settings.serving)
    with np.load(observations, allow_pickle=False) as saved:
        rows = [saved[name] for name in ("bars", "account", "complexity", "position")]
    latency_ms = [_decide_ms(engine, [column[row : row + 1] for column in rows]) for row in range(len(rows[0]))]
    return {
        "latency_ms": latency_ms[WARM_UP:],
        "rss_mb": psutil.Process().memory_info().rss / MB,
        "model_mb": len(model.onnx) / MB,
        "provider": engine.provider,
    }


def _decide_ms(engine: Engine, row: list[np.ndarray]) -> float:
    started = time.perf_counter()
    engine.decide(*row)
    return (time.perf_counter() - started) * 1e3


if __name__ == "__main__":
    sys.stdout.write(json.dumps(measure(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))) + "\n")
