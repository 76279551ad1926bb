"""Inputs and carry of the rows on a GPU (serving/reasoning.py, `Slots`): the carry never leaves it.

For each batch size of a ladder 1, 2, 4, ... one run is bound to fixed addresses and captured as a CUDA graph; a run is
the smallest of them that reaches the highest slot taken. All share one carry, which a segment reads and overwrites.
Rows that are not taken are computed too: on a GPU that costs less than leaving them out.

Shapes: R slots, B of a captured run; z_H [R, tokens, h], z_L [R, tokens, l].
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from core.manifest import ModelManifest
from serving.graph import Graph, expected_inputs
from serving.reasoning import Arrays, Ints
from serving.slots import RESET

WARM_UP_RUNS = 3  # onnxruntime captures in the first ones


@dataclass
class _Captured:
    """One batch size: what is bound, and which state of the inputs it has seen."""

    rows: int
    binding: Any
    options: ort.RunOptions
    inputs: dict[str, Any]
    outputs: dict[str, Any]
    seen: int = field(default=-1)


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
        if run.seen != self._placed:
            for name in self._host.keys() - {RESET}:
                run.inputs[name].update_inplace(self._host[name][: run.rows])
            run.seen = self._placed
        run.inputs[RESET].update_inplace(self._host[RESET][: run.rows])
        self._graph.run_bound(run.binding, run.options)
        self._host[RESET][slots] = False
        return {name: value.numpy()[slots] for name, value in run.outputs.items()}

    def _captured(self, rows: int) -> _Captured:
        binding = self._graph.binding()
        inputs = {name: self._graph.on_device(array[:rows]) for name, array in self._host.items()}
        outputs = {
            name: self._graph.on_device(np.zeros((rows, *shape), np.float32))
            for name, shape in self._graph.row_outputs.items()
            if name.removesuffix("_next") not in self._carry
        }
        for name, value in inputs.items():
            binding.bind_ortvalue_input(name, value)
        for name, value in outputs.items():
            binding.bind_ortvalue_output(name, value)
        for name, value in self._carry.items():
            where = (value.device_name(), 0, np.float32, (rows, *value.shape()[1:]), value.data_ptr())
            binding.bind_input(name, *where)
            binding.bind_output(f"{name}_next", *where)
        options = ort.RunOptions()
        options.add_run_config_entry("gpu_graph_id", str(rows))
        for _ in range(WARM_UP_RUNS):
            self._graph.run_bound(binding, options)
        return _Captured(rows, binding, options, inputs, outputs)


def ladder(rows: int) -> list[int]:
    """1, 2, 4, ... and `rows` itself."""
    return [size for size in (1 << power for power in range(rows.bit_length())) if size < rows] + [rows]
