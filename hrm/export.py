"""One segment as ONNX, checked against torch before it may be published (docs/architecture.md, Model files).

    (bars, account, z_H, z_L, reset) -> (action_logits, log_quantity, value, q_halt, q_continue, z_H', z_L')

float32 throughout, first axis dynamic. `reset` (bool [B]) starts a row from the fixed initial state, so the
service needs no constants of the model. The parity gate runs three chained segments in onnxruntime and in torch.
Stored in 16 or 8 bits (hrm/storage.py) the file is held against the rounded model; what the rounding costs is
judged on a market, where decisions have a price (flows/variants.py).
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from core.errors import ModelError
from core.manifest import ModelManifest, Storage, publish
from core.settings import Settings
from hrm.model import HierarchicalReasoningModel
from hrm.portable import agreement_ratio, portable_file
from hrm.storage import encode, rounded
from hrm.tracing import traced

INPUTS = ("bars", "account", "z_H", "z_L", "reset")
OUTPUTS = ("action_logits", "log_quantity", "value", "q_halt", "q_continue", "z_H_next", "z_L_next")
PARITY_LIMIT = 2e-4  # largest absolute difference of any output
PARITY_BATCHES = (1, 3, 8)
PARITY_SEGMENTS = 3
GOLDEN_ROWS = 4
PORTABLE = "portable.onnx"
AGREEMENT_LIMIT = 0.99  # of random rows: two roundings may disagree where the model is undecided, not elsewhere

Arrays = dict[str, NDArray[Any]]


class Segment(nn.Module):
    """The graph that is exported: a segment that can start rows afresh."""

    def __init__(self, model: HierarchicalReasoningModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, bars: Tensor, account: Tensor, z_H: Tensor, z_L: Tensor, reset: Tensor) -> tuple[Tensor, ...]:
        recurrence, fresh = self.model.recurrence, reset[:, None, None]
        z_H = torch.where(fresh, recurrence.H_init, z_H)
        z_L = torch.where(fresh, recurrence.L_init, z_L)
        z_H, z_L = recurrence(z_H, z_L, self.model.embed(bars, account))
        return (*self.model.read(z_H), z_H, z_L)


def export_segment(model: HierarchicalReasoningModel) -> bytes:
    """The ONNX file of one segment of `model` (on the CPU, in float32). Raises ModelError if it cannot be made."""
    inputs = _random_inputs(model, rows=2, seed=0)
    example = {name: torch.from_numpy(inputs[name]) for name in INPUTS}
    return traced(Segment(model), example, OUTPUTS)


def parity_max_abs_error(model: HierarchicalReasoningModel, onnx_file: bytes) -> float:
    """Largest absolute difference of any output between onnxruntime and torch, over chained segments."""
    import onnxruntime

    session = onnxruntime.InferenceSession(onnx_file, providers=["CPUExecutionProvider"])
    segment = Segment(model).eval()
    errors: list[float] = []
    for rows in PARITY_BATCHES:
        ours = theirs = _random_inputs(model, rows, seed=rows)
        for _ in range(PARITY_SEGMENTS):
            expected = _run_torch(segment, ours)
            answered = dict(zip(OUTPUTS, session.run(list(OUTPUTS), theirs), strict=True))
            errors += [_max_difference(expected[name], answered[name]) for name in OUTPUTS]
            ours, theirs = _chained(ours, expected), _chained(theirs, answered)
    return float(np.max(errors))  # NaN, unlike with the built-in max, if any difference is


def golden(model: HierarchicalReasoningModel) -> bytes:
    """An npz of inputs (`in_<name>`) and torch's outputs (`out_<name>`), for the service's self-test."""
    inputs = _random_inputs(model, GOLDEN_ROWS, seed=1)
    outputs = _run_torch(Segment(model).eval(), inputs)
    buffer = io.BytesIO()
    arrays = {f"in_{name}": array for name, array in inputs.items()}
    arrays |= {f"out_{name}": array for name, array in outputs.items()}
    np.savez(buffer, **arrays)  # type: ignore[arg-type]  # numpy types its keyword arrays as its own options
    return buffer.getvalue()


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
) -> ModelManifest:
    """Export, check and publish as `<store>/<name>/<version>`; returns the manifest.

    `portable` adds `portable.onnx`, the loop in one file (hrm/portable.py). The manifest's metrics are `metrics` with
    `parity_max_abs_error` and `model_mb`. Raises ModelError, publishing nothing, if torch and onnxruntime disagree by
    more than 2e-4, the portable file decides otherwise, or the version exists.
    """
    model = rounded(_on_cpu(model), storage)
    file = encode(export_segment(model), storage)
    error = parity_max_abs_error(model, file)
    if not error <= PARITY_LIMIT:
        raise ModelError(
            f"{name}/{version}: onnxruntime and torch differ by {error:.2e}, more than {PARITY_LIMIT:.0e}; "
            f"nothing was published",
            code="parity_failed",
        )
    files = {"model.onnx": file, "golden.npz": golden(model)}
    if portable:
        files[PORTABLE] = _checked_portable(model, file)
    architecture = model.settings.architecture
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
        carry={
            "z_H": (model.tokens, architecture.h_module_dim),
            "z_L": (model.tokens, architecture.l_module_dim),
        },
        quantity_max=model.quantity_max,
        metrics={**metrics, "parity_max_abs_error": error, "model_mb": len(file) / 1e6},
        dataset_digest=dataset_digest,
        git_commit=git_commit,
    )


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


def _random_inputs(model: HierarchicalReasoningModel, rows: int, seed: int) -> Arrays:
    """Inputs of `rows` rows; every other row carries a state, the others start afresh."""
    random, schema = np.random.default_rng(seed), model.schema
    architecture = model.settings.architecture
    shapes = {
        "bars": (rows, schema.window, len(schema.bar_features)),
        "account": (rows, len(schema.account_features)),
        "z_H": (rows, model.tokens, architecture.h_module_dim),
        "z_L": (rows, model.tokens, architecture.l_module_dim),
    }
    inputs: Arrays = {name: random.standard_normal(shape, dtype=np.float32) for name, shape in shapes.items()}
    return inputs | {"reset": np.arange(rows) % 2 == 0}


@torch.inference_mode()
def _run_torch(segment: Segment, inputs: Arrays) -> Arrays:
    outputs = segment(*(torch.from_numpy(inputs[name]) for name in INPUTS))
    return {name: tensor.numpy() for name, tensor in zip(OUTPUTS, outputs, strict=True)}


def _chained(inputs: Arrays, outputs: Arrays) -> Arrays:
    """The inputs of the next segment: the carry handed on, no row starting afresh."""
    carry = {"z_H": outputs["z_H_next"], "z_L": outputs["z_L_next"]}
    return {**inputs, **carry, "reset": np.zeros_like(inputs["reset"])}


def _max_difference(expected: NDArray[Any], answered: NDArray[Any]) -> float:
    return float(np.abs(expected - answered).max())
