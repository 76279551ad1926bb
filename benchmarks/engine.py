"""One segment in onnxruntime against the floor of its matrix products, same thread, same run.

The model has random weights: time does not depend on what was learned.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from benchmarks.machine import described, median_seconds
from core.settings import Settings
from hrm.export import export_model
from hrm.model import HierarchicalReasoningModel
from serving.engine import Engine
from serving.store import load_version
from trading.features import schema

RUNS = 30
BATCH = 64


def run(settings: Settings) -> dict[str, Any]:
    spec = schema(settings.observation)
    model = HierarchicalReasoningModel(
        settings.hierarchical_reasoning_model, spec, settings.trading.max_quantity, seed=0
    )
    with tempfile.TemporaryDirectory() as folder:
        export_model(
            model,
            store=Path(folder) / "models",
            name="hrm",
            version="bench",
            settings=settings,
            metrics={},
            dataset_digest="none",
        )
        started = time.perf_counter()
        stored = load_version(Path(folder) / "models", "hrm/bench", size_limit_mb=1000)
        engine = Engine(stored, settings.serving)
        ready_s = time.perf_counter() - started
    rule = settings.hierarchical_reasoning_model.halting_rule
    rng = np.random.default_rng(0)

    def decide(rows: int, complexity: float) -> None:
        engine.decide(
            rng.standard_normal((rows, spec.window, len(spec.bar_features))),
            rng.standard_normal((rows, len(spec.account_features))),
            np.full(rows, complexity),
            np.zeros(rows, dtype=np.int64),
        )

    # An untrained model never halts by itself (its q head starts at -5), so every decision is of full depth.
    full_depth = [median_seconds(lambda: decide(1, 1.0), 3) * 1e3 for _ in range(RUNS)]
    segment_ms = float(np.median(full_depth)) / rule.max_segments
    floor_ms = _floor_ms(settings, model.tokens)
    return described(RUNS) | {
        "preset": settings.preset,
        "format": "fp32",
        "provider": engine.provider,
        "segment_ms": segment_ms,
        "floor_ms": floor_ms,
        "ratio_to_floor": segment_ms / floor_ms,
        "full_depth_p99_ms": float(np.percentile(full_depth, 99)),
        "rows_per_s": BATCH / median_seconds(lambda: decide(BATCH, 1.0), 5) * rule.max_segments,
        "rss_mb": psutil.Process().memory_info().rss / 1e6,
        "ready_s": ready_s,
    }


def _floor_ms(settings: Settings, tokens: int) -> float:
    """Time of the bare matrix products of one segment at batch 1, in numpy."""
    hrm = settings.hierarchical_reasoning_model
    shape, depth = hrm.architecture, hrm.hierarchical
    levels = (
        (shape.l_module_dim, shape.l_layers * depth.N_cycles * depth.T_timesteps),
        (shape.h_module_dim, shape.h_layers * depth.N_cycles),
    )
    products = []
    for width, blocks in levels:
        inner = -(-round(shape.expansion * width * 2 / 3) // 256) * 256
        for rows, columns in ((width, 3 * width), (width, width), (width, 2 * inner), (inner, width)):
            weights = np.ones((rows, columns), dtype=np.float32)
            products += [(np.ones((tokens, rows), dtype=np.float32), weights)] * blocks
    return median_seconds(lambda: [left @ right for left, right in products], RUNS) * 1e3
