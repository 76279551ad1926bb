from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from tiny_models import RULE, TOKENS, WIDTH, hrm_golden, hrm_graph, publish_hrm

from core.actions import Action, legal_actions
from core.errors import ModelError
from core.manifest import publish
from core.settings import load_settings
from flows.drill_models import FAULT_LEVEL, SCHEMA, golden, policy_graph, publish_policy
from serving.engine import Decisions, Engine
from serving.graph import working_providers
from serving.store import load_version

SERVING = load_settings(environ={}).serving
W, F, A = SCHEMA.window, len(SCHEMA.bar_features), len(SCHEMA.account_features)


def open_engine(store: Path, model_id: str) -> Engine:
    return Engine(load_version(store, model_id, size_limit_mb=100), SERVING)


@pytest.fixture(scope="module")
def hrm(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    store = tmp_path_factory.mktemp("hrm")
    publish_hrm(store, "hrm/v1")
    return open_engine(store, "hrm/v1")


@pytest.fixture(scope="module")
def ppo(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    store = tmp_path_factory.mktemp("ppo")
    publish_policy(store, "ppo/v1")
    return open_engine(store, "ppo/v1")


def observations(B: int, depth: Any = 0.0, seed: int = 0) -> dict[str, NDArray[Any]]:
    """B rows; the tiny hrm halts at segment floor(depth + 0.5) + 1."""
    rng = np.random.default_rng(seed)
    account = np.zeros((B, A), np.float32)
    account[:, 0] = depth
    return {
        "bars": rng.normal(size=(B, W, F)).astype(np.float32),
        "account": account,
        "complexity": np.zeros(B, np.float32),
        "position": rng.integers(-1, 2, B),
    }


def test_each_row_reasons_exactly_as_long_as_it_needs(hrm: Engine) -> None:
    depth = np.array([0, 1, 2, 3, 4, 5, 9], np.float32)
    made = hrm.decide(**observations(7, depth))
    assert made.segments.tolist() == [1, 2, 3, 4, 5, 6, 6]
    assert made.value.tolist() == [1, 2, 3, 4, 5, 6, 6]  # the answer is that of the row's last segment
    assert made.halt_reason[0] == "q_learning_decision"
    assert made.halt_reason[-1] == "max_segments_reached"


@pytest.mark.parametrize(("complexity", "segments"), [(0.1, 1), (0.45, 2), (0.75, 3)])
def test_a_complex_market_gets_more_segments(hrm: Engine, complexity: float, segments: int) -> None:
    rows = observations(1) | {"complexity": np.array([complexity], np.float32)}
    assert hrm.decide(**rows).segments.tolist() == [segments]


@hypothesis_settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), mates=st.integers(1, 12))
def test_a_decision_does_not_depend_on_its_batch_mates(hrm: Engine, seed: int, mates: int) -> None:
    depths = np.random.default_rng(seed).integers(0, 8, mates + 1).astype(np.float32)
    rows = observations(mates + 1, depths, seed)
    together = hrm.decide(**rows)
    for i in range(mates + 1):
        alone = hrm.decide(**{name: array[i : i + 1] for name, array in rows.items()})
        assert alone.action[0] == together.action[i]
        assert alone.segments[0] == together.segments[i]
        assert np.allclose(alone.probabilities[0], together.probabilities[i], atol=1e-6)


def test_thousands_of_rows_in_one_call_equal_the_same_rows_in_pieces(ppo: Engine) -> None:
    rows = observations(2500)
    whole = ppo.decide(**rows)
    piece = ppo.decide(**{name: array[2000:] for name, array in rows.items()})
    assert whole.action.shape == (2500,)
    assert len(whole.halt_reason) == 2500
    assert (whole.action[2000:] == piece.action).all()


def test_only_legal_actions_are_chosen_and_have_probability(hrm: Engine) -> None:
    rows = observations(300)
    made: Decisions = hrm.decide(**rows)
    legal = legal_actions(rows["position"])
    assert legal[np.arange(300), made.action].all()
    assert (made.probabilities[~legal] == 0).all()
    assert np.allclose(made.probabilities.sum(axis=1), 1)


def test_a_one_pass_policy_follows_its_logits(ppo: Engine) -> None:
    rising = observations(1) | {"bars": np.ones((1, W, F), np.float32), "position": np.zeros(1, np.int64)}
    falling = rising | {"bars": -np.ones((1, W, F), np.float32)}
    assert ppo.decide(**rising).action.tolist() == [Action.BUY_LONG]
    assert ppo.decide(**falling).action.tolist() == [Action.SELL_SHORT]
    assert ppo.decide(**rising).halt_reason == ["single_pass"]
    assert ppo.decide(**rising).quantity.tolist() == [1.0]


@pytest.mark.parametrize("field", ["bars", "account", "complexity"])
@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_non_finite_inputs_are_refused_by_name(ppo: Engine, field: str, poison: float) -> None:
    rows = observations(3)
    rows[field].flat[0] = poison
    with pytest.raises(ModelError, match=field) as error:
        ppo.decide(**rows)
    assert error.value.code == "input_not_finite"


