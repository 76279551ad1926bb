"""The seed's own calls (2.1 to 2.4, 8.1.1), as far as they are kept; docs/adr/0043 has the others."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hrm_planted import COST_BPS, HRM, QUANTITY_MAX, SCHEMA, SMALL, planted_batch, planted_rows, settings

from core.errors import DataError
from core.observation import Observation, ObservationSchema
from hrm.act import AdaptiveComputationTime
from hrm.agent import Decisions, Experience, HRMAgent
from hrm.losses import Imitation
from hrm.model import Carry, HierarchicalReasoningModel
from hrm.trainer import DeepSupervisionTrainer
from trading.complexity import MarketComplexityDetector
from trading.features import schema as features_schema

DEEP = SMALL | {f"{HRM}ACT__MAX_SEGMENTS": "6", f"{HRM}ACT__HALTING": "q_learning"}
WITH_COMPLEXITY = SCHEMA.model_copy(update={"account_features": ("complexity", "clock", "position")})
CONFIG = settings(preset="seed")


def model() -> HierarchicalReasoningModel:
    return HierarchicalReasoningModel(settings(SMALL).hierarchical_reasoning_model, SCHEMA, QUANTITY_MAX).eval()


def agent(schema: ObservationSchema = SCHEMA) -> HRMAgent:
    """Halts as it likes: only the minimum that complexity asks for keeps it thinking."""
    made = HRMAgent(schema, settings(DEEP), COST_BPS)
    made.model.q_head.bias.copy_(torch.tensor([1.0, 0.0]))
    return made


def flat(seen: Observation) -> np.ndarray:
    return np.concatenate([seen.bars.ravel(), seen.account]).astype(np.float64)


def noted(made: HRMAgent, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """(position, segments) of each decision, as they are made."""
    notes: list[tuple[int, int]] = []
    decide = made.decide_batch

    def noting(bars: np.ndarray, account: np.ndarray, complexity: np.ndarray, position: np.ndarray) -> Decisions:
        decisions = decide(bars, account, complexity, position)
        notes.extend(zip(position.tolist(), decisions.segments.tolist(), strict=True))
        return decisions

    monkeypatch.setattr(made, "decide_batch", noting)
    return notes


# --- 2.1, 8.1.1: the model --------------------------------------------------------------------------------------


def test_the_model_answers_an_observation_by_the_seeds_names() -> None:
    net, observation = model(), torch.randn(4, 27)
    outputs, final_states = net(observation)
    assert outputs["action_type"].shape == (4, 5)
    assert outputs["quantity"].shape == (4, 1)
    assert outputs["value"].shape == (4, 1)
    assert outputs["q_values"].shape == (4, 2)
    assert final_states[0] is not None
    assert final_states[1] is not None
    assert ((outputs["quantity"] >= 1) & (outputs["quantity"] <= QUANTITY_MAX)).all()


def test_the_seeds_names_are_other_words_for_the_same_outputs() -> None:
    outputs, _ = model()(torch.randn(3, 27))
    assert outputs["action_type"] is outputs.action_logits is outputs[0]
    torch.testing.assert_close(outputs["quantity"][:, 0].log(), outputs.log_quantity)
    torch.testing.assert_close(outputs["value"][:, 0], outputs.value)
    torch.testing.assert_close(outputs["q_values"].unbind(-1), (outputs.q_halt, outputs.q_continue))
    assert len(outputs[1:]) == 4
    with pytest.raises(KeyError, match="action"):
        outputs["action"]


def test_one_observation_in_a_row_is_bars_and_account_and_no_carry_is_the_first_one() -> None:
    net, rows = model(), planted_rows(5, 0)
    bars, account = torch.from_numpy(rows["bars"]), torch.from_numpy(rows["account"])
    flat_rows = torch.cat((bars.flatten(1), account), 1)
    split_bars, split_account = net.split(flat_rows)
    assert torch.equal(split_bars, bars)
    assert torch.equal(split_account, account)
    expected = net(bars, account, net.initial_carry(5))
    once = net(flat_rows)
    torch.testing.assert_close(once, expected)
    torch.testing.assert_close(net(flat_rows, once[1]), net(bars, account, expected[1]))
    assert isinstance(once[1], Carry)


def test_the_models_parts_have_the_seeds_names() -> None:
    config = CONFIG.hierarchical_reasoning_model
    with torch.device("meta"):
        net = HierarchicalReasoningModel(config, SCHEMA, QUANTITY_MAX)
    assert (net.N, net.T) == (config.hierarchical.N_cycles, config.hierarchical.T_timesteps) == (3, 5)
    assert net.config is config
    assert net.h_module is net.recurrence.f_H
    assert net.l_module is net.recurrence.f_L
    heads = (net.policy_head, net.quantity_head, net.value_head, net.q_head)
    assert [head.out_features for head in heads] == [5, 1, 1, 2]
    assert net.observation_dim == 12 * 2 + 3


# --- 2.2: adaptive computation and complexity -------------------------------------------------------------------


def test_the_act_mechanism_is_called_as_in_the_seed() -> None:
    act = AdaptiveComputationTime(CONFIG.hierarchical_reasoning_model)
    assert (act.M_max, act.M_min, act.epsilon) == (8, 1, 0.1)
    should_halt, reason = act.should_halt(torch.tensor([0.3, 0.7]), segment_count=3, market_complexity=0.5)
    assert should_halt is False
    assert reason == "continue_reasoning"


def test_the_seeds_loop_runs_until_the_rule_ends_it() -> None:
    net = model()
    act, state, z = AdaptiveComputationTime(settings(DEEP).hierarchical_reasoning_model), torch.randn(1, 27), None
    segment_count, reason = 0, ""
    while segment_count < act.M_max:
        outputs, z = net(state) if z is None else net(state, z)
        segment_count += 1
        halted, reason = act.should_halt(outputs["q_values"], segment_count, 0.5)
        if halted:
            break
    assert (segment_count, reason) == (6, "max_segments_reached")  # both Q-values are at their start: equal


def test_a_detector_without_arguments_is_as_the_settings_say(monkeypatch: pytest.MonkeyPatch) -> None:
    detector = MarketComplexityDetector()
    assert (detector.volatility_window, detector.trend_strength_window) == (20, 14)
    assert 0.0 <= detector.compute_complexity(100 + np.random.default_rng(0).standard_normal(200)) <= 1.0
    monkeypatch.setenv(f"{HRM}COMPLEXITY_DETECTION__VOLATILITY_WINDOW", "30")
    assert MarketComplexityDetector().volatility_window == 30


# --- 2.3: the trainer -------------------------------------------------------------------------------------------


def test_a_trainer_of_a_model_and_a_configuration_trains() -> None:
    config, net = settings(SMALL), model()
    trainer = DeepSupervisionTrainer(net, config)
    loss = trainer.train_step(planted_batch(8, 0))
    assert isinstance(loss, float)
    assert np.isfinite(loss)
    assert trainer.step_count == 1
    assert trainer.max_segments == config.deep_supervision.max_supervision_segments
    training = config.training_params.hrm
    assert trainer.total_steps == training.rows_per_epoch // config.performance.batch_size * training.max_epochs
    assert isinstance(trainer.objective, Imitation)
    assert trainer.objective.cost_bps == config.trading.cost_bps


# --- 2.4: the agent ---------------------------------------------------------------------------------------------


def test_the_agents_parts_have_the_seeds_names() -> None:
    made = HRMAgent(SCHEMA, settings(DEEP))
    assert made.hrm_model is made.model
    assert isinstance(made.act_mechanism, AdaptiveComputationTime)
    assert made.device == torch.device("cpu")
    assert (made.observation_dim, made.action_dim_discrete, made.action_dim_continuous) == (27, 5, 1)


@pytest.mark.parametrize("row", range(6))
def test_an_array_is_decided_as_the_observation_it_was_made_of(row: int) -> None:
    made, rows = agent(WITH_COMPLEXITY), planted_rows(6, 3)
    account = np.array([rows["complexity"][row], 0.3, rows["position"][row]], np.float32)
    seen = Observation(rows["bars"][row], account, float(rows["complexity"][row]), int(rows["position"][row]))
    assert made.select_action(flat(seen)) == made.select_action(seen)


def test_an_array_says_its_complexity_by_the_account_and_is_complex_where_it_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    silent, telling = agent(), agent(WITH_COMPLEXITY)
    of_silent, of_telling = noted(silent, monkeypatch), noted(telling, monkeypatch)
    for made in (silent, telling):
        made.select_action(np.zeros(27))
    assert of_silent == [(0, 3)]
    assert of_telling == [(0, 1)]


def test_an_array_says_its_position_by_the_account(monkeypatch: pytest.MonkeyPatch) -> None:
    made, numbers = agent(), np.zeros(27)
    notes = noted(made, monkeypatch)
    for position in (-1, 0, 1):
        numbers[24] = position
        made.select_action(numbers)
    assert [position for position, _ in notes] == [-1, 0, 1]


@pytest.mark.parametrize(
    "broken",
    [
        np.full(27, np.nan),
        np.append(np.zeros(26), np.inf),
        np.append(np.zeros(26), 1e300),  # no float32
        np.zeros(26),
        np.zeros((12, 2)),
        np.zeros(()),
        np.array([]),
        np.array(["flat"] * 27),
        np.array([None] * 27),
    ],
)
def test_an_array_that_is_no_observation_gets_the_safe_decision_and_is_counted(broken: np.ndarray) -> None:
    made = agent()
    assert made.select_action(broken) == (4, 1.0)
    assert made.invalid_observations == 1


def test_an_array_without_a_position_is_not_decided() -> None:
    made = agent(SCHEMA.model_copy(update={"account_features": ("clock", "size", "complexity")}))
    assert made.select_action(np.zeros(27)) == (4, 1.0)
    assert made.invalid_observations == 1


def test_what_trading_shows_names_both_of_them() -> None:
    shown = features_schema(settings().observation).account_features
    assert {"position", "complexity"} <= set(shown)


# --- 2.4: learning ----------------------------------------------------------------------------------------------


def test_experiences_of_another_kind_are_refused_with_a_remedy_and_change_nothing() -> None:
    made, rows = agent(), planted_rows(1, 0)
    seen = Observation(rows["bars"][0], rows["account"][0], 0.5, 0)
    known = Experience(seen, np.zeros(3, np.float32), 1.0)
    with pytest.raises(DataError, match=r"no loss for dict, tuple; give hrm\.agent\.Experience") as refused:
        made.learn([known, (seen, 4, 0.0), {"observation": seen}])  # type: ignore[list-item]  # wrong on purpose
    assert refused.value.code == "unknown_experience"
    assert made.trainer.step == 0
    made.learn([known])
    assert made.trainer.step == 1
