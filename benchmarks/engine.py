"""One segment in the inference engine against the floor of its matrix products in float32, in one process, on one core.

Each format has a process of its own (benchmarks/engine_process.py), which knows what a service knows: no torch. The
floor is numpy's time for the same products there. The model has random weights, halved in the recurrence, which else
would be chaotic and fail the export's parity: time does not depend on what was learned.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.engine_process import BATCHES
from benchmarks.machine import described
from core.manifest import ModelManifest, Storage
from core.settings import Settings
from flows.variants import storage_within_limit
from hrm.export import MarketSegment, export_model, export_segment
from hrm.layers import inner_width
from hrm.model import HierarchicalReasoningModel
from trading.features import schema

CALIBRATION_ROWS = 64
CONTRACTION = 0.5
DEADLINE_S = 600


@dataclass(frozen=True)
class Task:
    """What a process measures. `products`: (inputs, outputs, how often in a segment), each of `tokens` rows."""

    store: str
    model_id: str
    tokens: int
    products: list[tuple[int, int, int]]


def run(settings: Settings, formats: tuple[Storage, ...] | None = None) -> dict[str, Any]:
    """`formats`: by name, what benchmarks.engine_process says. By default the exact one that fits and static_int8.

    The figures beside them are those of the first.
    """
    spec = schema(settings.observation)
    model = HierarchicalReasoningModel(
        settings.hierarchical_reasoning_model, spec, settings.trading.max_quantity, seed=0
    )
    with torch.no_grad():
        for parameter in model.recurrence.parameters():
            parameter.mul_(CONTRACTION)
    formats = formats or (storage_within_limit(model.parameter_count, settings), "static_int8")
    with tempfile.TemporaryDirectory(prefix="hrm-bench-") as folder:
        store = Path(folder) / "models"
        found = {
            each.storage: _measured(each, store, model, settings) for each in _export(model, store, formats, settings)
        }
    return described(1) | {"preset": settings.preset, "threads": 1, "formats": found} | flat(found, formats[0])


def flat(found: Mapping[Storage, Mapping[str, Any]], chosen: Storage) -> dict[str, Any]:
    """The figures of the format `chosen`: a segment of one row beside its floor; rows per second, 32 rows at once."""
    figures, one, most = found[chosen], str(BATCHES[0]), str(BATCHES[-1])
    return {
        "format": chosen,
        **{name: figures[name] for name in ("provider", "full_depth_p99_ms", "rss_mb", "ready_s")},
        **{name: figures[name][one] for name in ("segment_ms", "floor_ms", "ratio_to_floor")},
        "rows_per_s": figures["rows_per_s"][most],
    }


def _export(
    model: HierarchicalReasoningModel, store: Path, formats: tuple[Storage, ...], settings: Settings
) -> list[ModelManifest]:
    traced = export_segment(model)
    observed = MarketSegment(model).drawn(CALIBRATION_ROWS, np.random.default_rng(0))
    return [
        export_model(
            model,
            store=store,
            name="hrm",
            version=storage.replace("_", "-"),
            settings=settings,
            metrics={},
            dataset_digest="none",
            storage=storage,
            observed=observed,
            traced=traced,
        )
        for storage in formats
    ]


def _measured(
    manifest: ModelManifest, store: Path, model: HierarchicalReasoningModel, settings: Settings
) -> dict[str, Any]:
    task = Task(str(store), f"{manifest.name}/{manifest.version}", model.tokens, products(settings))
    done = subprocess.run(  # noqa: S603 - our own command, no shell
        [sys.executable, "-m", "benchmarks.engine_process", json.dumps(asdict(task))],
        stdout=subprocess.PIPE,
        text=True,
        timeout=DEADLINE_S,
        check=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
    )
    measured: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return {"model_mb": manifest.metrics["model_mb"]} | measured


def products(settings: Settings) -> list[tuple[int, int, int]]:
    """The matrix products of the blocks of one segment: (inputs, outputs, how often)."""
    hrm = settings.hierarchical_reasoning_model
    shape, depth = hrm.architecture, hrm.hierarchical
    levels = (
        (shape.l_module_dim, shape.l_layers * depth.N_cycles * depth.T_timesteps),
        (shape.h_module_dim, shape.h_layers * depth.N_cycles),
    )
    found = []
    for width, blocks in levels:
        inner = inner_width(width, shape.expansion)
        for inputs, outputs in ((width, 3 * width), (width, width), (width, 2 * inner), (inner, width)):
            found.append((inputs, outputs, blocks))
    return found
