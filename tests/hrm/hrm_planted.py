"""A small problem with a known answer, and the settings the tests of `hrm` share.

The direction of the market is the sign of the last bars' first feature, so the best target position is known.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch

from core.observation import ObservationSchema
from core.settings import Settings, load_settings
from hrm.batch import Batch, market_batch
from hrm.losses import Imitation
from hrm.model import HierarchicalReasoningModel

SCHEMA = ObservationSchema(
    window=12, patch=4, bar_features=("return", "volume"), account_features=("position", "clock", "size")
)
COST_BPS = 1.5
QUANTITY_MAX = 1000.0
HRM = "HRM_HIERARCHICAL_REASONING_MODEL__"

UNEQUAL_WIDTHS = {
    f"{HRM}ARCHITECTURE__H_MODULE_DIM": "48",
    f"{HRM}ARCHITECTURE__L_MODULE_DIM": "32",
    f"{HRM}ARCHITECTURE__EMBEDDING_DIM": "24",
    f"{HRM}ARCHITECTURE__HIDDEN_DIM": "40",
    f"{HRM}ARCHITECTURE__H_LAYERS": "2",
}
SMALL = {f"{HRM}ARCHITECTURE__{name}": "16" for name in ("HIDDEN_DIM", "H_MODULE_DIM", "L_MODULE_DIM", "EMBEDDING_DIM")}


def settings(environ: dict[str, str] | None = None, *, preset: str = "compact") -> Settings:
    """A preset with overrides, untouched by the real environment."""
    return load_settings(preset=preset, environ=environ or {})


def model(environ: dict[str, str] | None = None, *, seed: int = 0) -> HierarchicalReasoningModel:
    return HierarchicalReasoningModel(settings(environ).hierarchical_reasoning_model, SCHEMA, QUANTITY_MAX, seed=seed)


def objective(cost_bps: float = COST_BPS, *, label_temperature: float = 0.3, reward_shaping: bool = True) -> Imitation:
    return Imitation(cost_bps=cost_bps, label_temperature=label_temperature, reward_shaping=reward_shaping)


def inputs(rows: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Random bars [B, W, F] and account [B, A]."""
    generator = torch.Generator().manual_seed(seed)
    bars = torch.randn(rows, SCHEMA.window, len(SCHEMA.bar_features), generator=generator)
    return bars, torch.randn(rows, len(SCHEMA.account_features), generator=generator)


def planted_rows(rows: int, seed: int) -> dict[str, np.ndarray]:
    """Arrays of a training batch whose oracle follows the last two bars."""
    random = np.random.default_rng(seed)
    bars = random.standard_normal((rows, SCHEMA.window, 2)).astype(np.float32)
    account = random.standard_normal((rows, 3)).astype(np.float32)
    position = random.integers(-1, 2, rows)
    account[:, 0] = position
    targets = np.array([-1, 0, 1])
    earned = 3 * bars[:, -2:, 0].sum(1, keepdims=True) * targets
    turnover = np.abs(targets - position[:, None])
    return {
        "bars": bars,
        "account": account,
        "complexity": random.random(rows).astype(np.float32),
        "position": position,
        "q_values": (earned - COST_BPS * turnover).astype(np.float32),
        "log_quantity": (3 + 0.5 * account[:, 2]).astype(np.float32),
    }


def planted_batch(rows: int, seed: int) -> Batch:
    return market_batch(planted_rows(rows, seed))


def as_loaded(file: bytes, path: Path) -> onnx.GraphProto:
    """The graph that onnxruntime makes of the file."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(path)
    options.log_severity_level = 4  # it warns that such a file is for this machine
    onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    return onnx.load(path).graph
