"""The model of a book as ONNX, checked against torch before it may be published.

    (instruments, limits, z_H, z_L, reset) -> (action_logits, q_halt, q_continue, z_H', z_L')

It answers in actions, as every published model does: the logit of an action is that of the target it leads to from
the position held, so a mask by position leaves exactly the three targets. The file is for books of the size it was
trained on. The weights would take any other, and keep to its limits in less than half of the cases
(docs/experiments.md).

Shapes: B books, K instruments, F factors.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from core.errors import ModelError
from core.manifest import ModelManifest, Storage, publish
from core.settings import Settings
from hrm.book import BookModel
from hrm.inference import laid_out
from hrm.segment import Arrays, Segment, golden_file, max_abs_error, onnx_file, require_parity
from hrm.storage import encode, rounded

STORAGES: tuple[Storage, ...] = ("fp32", "fp16", "int8")  # nothing calibrates books, and no GPU form is made of them


class BookSegment(Segment):
    """One segment of a model of books."""

    says = ("action_logits", "q_halt", "q_continue")
    model: BookModel

    def forward(
        self, instruments: Tensor, limits: Tensor, z_H: Tensor, z_L: Tensor, reset: Tensor
    ) -> tuple[Tensor, ...]:
        carry = self.think(self.model.embed(instruments, limits), z_H, z_L, reset)
        said = self.model.read(carry.z_H)
        return action_logits(said.logits, instruments[..., -1]), said.q_halt, said.q_continue, *carry

    def drawn(self, rows: int, random: np.random.Generator) -> Arrays:
        shape, most = (rows, self.model.instruments), self.model.instruments
        numbers = random.standard_normal((*shape, 1 + self.model.factors))
        magnitudes = np.abs(random.standard_normal((*shape, 2)))
        position = random.integers(-1, 1, (*shape, 1), endpoint=True)
        limits = random.integers(1, most, (rows, 2), endpoint=True)
        instruments = np.concatenate([numbers, magnitudes, position], axis=2)
        return {"instruments": instruments.astype(np.float32), "limits": limits.astype(np.float32)}


def action_logits(logits: Tensor, position: Tensor) -> Tensor:
    """Logits by target -1, 0, +1 [B, K, 3] as logits by action [B, K, 5] (core.actions), at `position` [B, K]."""
    short, flat, long = logits.unbind(-1)
    held = position.clamp(-1, 1).round().long().unsqueeze(-1) + 1
    hold = logits.gather(-1, held).squeeze(-1)
    return torch.stack((long, short, flat, flat, hold), -1)


def require_storage(storage: Storage) -> None:
    """Raises ModelError for a format that is not made of books."""
    if storage not in STORAGES:
        raise ModelError(f"books are stored as {', '.join(STORAGES)}, not {storage}; choose one of them", code="usage")


def export_book(  # noqa: PLR0913 - keywords only, each a field of the manifest
    model: BookModel,
    *,
    store: Path,
    name: str,
    version: str,
    settings: Settings,
    metrics: Mapping[str, float],
    dataset_digest: str,
    git_commit: str | None = None,
    storage: Storage = "fp32",
) -> ModelManifest:
    """Export, check and publish as `<store>/<name>/<version>`; returns the manifest.

    The manifest's metrics are `metrics` with `parity_max_abs_error` and `model_mb`. Raises ModelError, publishing
    nothing, if torch and onnxruntime disagree by more than 2e-4 or the version exists.
    """
    require_storage(storage)
    trained = model.of(model.instruments).cpu().eval()
    file = encode(onnx_file(BookSegment(laid_out(trained))), storage)
    segment = BookSegment(rounded(trained, storage))
    error = max_abs_error(segment, file)
    require_parity(error, f"{name}/{version}")
    return publish(
        store,
        {"model.onnx": file, "golden.npz": golden_file(segment)},
        name=name,
        version=version,
        algorithm="hrm_book",
        preset=settings.preset,
        storage=storage,
        parameters=model.parameter_count,
        observation=model.schema,
        halting=model.settings.halting_rule,
        carry=segment.carry_shapes,
        quantity_max=1.0,
        metrics={**metrics, "parity_max_abs_error": error, "model_mb": len(file) / 1e6},
        dataset_digest=dataset_digest,
        git_commit=git_commit,
    )
