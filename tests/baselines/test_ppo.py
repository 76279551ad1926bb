"""The reference PPO by behaviour: trivial tasks it must learn, and its arithmetic against the formulas."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from baselines.ppo import (
    ActorCritic,
    HybridSize,
    Ppo,
    PpoNetwork,
    Rollout,
    Step,
    TaughtSize,
    as_one_vector,
    entropy,
    log_policy,
)
from benchmarks.ppo import CategoricalPolicy
from core.actions import N_ACTIONS, Action, legal_actions
from core.errors import DataError, ModelError
from core.observation import ObservationSchema
from core.settings import PpoTraining, load_settings

SCHEMA = ObservationSchema(window=2, patch=1, bar_features=("x",), account_features=("edge",))
ROWS = 32
QUANTITY_MAX = 1000.0


def hyper(**changes: float) -> PpoTraining:
    small = {"n_envs": ROWS, "n_steps": 16, "batch_size": 128, "hidden_dim": 32, "learning_rate": 3e-3, "n_epochs": 4}
    settings = load_settings(preset="compact", environ={}).training_params.ppo
    return settings.model_copy(update=small | {"total_timesteps": 20_000} | changes)


def learn(ppo: Ppo, env: object, updates: int) -> float:
    """Mean reward of the last rollout."""
    return [ppo.iterate(env, done=update / updates) for update in range(updates)][-1]


class Bandit:
    """Episodes of one step; the context names the arm that pays."""

    def __init__(self) -> None:
        self.rng = np.random.default_rng(0)
        self.context = self.rng.integers(0, 3, ROWS)

    def observe(self):
        return (np.eye(3, dtype=np.float32)[self.context],)

    def step(self, action):
        reward = (action == self.context).astype(np.float64)
        self.context = self.rng.integers(0, 3, ROWS)
        return Step(reward, np.ones(ROWS, dtype=bool), np.zeros(ROWS, dtype=bool))


def test_it_learns_a_contextual_bandit() -> None:
    ppo = Ppo(CategoricalPolicy(3, 32, 3), hyper(), seed=0)
    assert learn(ppo, Bandit(), 40) > 0.95


class Corridor:
    """Eight steps; the first action is paid for at the very end, the others are noise. Only a critic sees through it.

    With gae_lambda 0 nothing but the value function carries the reward back to the first step.
    """

    LENGTH = 8

    def __init__(self) -> None:
        self.rng = np.random.default_rng(0)
        self.at, self.right = 0, np.zeros(ROWS)

    def observe(self):
        seen = np.zeros((ROWS, self.LENGTH + 1), dtype=np.float32)
        seen[:, self.at] = 1.0
        seen[:, -1] = self.right
        return (seen,)

    def step(self, action):
        if self.at == 0:
            self.right = np.where(action == 1, 1.0, -1.0)
        self.at += 1
        done = self.at == self.LENGTH
        reward = self.right * done + self.rng.normal(0.0, 0.3, ROWS)
        if done:
            self.at, self.right = 0, np.zeros(ROWS)
        return Step(reward, np.full(ROWS, done), np.zeros(ROWS, dtype=bool))


def test_it_learns_from_a_reward_that_comes_late_by_its_value_function_alone() -> None:
    policy = CategoricalPolicy(Corridor.LENGTH + 1, 32, 2)
    learn(Ppo(policy, hyper(gae_lambda=0.0, gamma=0.99), seed=0), Corridor(), 60)
    start = torch.tensor(Corridor().observe()[0][:1])
    assert torch.softmax(policy.body(start)[0], dim=1)[0, 1] > 0.9


class Sizes:
    """Flat, every step an episode: the edge's sign says which way, its magnitude how much.

    Buying and selling pay 1 for the right direction less the squared error of the log quantity; holding pays nothing.
    Positions are flat, so closing is illegal, and would raise here.
    """

    def __init__(self) -> None:
        self.rng = np.random.default_rng(0)
        self.draw()

    def draw(self) -> None:
        self.sign, self.large = self.rng.choice([-1.0, 1.0], ROWS), self.rng.integers(0, 2, ROWS)

    def observe(self):
        x = np.stack([self.sign, 2.0 * self.large - 1.0, np.ones(ROWS)], axis=1).astype(np.float32)
        return x, legal_actions(np.zeros(ROWS, dtype=np.int64))

    def step(self, action):
        number, log_quantity = action[:, 0].astype(int), action[:, 1]
        assert np.isin(number, (Action.BUY_LONG, Action.SELL_SHORT, Action.HOLD)).all()
        assert ((log_quantity > 0) & (log_quantity < math.log(QUANTITY_MAX))).all()
        wanted = np.where(self.large, math.log(300.0), math.log(5.0))
        way = np.select([number == Action.BUY_LONG, number == Action.SELL_SHORT], [1.0, -1.0], 0.0)
        reward = np.where(way == 0.0, 0.0, way * self.sign - 0.25 * (log_quantity - wanted) ** 2)
        self.draw()
        return Step(reward, np.ones(ROWS, dtype=bool), np.zeros(ROWS, dtype=bool))


def test_the_hybrid_head_learns_which_way_and_how_much() -> None:
    network = PpoNetwork(SCHEMA, 32, QUANTITY_MAX)
    reward = learn(Ppo(HybridSize(network), hyper(ent_coef=0.0), seed=0), Sizes(), 150)
    assert reward > 0.8
    x = torch.tensor([[1.0, 1.0, 1.0], [1.0, -1.0, 1.0], [-1.0, 1.0, 1.0], [-1.0, -1.0, 1.0]])
    with torch.no_grad():
        logits, u, _ = network.read(x)
    flat = torch.from_numpy(legal_actions(np.zeros(4, dtype=np.int64)))
    actions = log_policy(logits, flat).argmax(dim=1).tolist()
    assert actions == [Action.BUY_LONG, Action.BUY_LONG, Action.SELL_SHORT, Action.SELL_SHORT]
    quantities = network.log_quantity(u).exp()
    torch.testing.assert_close(quantities, torch.tensor([300.0, 5.0, 300.0, 5.0]), rtol=0.3, atol=0.0)


def test_the_density_of_a_quantity_integrates_to_one() -> None:
    policy = HybridSize(PpoNetwork(SCHEMA, 8, QUANTITY_MAX))
    policy.log_std.data.fill_(0.3)
    rows = 20_001
    log_quantity = torch.linspace(0.0, math.log(QUANTITY_MAX), rows + 2)[1:-1]
    action = torch.stack([torch.full((rows,), float(Action.HOLD)), log_quantity], dim=1)
    observation = (torch.ones(rows, 3), torch.tensor([[False, False, False, False, True]]).expand(rows, -1))
    with torch.no_grad():
        density = policy.evaluate(observation, action).log_prob.exp()
    assert torch.trapezoid(density, log_quantity).item() == pytest.approx(1.0, abs=1e-3)


def test_what_was_acted_is_evaluated_to_the_same_log_probability() -> None:
    torch.manual_seed(0)
    network = PpoNetwork(SCHEMA, 8, QUANTITY_MAX)
    legal = torch.from_numpy(legal_actions(np.array([-1, 0, 1] * 20)))
    observation = (10.0 * torch.randn(60, 3), legal, torch.zeros(60))
    for policy in (TaughtSize(network), HybridSize(network)):
        with torch.inference_mode():
            acted = policy.act(observation, torch.Generator().manual_seed(0))
        found = policy.evaluate(tuple(column.clone() for column in observation), acted.action.clone())
        torch.testing.assert_close(found.log_prob.detach(), acted.log_prob.clone())
        torch.testing.assert_close(found.value.detach(), policy.value(observation).detach())
        assert acted.log_prob.isfinite().all()


def test_illegal_actions_have_no_probability() -> None:
    legal = torch.from_numpy(legal_actions(np.array([-1, 0, 1])))
    log_probs = log_policy(torch.randn(3, N_ACTIONS), legal)
    assert (log_probs.exp()[~legal] == 0).all()
    torch.testing.assert_close(log_probs.exp().sum(dim=1), torch.ones(3))
    assert entropy(log_probs).isfinite().all()


def by_formula(ppo: Ppo, rows: Rollout) -> torch.Tensor:
    """The loss of the module's docstring, for autograd."""
    found, c = ppo.policy.evaluate(rows.observation, rows.action), ppo.hyper
    old, advantage, target = rows.numbers.unbind(1)
    advantage = (advantage - advantage.mean()) / (advantage.std(correction=0) + 1e-8)
    ratio = (found.log_prob - old).exp()
    surrogate = torch.min(ratio * advantage, ratio.clamp(1 - c.clip_range, 1 + c.clip_range) * advantage).mean()
    value_loss = 0.5 * (found.value - target).square().mean()
    return -surrogate + c.vf_coef * value_loss - c.ent_coef * found.entropy.mean() + found.auxiliary


