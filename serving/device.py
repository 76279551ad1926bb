"""Inputs and carry of the rows on a GPU (serving/reasoning.py, `Slots`): the carry never leaves it.

For each batch size of a ladder 1, 2, 4, ... one run is bound to fixed addresses and captured as a CUDA graph; a run is
the smallest of them that reaches the highest slot taken. All share one carry, which a segment reads and overwrites.
Rows that are not taken are computed too: on a GPU that costs less than leaving them out.

Shapes: R slots, B of a captured run; z_H [R, tokens, h], z_L [R, tokens, l].
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from core.manifest import ModelManifest
from serving.graph import Graph, expected_inputs
from serving.reasoning import Arrays, Ints
from serving.slots import RESET

WARM_UP_RUNS = 3  # onnxruntime captures in the first ones
FLOAT_BYTES = 4
ALIGNED = 64  # numbers: kernels expect a tensor to begin where an allocator would put it


@dataclass
class _Captured:
    """One batch size: what is bound, and which state of the inputs it has seen."""

    rows: int
    binding: Any
    options: ort.RunOptions
    inputs: dict[str, Any]
    said: Any  # every output but the carry, one after the other: one copy brings them all
    places: dict[str, tuple[int, tuple[int, ...]]]  # of each output in it: offset and shape, in numbers
    placed: int = -1
    reset: bool = True  # whether the device's `reset` has a True


class DeviceSlots:
    """R rows of one graph on the device that its session runs on. For one thread."""

    separable = False  # a run moves every row on

    def __init__(self, graph: Graph, manifest: ModelManifest, rows: int) -> None:
        self.rows = rows
        self._graph = graph
        shapes = expected_inputs(manifest)
        self._host: Arrays = {
            name: np.zeros((rows, *shape), np.bool_ if name == RESET else np.float32)
            for name, shape in shapes.items()
            if name not in manifest.carry
        }
        self._carry = {
            name: graph.on_device(np.zeros((rows, *shape), np.float32)) for name, shape in manifest.carry.items()
        }
        self._placed = 0  # grows when rows are placed
        self._runs = [self._captured(size) for size in ladder(rows)]

    def place(self, slots: Ints, feeds: Mapping[str, NDArray[Any]]) -> None:
        for name, array in feeds.items():
            self._host[name][slots] = array
        self._host[RESET][slots] = True
        self._placed += 1

    def run(self, slots: Ints) -> Arrays:
        run = next(each for each in self._runs if each.rows > slots[-1])
        if run.placed != self._placed:
            for name in self._host.keys() - {RESET}:
                run.inputs[name].update_inplace(self._host[name][: run.rows])
            run.placed = self._placed
        reset = self._host[RESET][: run.rows]
        if run.reset or reset.any():
            run.inputs[RESET].update_inplace(reset)
            run.reset = bool(reset.any())
        self._graph.run_bound(run.binding, run.options)
        reset[slots] = False
        said = run.said.numpy()
        return {
            name: said[at : at + math.prod(shape)].reshape(shape)[slots] for name, (at, shape) in run.places.items()
        }

    def _captured(self, rows: int) -> _Captured:
        binding = self._graph.binding()
        inputs = {name: self._graph.on_device(array[:rows]) for name, array in self._host.items()}
        for name, value in inputs.items():
            binding.bind_ortvalue_input(name, value)
        for name, value in self._carry.items():
            where = (value.device_name(), 0, np.float32, (rows, *value.shape()[1:]), value.data_ptr())
            binding.bind_input(name, *where)
            binding.bind_output(f"{name}_next", *where)
        places, length = self._places(rows)
        said = self._graph.on_device(np.zeros(length, np.float32))
        for name, (at, shape) in places.items():
            where = (said.device_name(), 0, np.float32, shape, said.data_ptr() + at * FLOAT_BYTES)
            binding.bind_output(name, *where)
        options = ort.RunOptions()
        options.add_run_config_entry("gpu_graph_id", str(rows))
        for _ in range(WARM_UP_RUNS):
            self._graph.run_bound(binding, options)
        return _Captured(rows, binding, options, inputs, said, places)

    def _places(self, rows: int) -> tuple[dict[str, tuple[int, tuple[int, ...]]], int]:
        """Where each output of `rows` rows begins, and where the last one ends."""
        places, at = {}, 0
        for name, shape in self._graph.row_outputs.items():
            if name.removesuffix("_next") not in self._carry:
                places[name] = (at, (rows, *shape))
                at += -(-math.prod((rows, *shape)) // ALIGNED) * ALIGNED
        return places, at


def ladder(rows: int) -> list[int]:
    """1, 2, 4, ... and `rows` itself."""
    return [size for size in (1 << power for power in range(rows.bit_length())) if size < rows] + [rows]