@pytest.mark.parametrize(
    ("field", "shape"),
    [("bars", (2, W + 1, F)), ("bars", (2, W)), ("account", (3, A)), ("complexity", (2, 1)), ("position", ())],
)
def test_wrong_shapes_are_refused_by_name(ppo: Engine, field: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(ModelError, match=field):
        ppo.decide(**observations(2) | {field: np.zeros(shape, np.int64)})


def test_an_empty_batch_and_an_unknown_position_are_refused(ppo: Engine) -> None:
    with pytest.raises(ModelError):
        ppo.decide(**observations(0))
    with pytest.raises(ModelError):
        ppo.decide(**observations(1) | {"position": np.array([2])})


def test_a_non_finite_output_is_an_error_not_a_decision(tmp_path: Path) -> None:
    publish_policy(tmp_path, "nan/v1", "not_finite")
    engine = open_engine(tmp_path, "nan/v1")
    rows = observations(2)
    assert len(engine.decide(**rows).action) == 2
    rows["bars"][1, 0, 0] = FAULT_LEVEL + 1
    with pytest.raises(ModelError) as error:
        engine.decide(**rows)
    assert error.value.code == "output_not_finite"


def test_a_stopped_engine_fails_instead_of_answering(tmp_path: Path) -> None:
    publish_policy(tmp_path, "ppo/v1")
    engine = open_engine(tmp_path, "ppo/v1")
    engine.stop()
    with pytest.raises(ModelError) as error:
        engine.decide(**observations(1))
    assert error.value.code == "inference_failed"


def test_a_model_that_misses_its_golden_outputs_never_becomes_an_engine(tmp_path: Path) -> None:
    publish_hrm(tmp_path, "hrm/v1", shift=0.01)
    with pytest.raises(ModelError) as error:
        open_engine(tmp_path, "hrm/v1")
    assert error.value.code == "golden_mismatch"


def test_a_rounding_difference_from_the_golden_outputs_is_accepted(tmp_path: Path) -> None:
    publish_hrm(tmp_path, "hrm/v1", shift=0.0005)
    assert 0 < open_engine(tmp_path, "hrm/v1").golden_max_abs_error < 1e-3


def publish_broken(store: Path, **changes: Any) -> None:
    fields: dict[str, Any] = {
        "files": {"model.onnx": policy_graph("none"), "golden.npz": golden(policy_graph("none"))},
        "name": "bad",
        "version": "v1",
        "algorithm": "ppo",
        "parameters": 1,
        "observation": SCHEMA,
        "quantity_max": 10.0,
        "dataset_digest": "x",
    } | changes
    publish(store, fields.pop("files"), **fields)


def test_bytes_that_are_no_graph_are_refused(tmp_path: Path) -> None:
    publish_broken(tmp_path, files={"model.onnx": b"no graph", "golden.npz": golden(policy_graph("none"))})
    with pytest.raises(ModelError) as error:
        open_engine(tmp_path, "bad/v1")
    assert error.value.code == "graph_invalid"


def test_a_graph_of_another_window_than_its_manifest_is_refused(tmp_path: Path) -> None:
    publish_broken(tmp_path, observation=SCHEMA.model_copy(update={"window": 6}))
    with pytest.raises(ModelError) as error:
        open_engine(tmp_path, "bad/v1")
    assert error.value.code == "graph_mismatch"


def test_a_one_pass_graph_called_hrm_is_refused(tmp_path: Path) -> None:
    carry = {"z_H": (TOKENS, WIDTH), "z_L": (TOKENS, WIDTH)}
    publish_broken(tmp_path, algorithm="hrm", halting=RULE, carry=carry)
    with pytest.raises(ModelError) as error:
        open_engine(tmp_path, "bad/v1")
    assert error.value.code == "graph_mismatch"


def test_an_hrm_without_a_halting_rule_is_refused(tmp_path: Path) -> None:
    files = {"model.onnx": hrm_graph(), "golden.npz": hrm_golden(hrm_graph())}
    publish_broken(tmp_path, files=files, algorithm="hrm", carry={"z_H": (TOKENS, WIDTH), "z_L": (TOKENS, WIDTH)})
    with pytest.raises(ModelError) as error:
        open_engine(tmp_path, "bad/v1")
    assert error.value.code == "manifest_invalid"


def test_goldens_of_another_model_are_refused(tmp_path: Path) -> None:
    publish_broken(tmp_path, files={"model.onnx": policy_graph("none"), "golden.npz": hrm_golden(hrm_graph())})
    with pytest.raises(ModelError) as error:
        open_engine(tmp_path, "bad/v1")
    assert error.value.code == "golden_invalid"


def test_the_change_of_the_high_level_state_is_measured_between_segments(hrm: Engine, ppo: Engine) -> None:
    assert hrm.residuals == pytest.approx((1, 1 / 2, 1 / 3, 1 / 4, 1 / 5))
    assert ppo.residuals == ()


def test_an_unknown_provider_is_passed_over_and_none_at_all_is_an_error(tmp_path: Path) -> None:
    assert working_providers(["NoSuchProvider", "CPUExecutionProvider"]) == ["CPUExecutionProvider"]
    publish_policy(tmp_path, "ppo/v1")
    model = load_version(tmp_path, "ppo/v1", size_limit_mb=100)
    with pytest.raises(ModelError) as error:
        Engine(model, SERVING.model_copy(update={"providers": ("NoSuchProvider",)}))
    assert error.value.code == "no_provider"
