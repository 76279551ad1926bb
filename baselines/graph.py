"""An ONNX file of our contract, written node by node: an MLP is five kinds of node, and nothing has to be traced.

(bars [B, W, F], account [B, A]) -> action_logits [B, 5], log_quantity [B], value [B]; float32, B dynamic.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

from core.actions import N_ACTIONS
from core.observation import ObservationSchema

OPSET = 20
INPUTS = ("bars", "account")
OUTPUTS = ("action_logits", "log_quantity", "value")


class Graph:
    """Nodes and constants in the order they are needed. What a method adds is returned by its name."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []

    def add(self, operator: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        """One node with one output, named by its number unless a name is given."""
        output = output or f"{operator.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, list(inputs), [output], **attributes))
        return output

    def constant(
        self, value: NDArray[np.generic] | Tensor | float | list[int], dtype: type[np.floating] = np.float32
    ) -> str:
        """A number or an array of floats, or integers such as axes."""
        name = f"constant_{len(self.initializers)}"
        array = value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)
        kind = np.int64 if np.issubdtype(array.dtype, np.integer) else dtype
        self.initializers.append(numpy_helper.from_array(np.asarray(array, dtype=kind, order="C"), name))
        return name

    def linear(self, source: str, weight: Tensor, bias: Tensor) -> str:
        """source [B, in] @ weight [out, in]' + bias [out]."""
        return self.add("Gemm", source, self.constant(weight), self.constant(bias), transB=1)

    def columns(self, source: str, start: int, stop: int) -> str:
        """source [B, K] -> [B, stop - start]."""
        return self.add("Slice", source, *(self.constant([at]) for at in (start, stop, 1)))

    def column(self, source: str, at: int, output: str = "") -> str:
        """source [B, K] -> [B]."""
        return self.add("Squeeze", self.columns(source, at, at + 1), self.constant([1]), output=output)

    def file(self, schema: ObservationSchema) -> bytes:
        """The checked file; INPUTS and OUTPUTS are among the names of its nodes."""
        shapes = {"bars": (schema.window, len(schema.bar_features)), "account": (len(schema.account_features),)}
        inputs = [_tensor(name, shapes[name]) for name in INPUTS]
        outputs = [_tensor(OUTPUTS[0], (N_ACTIONS,)), *map(_tensor, OUTPUTS[1:])]
        graph = helper.make_graph(self.nodes, "ppo", inputs, outputs, self.initializers)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)
        onnx.checker.check_model(model, full_check=True)
        return bytes(model.SerializeToString())


def _tensor(name: str, shape: tuple[int, ...] = ()) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", *shape])
