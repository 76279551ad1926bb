"""The two policies of a rehearsed day: a sound one, and one that is as sound until a minute of the afternoon.

Both follow what the market's signal has lately been worth (`edge_<span>` of trading/features.py) and stay flat where
that is little, so that positions end and symbols can move. The broken one then reverses its position at every bar: it
loses the charges of it in any market, with no failed run, no slow one, nothing but money to see it by.

    e = edge, once broken K (1/2 - p); p = position in {-1, 0, +1}
    score(long) = e - THRESHOLD    score(short) = -e - THRESHOLD    score(flat) = 0    score(what is held) += STAY
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from core.manifest import ModelManifest, publish
from core.observation import ObservationSchema
from flows.drill_models import golden

THRESHOLD, STAY, REVERSE = 0.5, 0.3, 10.0  # of an edge, standard deviations of a bar
NEVER = 2.0  # a progress of the session that there is not
UNITS_SCALE = 4.0  # `log_units` is log(capital / price) by this

_GRAPH = """
<ir_version: 10, opset_import: ["" : 17]>
policy (float[B, {window}, {features}] bars, float[B, {accounts}] account)
  => (float[B, 5] action_logits, float[B] log_quantity, float[B] value)
{{
  picked = MatMul (account, pick)
  edge, progress, position, log_units = Split <axis = 1> (picked, ones)
  overdue = GreaterOrEqual (progress, breaks_at)
  against = Mul (position, minus_reverse)
  restless = Add (against, half_reverse)
  e = Where (overdue, restless, edge)
  buy = Sub (e, threshold)
  minus_e = Neg (e)
  sell = Sub (minus_e, threshold)
  close = Mul (e, zero)
  earned = Mul (position, e)
  held = Abs (position)
  hurdle = Mul (held, threshold)
  kept = Sub (earned, hurdle)
  hold = Add (kept, stay)
  action_logits = Concat <axis = 1> (buy, sell, close, close, hold)
  log_quantity_2d = Mul (log_units, units_scale)
  log_quantity = Squeeze (log_quantity_2d, axis_1)
  value = Squeeze (e, axis_1)
}}
"""


def publish_day_policy(
    store: Path, model_id: str, schema: ObservationSchema, *, span: int, breaks_at: float = NEVER
) -> ModelManifest:
    """Publish a policy that follows `edge_<span>` until `breaks_at`, as a ratio of the session."""
    graph = policy_graph(schema, span, breaks_at)
    name, version = model_id.split("/")
    return publish(
        store,
        {"model.onnx": graph, "golden.npz": golden(graph, schema)},
        name=name,
        version=version,
        algorithm="ppo",
        parameters=4 * len(schema.account_features),
        observation=schema,
        quantity_max=1e6,
        dataset_digest="rehearsal",
    )


def policy_graph(schema: ObservationSchema, span: int, breaks_at: float) -> bytes:
    """A serialised ppo-style graph (docs/architecture.md, "Model files")."""
    accounts = schema.account_features
    text = _GRAPH.format(window=schema.window, features=len(schema.bar_features), accounts=len(accounts))
    model = onnx.parser.parse_model(text)
    pick = np.zeros((len(accounts), 4), np.float32)
    for column, name in enumerate((f"edge_{span}", "progress", "position", "log_units")):
        pick[accounts.index(name), column] = 1.0
    constants = {
        "pick": pick,
        "ones": np.ones(4, np.int64),
        "axis_1": np.array([1], np.int64),
        "breaks_at": np.float32(breaks_at),
        "minus_reverse": np.float32(-REVERSE),
        "half_reverse": np.float32(REVERSE / 2),
        "threshold": np.float32(THRESHOLD),
        "stay": np.float32(STAY),
        "zero": np.float32(0.0),
        "units_scale": np.float32(UNITS_SCALE),
    }
    model.graph.initializer.extend(
        numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()
    )
    onnx.checker.check_model(model, full_check=True)
    data: bytes = model.SerializeToString()
    return data


def ratio_of_session(bar: int, session_bars: int) -> float:
    """The `progress` from which on this bar of the session has come, half a bar early for float32's sake."""
    return (bar - 0.5) / max(1, session_bars - 1)
