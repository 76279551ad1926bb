"""The incumbent by behaviour: it learns a planted edge and the size it is taught, its export is itself."""

import numpy as np
import pytest
import torch

from baselines.agent import CostRamp, Look, PpoAgent, train
from baselines.export import export
from baselines.ppo import PpoNetwork
from core.actions import TARGET_OF, Action
from core.observation import Observation, ObservationSchema
from core.settings import Settings, load_settings

SCHEMA = ObservationSchema(window=4, patch=2, bar_features=("x",), account_features=("edge", "position"))


def settings(**ppo: str) -> Settings:
    small = {"N_ENVS": "32", "N_STEPS": "16", "BATCH_SIZE": "128", "HIDDEN_DIM": "32", "LEARNING_RATE": "0.003"}
    return load_settings(
        preset="compact",
        environ={f"HRM_TRAINING_PARAMS__PPO__{name.upper()}": value for name, value in (small | ppo).items()},
    )


class PlantedEdge:
    """The account shows next step's return; holding its sign earns it. Episodes last ten steps."""

    def __init__(self, rows: int, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.rows = rows
        self.position = np.zeros(rows, dtype=np.int64)
        self.age = 0
        self.edge = self.rng.choice([-5.0, 5.0], rows)

    def observe(self):
        account = np.stack([self.edge / 5.0, self.position], axis=1).astype(np.float32)
        bars = np.zeros((self.rows, 4, 1), dtype=np.float32)
        return bars, account, self.position, np.full(self.rows, 3.0, dtype=np.float32)

    def step(self, action):
        target = TARGET_OF[self.position + 1, action]
        cost = 1.0 * np.abs(target - self.position)
        reward = target * self.edge - cost
        self.age += 1
        done = np.full(self.rows, self.age % 10 == 0)
        self.position = np.where(done, 0, target)
        self.edge = self.rng.choice([-5.0, 5.0], self.rows)
        return reward, cost, done


def greedy_share(agent: PpoAgent, edge: float, position: int) -> int:
    account = np.array([edge / 5.0, position], dtype=np.float32)
    action, _ = agent.select_action(Observation(np.zeros((4, 1), np.float32), account, 0.5, position))
    return int(TARGET_OF[position + 1, action])


def test_it_learns_to_hold_the_sign_of_a_visible_edge_and_the_size_it_is_taught() -> None:
    agent = train(PlantedEdge(32, 0), SCHEMA, settings(total_timesteps="30000"), seed=0)
    for position in (-1, 0, 1):
        assert greedy_share(agent, 5.0, position) == 1
        assert greedy_share(agent, -5.0, position) == -1
    _, quantity = agent.select_action(
        Observation(np.zeros((4, 1), np.float32), np.array([1.0, 0.0], np.float32), 0.5, 0)
    )
    assert quantity == pytest.approx(np.exp(3.0), rel=0.2)


def test_the_same_seed_trains_the_same_agent() -> None:
    trained = [train(PlantedEdge(32, 0), SCHEMA, settings(total_timesteps="1500"), seed=7) for _ in range(2)]
    for ours, theirs in zip(*(agent.network.parameters() for agent in trained), strict=True):
        assert torch.equal(ours, theirs)


def test_a_non_finite_observation_holds_and_is_counted() -> None:
    agent = PpoAgent(PpoNetwork(SCHEMA, 8, 100.0), SCHEMA, 100.0)
    broken = Observation(np.full((4, 1), np.nan, np.float32), np.zeros(2, np.float32), 0.5, 0)
    assert agent.select_action(broken) == (int(Action.HOLD), 1.0)
    assert agent.invalid_observations == 1


def test_the_exported_graph_answers_as_the_network(tmp_path) -> None:
    agent = PpoAgent(PpoNetwork(SCHEMA, 8, 100.0), SCHEMA, 100.0)
    manifest = export(agent, store=tmp_path, name="ppo", version="v1", metrics={"a": 1.0}, dataset_digest="d")
    assert manifest.metrics["parity_max_abs_error"] < 1e-5
    assert manifest.algorithm == "ppo"
    assert (tmp_path / "ppo" / "v1" / "golden.npz").exists()


def test_the_weights_that_validated_best_with_all_costs_charged_are_kept() -> None:
    losses = iter([0.0, 0.0, 0.0, 0.0, 0.0, 3.0, 1.0, 2.0, 4.0, 5.0])
    looks: list[Look] = []
    weights: list[torch.Tensor] = []

    def validate(agent: PpoAgent, look: Look) -> float:
        looks.append(look)
        weights.append(agent.network.body.first.weight.detach().clone())
        return next(losses)

    agent = train(PlantedEdge(32, 0), SCHEMA, settings(total_timesteps="20000"), seed=1, validate=validate)
    assert [look.candidate for look in looks] == [False] * 5 + [True] * 5
    assert [look.samples for look in looks] == sorted(look.samples for look in looks)
    assert looks[-1].samples == 20000 // 512 * 512
    assert torch.equal(agent.network.body.first.weight, weights[6])
    assert not torch.equal(weights[5], weights[6])


@pytest.mark.parametrize(("warm_up", "expected"), [("0.0", [True] * 5), ("1.0", [False] * 5 + [True])])
def test_without_a_ramp_and_with_nothing_else_the_last_weights_are_candidates(warm_up, expected) -> None:
    looks: list[bool] = []

    def validate(agent: PpoAgent, look: Look) -> float:
        looks.append(look.candidate)
        return 0.0

    changed = settings(total_timesteps="20000", cost_warmup_ratio=warm_up)
    train(PlantedEdge(32, 0), SCHEMA, changed, seed=1, validate=validate)
    assert looks == expected


def test_a_training_of_one_update_is_looked_at_once() -> None:
    looks: list[Look] = []
    train(
        PlantedEdge(32, 0),
        SCHEMA,
        settings(total_timesteps="1"),
        seed=1,
        validate=lambda _, look: looks.append(look) or 0.0,
    )
    assert looks == [Look(512, True)]


def test_waived_costs_are_given_back_and_rewards_are_tenths() -> None:
    first, second = CostRamp(PlantedEdge(4, 0)), CostRamp(PlantedEdge(4, 0))
    first.waived, second.waived = 1.0, 0.25
    action = np.full(4, Action.BUY_LONG)
    for ramp in (first, second):
        ramp.observe()
    np.testing.assert_allclose(first.step(action).reward, 0.1 * (second.step(action).reward / 0.1 + 0.75))


def test_a_batch_is_decided_as_its_rows_are() -> None:
    agent = PpoAgent(PpoNetwork(SCHEMA, 8, 100.0), SCHEMA, 100.0)
    rng = np.random.default_rng(0)
    account = rng.standard_normal((9, 2), dtype=np.float32)
    bars, position = rng.standard_normal((9, 4, 1), dtype=np.float32), np.array([-1, 0, 1] * 3)
    batch = agent.decide_batch(bars, account, np.zeros(9, np.float32), position)
    for row in range(9):
        action, quantity = agent.select_action(Observation(bars[row], account[row], 0.5, int(position[row])))
        assert action == batch.action[row]
        assert quantity == pytest.approx(batch.quantity[row], rel=1e-5)
