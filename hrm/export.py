"""The market model as ONNX, checked against torch before it may be published (docs/architecture.md, Model files).

    (bars, account, z_H, z_L, reset) -> (action_logits, log_quantity, value, q_halt, q_continue, z_H', z_L')

The graph, its parity gate and its goldens are hrm/segment.py's. Stored in 16 or 8 bits (hrm/storage.py) the file is
held against the rounded model; what the rounding costs is judged on a market, where decisions have a price
(flows/variants.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from torch import Tensor

from core.errors import ModelError
from core.manifest import ModelManifest, Storage, publish
from core.settings import Settings
from hrm.half import in_half
from hrm.inference import laid_out
from hrm.model import HierarchicalReasoningModel
from hrm.portable import agreement_ratio, portable_file
from hrm.quantize import quantized
from hrm.segment import Arrays, Segment, golden_file, max_abs_error, onnx_file, require_parity
from hrm.storage import encode, rounded

PORTABLE = "portable.onnx"
AGREEMENT_LIMIT = 0.99  # of random rows: two roundings may disagree where the model is undecided, not elsewhere


class MarketSegment(Segment):
    """One segment of a model of one instrument."""

    says = ("action_logits", "log_quantity", "value", "q_halt", "q_continue")
    model: HierarchicalReasoningModel

    def forward(self, bars: Tensor, account: Tensor, z_H: Tensor, z_L: Tensor, reset: Tensor) -> tuple[Tensor, ...]:
        carry = self.think(self.model.embed(bars, account), z_H, z_L, reset)
        return (*self.model.read(carry.z_H), *carry)

    def drawn(self, rows: int, random: np.random.Generator) -> Arrays:
        shapes = self.model.schema.row_shapes
        return {name: random.standard_normal((rows, *shape), dtype=np.float32) for name, shape in shapes.items()}


def export_segment(model: HierarchicalReasoningModel) -> bytes:
    """The ONNX file of one segment of `model`, in float32. Raises ModelError if it cannot be made."""
    return onnx_file(MarketSegment(laid_out(_on_cpu(model))))


def parity_max_abs_error(model: HierarchicalReasoningModel, file: bytes) -> float:
    """Largest absolute difference of any output between onnxruntime and torch, over chained segments."""
    return max_abs_error(MarketSegment(model), file)


def export_model(  # noqa: PLR0913 - keywords only, each a field of the manifest
    model: HierarchicalReasoningModel,
    *,
    store: Path,
    name: str,
    version: str,
    settings: Settings,
    metrics: Mapping[str, float],
    dataset_digest: str,
    git_commit: str | None = None,
    storage: Storage = "fp32",
    portable: bool = False,
    observed: Arrays | None = None,
    traced: bytes | None = None,
) -> ModelManifest:
    """Export, check and publish as `<store>/<name>/<version>`; returns the manifest.

    `portable` adds `portable.onnx`, the loop in one file (hrm/portable.py). `observed`: bars [B, W, F] and account
    [B, A] to calibrate static_int8 with. `traced` saves seconds: what `export_segment` has made of this model before.

    The manifest's metrics are `metrics` with `model_mb` and `parity_max_abs_error`, which for static_int8 and half is
    that of the float32 graph. Raises ModelError, publishing nothing, if torch and onnxruntime disagree by more than
    2e-4, the portable file decides otherwise, or the version exists.
    """
    model = _on_cpu(model)
    file = encode(traced or export_segment(model), storage)
    model = rounded(model, storage)
    error = parity_max_abs_error(model, file)
    require_parity(error, f"{name}/{version}")
    segment = MarketSegment(model)
    files = _files(segment, file, observed, storage)
    if portable:
        files[PORTABLE] = _checked_portable(model, file)
    return publish(
        store,
        files,
        name=name,
        version=version,
        algorithm="hrm",
        preset=settings.preset,
        storage=storage,
        parameters=model.parameter_count,
        observation=model.schema,
        halting=model.settings.halting_rule,
        carry=segment.carry_shapes,
        quantity_max=model.quantity_max,
        metrics={**metrics, "parity_max_abs_error": error, "model_mb": len(files["model.onnx"]) / 1e6},
        dataset_digest=dataset_digest,
        git_commit=git_commit,
    )


def _files(segment: MarketSegment, file: bytes, observed: Arrays | None, storage: Storage) -> dict[str, bytes]:
    """What every version has; in other arithmetic than torch's goldens are the file's own."""
    other = _in_other_arithmetic(segment, file, observed, storage)
    return {"model.onnx": other or file, "golden.npz": golden_file(segment, other)}


def _in_other_arithmetic(
    segment: MarketSegment, file: bytes, observed: Arrays | None, storage: Storage
) -> bytes | None:
    if storage == "half":
        return onnx_file(MarketSegment(in_half(segment.model)))
    if storage != "static_int8":
        return None
    if observed is None:
        raise ModelError("static_int8 is calibrated: give observations of the market", code="not_calibrated")
    return quantized(file, observed)


def _checked_portable(model: HierarchicalReasoningModel, segment_file: bytes) -> bytes:
    file = portable_file(model, segment_file)
    agreement = agreement_ratio(model, file)
    if not agreement >= AGREEMENT_LIMIT:
        raise ModelError(
            f"{PORTABLE}: decides as torch does in {agreement:.1%} of random rows, must be {AGREEMENT_LIMIT:.0%}; "
            f"nothing was published",
            code="parity_failed",
        )
    return file


def _on_cpu(model: HierarchicalReasoningModel) -> HierarchicalReasoningModel:
    copied = HierarchicalReasoningModel(model.settings, model.schema, model.quantity_max)
    copied.load_state_dict(model.state_dict())
    return copied.eval()
