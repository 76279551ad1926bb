"""One segment as a graph of its own: traced to ONNX, held against torch over chained segments, and given goldens.

    (inputs of the model, z_H, z_L, reset) -> (what the segment says, z_H', z_L')

float32 throughout, first axis dynamic. `reset` (bool [B]) starts a row from the fixed initial state, so the service
needs no constants of the model. What a task's graph takes and says: hrm/export.py (one instrument),
hrm/book_export.py (a book).

Shapes: B rows, n tokens, h and l widths of the two levels.
"""

from __future__ import annotations

import io
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from core.errors import ModelError
from hrm.model import Carry, ReasoningModel
from hrm.tracing import traced

PARITY_LIMIT = 2e-4  # largest absolute difference of any output
PARITY_BATCHES = (1, 3, 8)
PARITY_SEGMENTS = 3
GOLDEN_ROWS, OTHER_GOLDEN_ROWS = 4, 16
CARRY = ("z_H", "z_L", "reset")
CARRIED = ("z_H_next", "z_L_next")

Arrays = dict[str, NDArray[Any]]


class Segment(nn.Module, ABC):
    """The graph that is exported. `forward` takes `inputs` and answers `outputs`, each in order."""

    says: tuple[str, ...]  # outputs before the carry

    def __init__(self, model: ReasoningModel) -> None:
        super().__init__()
        self.model = model

    @property
    def inputs(self) -> tuple[str, ...]:
        return (*self.model.inputs, *CARRY)

    @property
    def outputs(self) -> tuple[str, ...]:
        return (*self.says, *CARRIED)

    @abstractmethod
    def drawn(self, rows: int, random: np.random.Generator) -> Arrays:
        """Random inputs of the model, as parity and goldens need them."""

    def think(self, x: Tensor, z_H: Tensor, z_L: Tensor, reset: Tensor) -> Carry:
        """The next state; rows of `reset` (bool [B]) begin at the fixed initial one, whatever came in."""
        recurrence, fresh = self.model.recurrence, reset[:, None, None]
        z_H = torch.where(fresh, recurrence.H_init, z_H)
        z_L = torch.where(fresh, recurrence.L_init, z_L)
        return Carry(*recurrence(z_H, z_L, x))

    @property
    def carry_shapes(self) -> dict[str, tuple[int, int]]:
        """Of one row, as a manifest names them."""
        model, architecture = self.model, self.model.settings.architecture
        return {"z_H": (model.tokens, architecture.h_module_dim), "z_L": (model.tokens, architecture.l_module_dim)}


def onnx_file(segment: Segment) -> bytes:
    """The graph as ONNX (of a model on the CPU, in float32). Raises ModelError if it cannot be made."""
    inputs = random_inputs(segment, rows=2, seed=0)
    return traced(segment, {name: torch.from_numpy(inputs[name]) for name in segment.inputs}, segment.outputs)


def max_abs_error(segment: Segment, file: bytes) -> float:
    """Largest absolute difference of any output between onnxruntime and torch, over chained segments."""
    import onnxruntime

    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    segment = segment.eval()
    errors: list[float] = []
    for rows in PARITY_BATCHES:
        ours = theirs = random_inputs(segment, rows, seed=rows)
        for _ in range(PARITY_SEGMENTS):
            expected = run_torch(segment, ours)
            answered = dict(zip(segment.outputs, session.run(list(segment.outputs), theirs), strict=True))
            errors += [_max_difference(expected[name], answered[name]) for name in segment.outputs]
            ours, theirs = _chained(ours, expected), _chained(theirs, answered)
    return float(np.max(errors))  # NaN, unlike with the built-in max, if any difference is


def require_parity(error: float, what: str) -> None:
    """Raise ModelError unless onnxruntime computes what torch does; NaN is no parity."""
    if not error <= PARITY_LIMIT:
        raise ModelError(
            f"{what}: onnxruntime and torch differ by {error:.2e}, more than {PARITY_LIMIT:.0e}; nothing was published",
            code="parity_failed",
        )


def golden_file(segment: Segment, other: bytes | None = None) -> bytes:
    """An npz of inputs (`in_<name>`) and torch's outputs (`out_<name>`), for the service's self-test.

    Integer and 16-bit arithmetic are not torch's: with a file of `other` arithmetic its own outputs stand there, for as
    many rows as it takes to tell a machine that computes otherwise from one that rounds a few activations otherwise.
    """
    inputs = random_inputs(segment, OTHER_GOLDEN_ROWS if other else GOLDEN_ROWS, seed=1)
    outputs = run_onnx(other, inputs, segment.outputs) if other else run_torch(segment.eval(), inputs)
    buffer = io.BytesIO()
    arrays = {f"in_{name}": array for name, array in inputs.items()}
    arrays |= {f"out_{name}": array for name, array in outputs.items()}
    np.savez(buffer, **arrays)  # type: ignore[arg-type]  # numpy types its keyword arrays as its own options
    return buffer.getvalue()


def random_inputs(segment: Segment, rows: int, seed: int) -> Arrays:
    """Inputs of `rows` rows; every other row starts afresh, the others carry a state."""
    random = np.random.default_rng(seed)
    inputs = segment.drawn(rows, random)
    for name, shape in segment.carry_shapes.items():
        inputs[name] = random.standard_normal((rows, *shape), dtype=np.float32)
    return inputs | {"reset": np.arange(rows) % 2 == 0}


@torch.inference_mode()
def run_torch(segment: Segment, inputs: Arrays) -> Arrays:
    outputs = segment(*(torch.from_numpy(inputs[name]) for name in segment.inputs))
    return {name: tensor.numpy() for name, tensor in zip(segment.outputs, outputs, strict=True)}


def run_onnx(file: bytes, inputs: Arrays, outputs: Sequence[str]) -> Arrays:
    import onnxruntime

    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    return dict(zip(outputs, session.run(list(outputs), inputs), strict=True))


def _chained(inputs: Arrays, outputs: Arrays) -> Arrays:
    """The inputs of the next segment: the carry handed on, no row starting afresh."""
    carry = {"z_H": outputs["z_H_next"], "z_L": outputs["z_L_next"]}
    return {**inputs, **carry, "reset": np.zeros_like(inputs["reset"])}


def _max_difference(expected: NDArray[Any], answered: NDArray[Any]) -> float:
    return float(np.abs(expected - answered).max())
