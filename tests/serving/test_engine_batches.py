"""Large batches run in pieces on several cores, and the engine says whether the last segment changed its mind."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from test_engine import open_engine
from tiny_models import hrm_graph, publish_hrm

from core.actions import legal_actions
from core.errors import ModelError
from flows.drill_models import SCHEMA
from serving.engine import CPU_ROWS_PER_RUN, Decisions, Engine

PHASES = np.array([1.0, 2.0, 3.0, 4.0, 5.0], dtype=np.float32)
SWING = np.float32(30.0)  # of the logits: far more than the bars' own part


def restless_graph() -> bytes:
    """The tiny hrm whose logits swing from segment to segment: logits + 30 sin(segment * [1, 2, 3, 4, 5])."""
    model = onnx.load_from_string(hrm_graph())
    for node in model.graph.node:
        if node.output[0] == "action_logits":
            node.output[0] = "calm_logits"
    model.graph.initializer.extend(
        numpy_helper.from_array(np.asarray(array), name)
        for name, array in {"phases": PHASES[None], "swing": SWING, "axis1": np.array([1])}.items()
    )
    node = helper.make_node
    model.graph.node.extend(
        [
            node("Unsqueeze", ["value", "axis1"], ["segment"]),
            node("Mul", ["segment", "phases"], ["angle"]),
            node("Sin", ["angle"], ["sine"]),
            node("Mul", ["sine", "swing"], ["swung"]),
            node("Add", ["calm_logits", "swung"], ["action_logits"]),
        ]
    )
    return bytes(model.SerializeToString())


@pytest.fixture(scope="module")
def restless(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    store: Path = tmp_path_factory.mktemp("restless")
    publish_hrm(store, "hrm/restless", graph=restless_graph())
    return open_engine(store, "hrm/restless")


def rows(B: int, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    account = np.zeros((B, len(SCHEMA.account_features)), np.float32)
    account[:, 0] = rng.integers(0, 8, B)  # how long each thinks
    return {
        "bars": rng.normal(size=(B, SCHEMA.window, len(SCHEMA.bar_features))).astype(np.float32),
        "account": account,
        "complexity": np.zeros(B, np.float32),
        "position": rng.integers(-1, 2, B),
    }


def test_a_decision_is_stable_if_its_last_segment_left_the_action_as_it_was(restless: Engine) -> None:
    asked = rows(500)
    made = restless.decide(**asked)
    kernel = next(
        numpy_helper.to_array(each)
        for each in onnx.load_from_string(hrm_graph()).graph.initializer
        if each.name == "kernel"
    )
    calm = asked["bars"].reshape(500, -1) @ kernel
    legal = legal_actions(asked["position"])

    def action(segment: np.ndarray) -> np.ndarray:
        return np.where(legal, calm + SWING * np.sin(segment[:, None] * PHASES), -np.inf).argmax(axis=1)

    assert (made.action == action(made.segments)).all()
    expected = (action(made.segments) == action(made.segments - 1)) | (made.segments == 1)
    assert made.stable.tolist() == expected.tolist()
    assert set(made.stable[made.segments > 1]) == {True, False}


def test_a_pool_of_threads_changes_nothing(restless: Engine) -> None:
    asked = rows(3 * CPU_ROWS_PER_RUN + 5)
    alone = restless.decide(**asked)
    with ThreadPoolExecutor(3) as pool:
        together = restless.decide(**asked, pool=pool)
    for name in (field.name for field in fields(Decisions)):
        np.testing.assert_array_equal(getattr(alone, name), getattr(together, name), err_msg=name)


def test_what_a_piece_raises_in_a_thread_is_raised(restless: Engine) -> None:
    asked = rows(2 * CPU_ROWS_PER_RUN)
    asked["bars"][-1] = 3e38  # finite, but its product with the kernel is not
    with ThreadPoolExecutor(2) as pool, pytest.raises(ModelError) as error:
        restless.decide(**asked, pool=pool)
    assert error.value.code == "output_not_finite"