def test_the_derivatives_are_those_of_the_formula() -> None:
    torch.manual_seed(0)
    ppo = Ppo(TaughtSize(PpoNetwork(SCHEMA, 16, QUANTITY_MAX)), hyper(), seed=0)
    position = np.tile([-1, 0, 1], 100)
    legal = torch.from_numpy(legal_actions(position))
    action = torch.multinomial(legal.float(), 1).squeeze(1)
    numbers = torch.randn(300, 3) * torch.tensor([0.3, 1.0, 1.0]) - torch.tensor([1.1, 0.0, 0.0])
    rows = Rollout((torch.randn(300, 3), legal, torch.rand(300)), action, numbers)
    torch.autograd.backward(by_formula(ppo, rows))
    expected = ppo.gradient.clone()
    ppo.gradient.zero_()
    ppo._backward(rows)
    torch.testing.assert_close(ppo.gradient, expected, rtol=1e-4, atol=1e-7)
    assert expected.norm() > 0.01


def test_a_minibatch_of_one_row_leaves_finite_weights() -> None:
    ppo = Ppo(CategoricalPolicy(3, 8, 3), hyper(batch_size=ROWS * 16 - 1), seed=0)
    ppo.iterate(Bandit(), done=0.0)
    assert ppo.weights.isfinite().all()


