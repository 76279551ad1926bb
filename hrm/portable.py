"""The portable file: one ONNX graph that thinks until every row has halted, and decides. One call, no Python.

    (bars, account, complexity, position) -> (action, quantity, action_logits, log_quantity, value, segments)

An ONNX `Loop` around the exported segment. An iteration gathers the rows that still think, runs their segment,
writes their answers and keeps those that go on; it ends early when nobody does. The rule that stops a row is
core.halting itself, traced by the exporter. Every row keeps the answer of its last segment, as in the service.

A row with a number that is not finite, or a position other than -1, 0, +1, gets the safe decision (HOLD, 1 unit).
`segments` at the rule's maximum means max_segments_reached, below it q_learning_decision. The file's metadata
holds the observation schema, the halting rule and the names of the actions.

Shapes: B rows, A of them active; bars [B, W, F], account [B, a], complexity [B], position int64 [B]; action int64
[B], quantity [B] in units, action_logits [B, 5] before masking, log_quantity, value [B], segments int64 [B].
"""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import onnx
import torch
from onnx import compose, helper, inliner, numpy_helper, parser
from torch import Tensor, nn

from core.actions import LEGAL, SAFE_DECISION, Action
from core.halting import HaltingRule, minimum_segments, should_halt
from hrm.decide import Decided, decide
from hrm.model import HierarchicalReasoningModel
from hrm.tracing import OPSET, traced

AGREEMENT_ROWS = 256

# `Segment` and `Halted` are replaced by the exported graphs; the constants are those of _constants.
PROGRAM = """
<ir_version: 10, opset_import: ["" : %(opset)d, "hrm" : 1]>
decide (float[B, %(window)d, %(features)d] bars, float[B, %(account)d] account, float[B] complexity, int64[B] position)
    => (int64[B] action, float[B] quantity, float[B, 5] action_logits, float[B] log_quantity, float[B] value,
        int64[B] segments)
{
    rows = Shape <start = 0, end = 1> (bars)
    count = Squeeze (rows)
    every = Range (zero, count, one)
    shape_H = Concat <axis = 0> (rows, row_H)
    shape_L = Concat <axis = 0> (rows, row_L)
    shape_logits = Concat <axis = 0> (rows, row_logits)
    no_H = ConstantOfShape (shape_H)
    no_L = ConstantOfShape (shape_L)
    no_logits = ConstantOfShape (shape_logits)
    no_number = ConstantOfShape (rows)
    no_segments = Expand (zero, rows)

    nobody, last_H, last_L, action_logits, log_quantity, value, segments =
        Loop (max_segments, yes, every, no_H, no_L, no_logits, no_number, no_number, no_segments) <body = think (
            int64 iteration, bool somebody, int64[A] active, float[A, n, h] z_H, float[A, n, l] z_L,
            float[R, 5] logits_before, float[R] log_quantity_before, float[R] value_before, int64[R] segments_before
        ) => (
            bool goes_on, int64[C] active_next, float[C, n, h] z_H_next, float[C, n, l] z_L_next,
            float[R, 5] logits_next, float[R] log_quantity_next, float[R] value_next, int64[R] segments_next
        ) {
            bars_now = Gather (bars, active)
            account_now = Gather (account, active)
            complexity_now = Gather (complexity, active)
            active_shape = Shape (active)
            is_first = Equal (iteration, zero)
            reset = Expand (is_first, active_shape)
            logits_now, log_quantity_now, value_now, q_halt, q_continue, z_H_now, z_L_now =
                hrm.Segment (bars_now, account_now, z_H, z_L, reset)
            segment = Add (iteration, one)
            halted = hrm.Halted (segment, q_halt, q_continue, complexity_now)

            at = Unsqueeze (active, last_axis)
            logits_next = ScatterND (logits_before, at, logits_now)
            log_quantity_next = ScatterND (log_quantity_before, at, log_quantity_now)
            value_next = ScatterND (value_before, at, value_now)
            depth = Expand (segment, active_shape)
            segments_next = ScatterND (segments_before, at, depth)

            thinking = Not (halted)
            active_next = Compress <axis = 0> (active, thinking)
            z_H_next = Compress <axis = 0> (z_H_now, thinking)
            z_L_next = Compress <axis = 0> (z_L_now, thinking)
            left = Size (active_next)
            goes_on = Greater (left, zero)
        }>

    sign = Clip (position, minus_one, one)
    row_of_position = Add (sign, one)
    legal = Gather (legal_actions, row_of_position)
    legal_logits = Where (legal, action_logits, minus_infinity)
    best = ArgMax <axis = 1, keepdims = 0> (legal_logits)
    log_bounded = Clip (log_quantity, nought, log_quantity_max)
    bounded = Exp (log_bounded)

    has_position = Equal (position, sign)
    logits_sum = ReduceSum <keepdims = 0> (action_logits, last_axis)
    numbers = Sum (logits_sum, log_quantity, value, complexity)
    difference = Sub (numbers, numbers)
    is_finite = Equal (difference, nought)
    is_valid = And (has_position, is_finite)
    action = Where (is_valid, best, safe_action)
    quantity = Where (is_valid, bounded, safe_quantity)
}
"""


