"""Inputs and carry of the rows that are thinking, in this process's memory (serving/reasoning.py, `Slots`).

Shapes: R slots, n of them run; z_H [R, tokens, h], z_L [R, tokens, l].
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.manifest import ModelManifest
from serving.graph import Graph, expected_inputs
from serving.reasoning import Arrays, Ints

RESET = "reset"


class HostSlots:
    """R rows of one graph. Any provider: onnxruntime copies to its device and back where it has one."""

    separable = True

    def __init__(self, graph: Graph, manifest: ModelManifest, rows: int) -> None:
        self.rows = rows
        self._graph = graph
        self._carry = tuple(manifest.carry)
        self._inputs: Arrays = {
            name: np.zeros((rows, *shape), dtype=np.bool_ if name == RESET else np.float32)
            for name, shape in expected_inputs(manifest).items()
        }

    def place(self, slots: Ints, feeds: Mapping[str, NDArray[Any]]) -> None:
        for name, array in feeds.items():
            self._inputs[name][slots] = array
        if RESET in self._inputs:
            self._inputs[RESET][slots] = True

    def run(self, slots: Ints) -> Arrays:
        dense = slots[-1] + 1 == len(slots)  # the usual case: the lowest slots, which need no gathering
        rows: Any = slice(0, len(slots)) if dense else slots
        out = self._graph.run({name: array[rows] for name, array in self._inputs.items()})
        for name in self._carry:
            self._inputs[name][rows] = out[f"{name}_next"]
        if RESET in self._inputs:
            self._inputs[RESET][rows] = False
        return out