def test_parameters_as_one_vector_are_still_the_modules() -> None:
    body = ActorCritic(5, 8, 3)
    before, x = {name: p.detach().clone() for name, p in body.named_parameters()}, torch.randn(4, 5)
    answer = body(x)[0].detach()
    vector, gradient = as_one_vector(list(body.parameters()))
    assert all(torch.equal(p, before[name]) for name, p in body.named_parameters())
    torch.testing.assert_close(body(x)[0].detach(), answer)
    torch.autograd.backward(sum(part.sum() for part in body(x)))
    assert torch.equal(torch.cat([p.grad.flatten() for p in body.parameters()]), gradient)
    with torch.no_grad():
        vector.zero_()
    assert all((p == 0).all() for p in body.parameters())


def test_actor_and_critic_are_two_networks_of_tanh_layers() -> None:
    body = ActorCritic(5, 8, 3, seed=4)
    x = torch.randn(6, 5)

    def layers(half: slice, index: int) -> torch.Tensor:
        first = torch.tanh(x @ body.first.weight[half].T + body.first.bias[half])
        return torch.tanh(first @ body.second[index] + body.second_bias[index])

    outputs, value = body(x)
    torch.testing.assert_close(outputs, layers(slice(0, 8), 0) @ body.actor_head.weight.T + body.actor_head.bias)
    torch.testing.assert_close(value, layers(slice(8, 16), 1) @ body.value_head + body.value_bias)
    torch.testing.assert_close(body.second[0] @ body.second[0].T, 2 * torch.eye(8))