class Halted(nn.Module):
    """core.halting for A active rows: segment int64 [], q_halt, q_continue, complexity [A] -> bool [A]."""

    def __init__(self, rule: HaltingRule) -> None:
        super().__init__()
        self.rule = rule

    def forward(self, segment: Tensor, q_halt: Tensor, q_continue: Tensor, complexity: Tensor) -> Tensor:
        mask: Tensor = should_halt(segment, q_halt, q_continue, minimum_segments(complexity, self.rule), self.rule)
        return mask


def portable_file(model: HierarchicalReasoningModel, segment_file: bytes) -> bytes:
    """The file, from the exported segment of `model` in whatever storage."""
    schema = model.schema
    sizes = {"window": schema.window, "features": len(schema.bar_features), "account": len(schema.account_features)}
    program = parser.parse_model(PROGRAM % (sizes | {"opset": OPSET}))
    tensors = [numpy_helper.from_array(np.asarray(array), name) for name, array in _constants(model).items()]
    program.graph.initializer.extend(tensors)
    _define(program, "Segment", segment_file)
    _define(program, "Halted", _halted_file(model.settings.halting_rule))
    inlined = inliner.inline_local_functions(program)
    helper.set_model_props(inlined, _metadata(model))
    return bytes(inlined.SerializeToString())


def agreement_ratio(model: HierarchicalReasoningModel, file: bytes) -> float:
    """Share of random observations for which the file's action and depth are those of torch."""
    observed = _observations(model, AGREEMENT_ROWS)
    ours, theirs = decide(model, *observed.values()), run(file, observed)
    return float(np.mean((ours.action == theirs.action) & (ours.segments == theirs.segments)))


def run(file: bytes, observed: dict[str, Any]) -> Decided:
    """One call of a portable file with onnxruntime, inputs by name."""
    import onnxruntime

    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    return Decided(*session.run(list(Decided._fields), observed))


def _halted_file(rule: HaltingRule) -> bytes:
    # Three tensors, not one thrice: the exporter takes the same object for the same input.
    example = {"segment": torch.tensor(1)} | {name: torch.zeros(2) for name in ("q_halt", "q_continue", "complexity")}
    return traced(Halted(rule), example, ["halted"])


def _define(program: Any, name: str, file: bytes) -> None:
    """Make `name` a function of the program. What depends on weights alone stays outside the loop, done once."""
    graph = compose.add_prefix(onnx.load_from_string(file), f"{name}.").graph
    once = {tensor.name for tensor in graph.initializer}
    program.graph.initializer.extend(graph.initializer)
    ahead, nodes = [], []
    for node in graph.node:
        if once.issuperset(node.input):
            ahead.append(node)
            once.update(node.output)
        else:
            nodes.append(node)
    given = [value.name for value in graph.input]
    captured = sorted({source for node in nodes for source in node.input} & once)
    returned = [value.name for value in graph.output]
    imports = [helper.make_opsetid("", OPSET)]
    program.functions.append(helper.make_function("hrm", name, given + captured, returned, nodes, imports))
    _call(program, name).input.extend(captured)
    _prepend(program.graph, ahead)


def _call(program: Any, name: str) -> Any:
    """The node in the loop's body that calls the function `name`."""
    loop = next(node for node in program.graph.node if node.op_type == "Loop")
    return next(node for node in loop.attribute[0].g.node if node.op_type == name)


def _prepend(graph: Any, ahead: list[Any]) -> None:
    nodes = [*ahead, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)


def _constants(model: HierarchicalReasoningModel) -> dict[str, Any]:
    action, quantity = SAFE_DECISION
    architecture = model.settings.architecture
    return {
        "zero": np.int64(0),
        "one": np.int64(1),
        "minus_one": np.int64(-1),
        "last_axis": np.array([1]),
        "yes": np.bool_(True),
        "max_segments": np.int64(model.settings.halting_rule.max_segments),
        "row_H": np.array([model.tokens, architecture.h_module_dim]),
        "row_L": np.array([model.tokens, architecture.l_module_dim]),
        "row_logits": np.array([len(Action)]),
        "legal_actions": LEGAL,
        "minus_infinity": np.float32(-np.inf),
        "nought": np.float32(0),
        "log_quantity_max": np.float32(math.log(model.quantity_max)),
        "safe_action": np.int64(action),
        "safe_quantity": np.float32(quantity),
    }


def _metadata(model: HierarchicalReasoningModel) -> dict[str, str]:
    return {
        "observation": model.schema.model_dump_json(),
        "halting": model.settings.halting_rule.model_dump_json(),
        "actions": json.dumps([action.name for action in Action]),
    }


def _observations(model: HierarchicalReasoningModel, rows: int) -> dict[str, Any]:
    random, schema = np.random.default_rng(0), model.schema
    return {
        "bars": random.standard_normal((rows, schema.window, len(schema.bar_features)), dtype=np.float32),
        "account": random.standard_normal((rows, len(schema.account_features)), dtype=np.float32),
        "complexity": random.random(rows, dtype=np.float32),
        "position": random.integers(-1, 2, rows),
    }
