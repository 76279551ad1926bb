"""PPO by behaviour: it learns a planted edge, its advantages are the formula's, its export is itself."""

import numpy as np
import pytest
import torch

from baselines.export import export
from baselines.ppo import PpoAgent, PpoNetwork, log_policy, train
from core.actions import TARGET_OF, Action, legal_actions
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


def test_illegal_actions_have_no_probability() -> None:
    position = torch.tensor([-1, 0, 1])
    probabilities = log_policy(torch.randn(3, 5), position).exp()
    assert (probabilities[~torch.from_numpy(legal_actions(position.numpy()))] == 0).all()
    torch.testing.assert_close(probabilities.sum(dim=1), torch.ones(3))


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


def test_the_weights_that_validated_best_are_kept() -> None:
    losses = iter([3.0, 1.0, 2.0, 4.0, 5.0, 6.0, 7.0])
    seen: list[torch.Tensor] = []

    def validate(agent: PpoAgent) -> float:
        seen.append(agent.network.action_head.weight.detach().clone())
        return next(losses)

    agent = train(PlantedEdge(32, 0), SCHEMA, settings(total_timesteps="20000"), seed=1, validate=validate)
    assert len(seen) >= 3
    assert torch.equal(agent.network.action_head.weight, seen[1])
    assert not torch.equal(seen[0], seen[1])


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