class Endless:
    """Pays 1 a step and is cut short after three: what follows is worth as much, so the value is 1 / (1 - gamma).

    Where episodes end for good instead, the value of a state is what is left of three steps.
    """

    def __init__(self, *, cut_short: bool) -> None:
        self.cut_short, self.age = cut_short, 0

    def _seen(self):
        return np.full((ROWS, 1), self.age / 3.0, dtype=np.float32)

    def observe(self):
        return (self._seen(),)

    def step(self, action):
        self.age += 1
        last, ended = self._seen(), np.full(ROWS, self.age == 3)
        self.age %= 3
        never = np.zeros(ROWS, dtype=bool)
        cut, over = (ended, never) if self.cut_short else (never, ended)
        return Step(np.ones(ROWS), over, cut, (last,))


@pytest.mark.parametrize(("cut_short", "expected"), [(True, 2.0), (False, 1.75)])
def test_an_episode_that_is_cut_short_is_worth_what_would_have_followed(cut_short: bool, expected: float) -> None:
    policy = CategoricalPolicy(1, 16, 2)
    learn(Ppo(policy, hyper(gamma=0.5, n_steps=15), seed=0), Endless(cut_short=cut_short), 60)
    with torch.no_grad():
        assert policy.value((torch.zeros(1, 1),)).item() == pytest.approx(expected, abs=0.06)


def test_the_same_seed_gives_the_same_weights_and_another_other_ones() -> None:
    def trained(seed: int) -> torch.Tensor:
        ppo = Ppo(CategoricalPolicy(3, 8, 3, seed=seed), hyper(), seed=seed)
        learn(ppo, Bandit(), 2)
        return ppo.weights.detach()

    assert torch.equal(trained(1), trained(1))
    assert not torch.equal(trained(1), trained(2))


def test_an_environment_may_use_its_arrays_again() -> None:
    class Reused(Bandit):
        def __init__(self) -> None:
            super().__init__()
            self.array = np.zeros((ROWS, 3), dtype=np.float32)

        def observe(self):
            self.array[:] = super().observe()[0]
            return (self.array,)

    rollouts = [Ppo(CategoricalPolicy(3, 8, 3), hyper(), seed=0).collect(env())[0] for env in (Bandit, Reused)]
    assert torch.equal(rollouts[0].observation[0], rollouts[1].observation[0])


def test_divergence_is_an_error_and_not_a_policy_of_nans() -> None:
    ppo = Ppo(CategoricalPolicy(3, 8, 3), hyper(learning_rate=1e38), seed=0)
    with pytest.raises(ModelError, match="not finite; lower"):
        ppo.iterate(Bandit(), done=0.0)


def test_a_reward_that_is_no_number_is_refused_before_it_is_learned_from() -> None:
    class Absurd(Bandit):
        def step(self, action):
            return super().step(action)._replace(reward=np.full(ROWS, np.inf))

    ppo = Ppo(CategoricalPolicy(3, 8, 3), hyper(), seed=0)
    before = ppo.weights.detach().clone()
    with pytest.raises(DataError, match="not finite"):
        ppo.iterate(Absurd(), done=0.0)
    assert torch.equal(ppo.weights, before)


def test_the_gradient_is_clipped_as_torch_does_it() -> None:
    ppo = Ppo(CategoricalPolicy(3, 8, 3), hyper(max_grad_norm=0.5), seed=0)
    generator = torch.Generator().manual_seed(0)
    for scale in (10.0, 1e-3):
        gradient = scale * torch.randn(ppo.gradient.shape, generator=generator)
        theirs = nn.Parameter(torch.zeros_like(gradient))
        theirs.grad = gradient.clone()
        nn.utils.clip_grad_norm_(theirs, 0.5)
        ppo.gradient.copy_(gradient)
        ppo.clip_gradient()
        torch.testing.assert_close(ppo.gradient, theirs.grad)
