"""Stage B: it learns from rewards, stays where it is held, and never learns from what it cannot trust."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hrm_planted import COST_BPS, HRM, SCHEMA, SMALL, settings
from torch import Tensor

from core.actions import TARGET_OF, Action, legal_actions
from core.errors import DataError, ModelError
from core.observation import Observation
from hrm.agent import HRMAgent
from hrm.finetune import FineTuner
from hrm.rollout import Rollout, Transition, log_policy, log_prob_of

TRAINING = "HRM_TRAINING_PARAMS__"
TINY = SMALL | {
    f"{HRM}ACT__MAX_SEGMENTS": "3",
    f"{TRAINING}PPO__N_STEPS": "8",
    f"{TRAINING}PPO__BATCH_SIZE": "128",
    f"{TRAINING}FINE_TUNING__N_EPOCHS": "2",
    f"{TRAINING}PPO__GAE_LAMBDA": "0.5",
    f"{TRAINING}FINE_TUNING__LEARNING_RATE": "0.005",
    f"{TRAINING}FINE_TUNING__KL_COEF": "0",
    f"{TRAINING}HRM__EMA_DECAY": "0.9",
}
EDGE_BPS, COST = 5.0, 1.0


class Bandit:
    """The account shows what the next bar earns; holding its sign collects it. Episodes last four steps."""

    def __init__(self, rows: int = 64, seed: int = 0) -> None:
        self.random = np.random.default_rng(seed)
        self.rows, self.age = rows, 0
        self.position = np.zeros(rows, dtype=np.int64)
        self._draw()

    def _draw(self) -> None:
        self.edge = self.random.choice([-1.0, 1.0], self.rows)
        self.complexity = self.random.random(self.rows).astype(np.float32)

    def observe(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        bars = np.zeros((self.rows, SCHEMA.window, 2), np.float32)
        account = np.stack([self.position, self.edge, np.zeros(self.rows)], axis=1).astype(np.float32)
        return bars, account, self.position, np.zeros(self.rows, np.float32)

    def step(self, action: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        assert legal_actions(self.position)[np.arange(self.rows), action].all()
        target = TARGET_OF[self.position + 1, action]
        cost = COST * np.abs(target - self.position)
        reward = target * self.edge * EDGE_BPS - cost
        self.age += 1
        ended = np.full(self.rows, self.age % 4 == 0)
        self.position = np.where(ended, 0, target)
        self._draw()
        return reward, cost, ended


def agent(environ: dict[str, str] | None = None, *, seed: int = 0) -> HRMAgent:
    """An agent that halts as soon as the market's complexity lets it: rows of 1, 2 and 3 segments."""
    made = HRMAgent(SCHEMA, settings(TINY | (environ or {})), COST_BPS, seed=seed)
    made.model.q_head.bias.fill_(5.0)
    return made


def earned(made: HRMAgent) -> float:
    """Mean reward of the agent's greedy decisions, bps per step."""
    env, total = Bandit(seed=99), 0.0
    for _ in range(8):
        bars, account, position, _ = env.observe()
        total += env.step(made.decide_batch(bars, account, env.complexity, position).action)[0].mean()
    return total / 8


def probabilities(made: HRMAgent) -> Tensor:
    """The deciding weights' policy [B, 3] after one segment, in a batch of the bandit."""
    bars, account, position, _ = (torch.from_numpy(array) for array in Bandit(seed=5).observe())
    with torch.no_grad():
        outputs, _ = made.model(bars, account, made.model.initial_carry(len(bars)))
    return log_policy(outputs.action_logits, position).exp()


def weights(made: HRMAgent) -> dict[str, Tensor]:
    states = {"model": made.trainer.model, "average": made.model}
    return {f"{kind}.{name}": t.clone() for kind, m in states.items() for name, t in m.state_dict().items()}


def unchanged(made: HRMAgent, before: dict[str, Tensor]) -> bool:
    return all(torch.equal(tensor, before[name]) for name, tensor in weights(made).items())


def transitions(rollout: Rollout, complexity: float = 0.5) -> list[Transition]:
    """The same decisions one by one."""
    bars, account = rollout.bars.numpy(), rollout.account.numpy()
    integers = zip(rollout.position.tolist(), rollout.action.tolist(), rollout.segments.tolist(), strict=True)
    numbers = zip(rollout.log_prob.tolist(), rollout.advantage_bps.tolist(), rollout.return_bps.tolist(), strict=True)
    return [
        Transition(Observation(bars[row], account[row], complexity, position), action, segments, *outcome)
        for row, ((position, action, segments), outcome) in enumerate(zip(integers, numbers, strict=True))
    ]


# --- it learns, and no more than it may -------------------------------------------------------------------------


def test_it_learns_from_rewards_alone_what_the_best_action_is() -> None:
    made = agent({f"{HRM}ACT__MAX_SEGMENTS": "1"})
    made.model.output_network.policy.weight.mul_(0.1)  # undecided: every action is tried
    before = earned(made)
    env = Bandit()
    for _ in range(8):
        made.fine_tuner.update(made.fine_tuner.collect(env))
    after = earned(made)
    assert before < 1.0  # an untrained agent
    assert after > 3.0  # of about 4: an edge of 5, less entering and turning every other time


def moved(kl_coef: str) -> float:
    made, env = agent({f"{TRAINING}FINE_TUNING__KL_COEF": kl_coef}), Bandit()
    stage_a = probabilities(made)
    for _ in range(3):
        made.fine_tuner.update(made.fine_tuner.collect(env))
    return float((probabilities(made) - stage_a).abs().max())


def test_a_heavy_kl_term_holds_the_policy_where_stage_a_left_it() -> None:
    free, held = moved("0"), moved("1000")
    assert free > 0.1
    assert held < 0.1 * free


def test_the_q_head_is_stage_a_s_and_so_is_the_reference() -> None:
    made = agent()
    tuner = made.fine_tuner
    q_head = {name: tensor.clone() for name, tensor in made.trainer.model.q_head.state_dict().items()}
    stage_a = {name: tensor.clone() for name, tensor in tuner.stage_a.state_dict().items()}
    tuner.update(tuner.collect(Bandit()))
    assert all(torch.equal(tensor, q_head[name]) for name, tensor in made.trainer.model.q_head.state_dict().items())
    assert all(torch.equal(tensor, stage_a[name]) for name, tensor in tuner.stage_a.state_dict().items())
    assert not torch.equal(made.model.output_network.policy.weight, stage_a["output_network.policy.weight"])


# --- the decisions are thought anew as they were ------------------------------------------------------------------


def test_before_the_first_step_the_ratio_is_one_for_every_number_of_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    made = agent({f"{TRAINING}PPO__BATCH_SIZE": "100000", f"{TRAINING}FINE_TUNING__N_EPOCHS": "1"})
    rollout = made.fine_tuner.collect(Bandit())
    seen: list[tuple[Tensor, Tensor]] = []
    surrogate = FineTuner._surrogate

    def spy(self: FineTuner, log_probs: Tensor, rows: Rollout) -> Tensor:
        change = log_prob_of(rows.action, log_probs, rows.position) - rows.log_prob
        seen.append((rows.segments, change.detach().abs()))
        return surrogate(self, log_probs, rows)

    monkeypatch.setattr(FineTuner, "_surrogate", spy)
    made.fine_tuner.update(rollout)
    assert len(seen) == 3
    for segment, (segments, change) in enumerate(seen, start=1):
        assert len(segments) > 10
        assert (segments == segment).all()
        assert change.max() < 1e-5


def test_gradient_never_crosses_from_one_segment_to_the_next() -> None:
    made = agent()
    carries: list[Tensor] = []
    made.trainer.model.recurrence.register_forward_pre_hook(lambda _, arguments: carries.append(arguments[0]))
    rollout = made.fine_tuner.collect(Bandit())
    carries.clear()
    made.fine_tuner.update(rollout)
    assert len(carries) > 3
    assert not any(z_H.requires_grad for z_H in carries)


# --- actions ------------------------------------------------------------------------------------------------------


def test_only_legal_actions_are_sampled_and_their_probabilities_add_up_to_one() -> None:
    rollout = agent().fine_tuner.collect(Bandit(rows=256))
    position, action = rollout.position.numpy(), rollout.action.numpy()
    assert legal_actions(position)[np.arange(len(action)), action].all()
    assert {(p, a) for p, a in zip(position, action, strict=True)} == {
        (p, a) for p in (-1, 0, 1) for a in range(5) if legal_actions(p)[a]
    }  # and each of them is
    policy = log_policy(torch.randn(256, 5) * 30, rollout.position[:256]).exp()
    torch.testing.assert_close(policy.sum(1), torch.ones(256))


def test_advantage_and_return_add_up_to_the_critic() -> None:
    tuner = agent().fine_tuner
    rollout = tuner.collect(Bandit())
    env, value = Bandit(), rollout.return_bps - rollout.advantage_bps
    bars, account, _, _ = (torch.from_numpy(array) for array in env.observe())
    first = rollout.segments[:64] == 1
    outputs, _ = tuner.model(bars, account, tuner.model.initial_carry(64))
    torch.testing.assert_close(value[:64][first], outputs.value[first].detach(), rtol=1e-3, atol=1e-4)


# --- learn --------------------------------------------------------------------------------------------------------


def test_learning_from_transitions_is_an_update_with_their_rollout() -> None:
    one, other = agent(), agent()
    rollout = one.fine_tuner.collect(Bandit())
    other.fine_tuner.collect(Bandit())  # the same draws
    one.fine_tuner.update(rollout)
    other.learn(transitions(rollout))
    assert unchanged(other, weights(one))


SPOILT: list[tuple[dict[str, Any], str]] = [
    ({"advantage_bps": float("nan")}, "advantage_bps is not finite"),
    ({"return_bps": float("inf")}, "return_bps is not finite"),
    ({"log_prob": float("nan")}, "log_prob is not finite"),
    ({"action": 7}, "action is illegal"),
    ({"segments": 0}, r"segments must be in 1\.\.3"),
    ({"segments": 9}, r"segments must be in 1\.\.3"),
]


@pytest.mark.parametrize(("spoilt", "message"), SPOILT, ids=[message for _, message in SPOILT])
def test_what_cannot_be_learned_from_is_refused_and_changes_nothing(spoilt: dict[str, Any], message: str) -> None:
    made = agent()
    experiences = transitions(made.fine_tuner.collect(Bandit(rows=4)))
    before = weights(made)
    with pytest.raises(DataError, match=message):
        made.learn([*experiences[1:], replace(experiences[0], **spoilt)])
    assert unchanged(made, before)


def test_an_action_that_is_illegal_in_its_position_is_refused() -> None:
    made = agent()
    experience = transitions(made.fine_tuner.collect(Bandit(rows=1)))[0]
    with pytest.raises(DataError, match="illegal"):
        made.learn([replace(experience, action=int(Action.CLOSE_LONG))])  # the bandit begins flat


def test_a_loss_that_is_not_finite_stops_fine_tuning_before_it_touches_a_weight() -> None:
    made = agent()
    rollout = made.fine_tuner.collect(Bandit())
    before = weights(made)
    with pytest.raises(ModelError, match=r"lower training_params\.fine_tuning\.learning_rate"):
        made.fine_tuner.update(rollout._replace(log_prob=rollout.log_prob - 200.0))  # ratio e^200
    assert unchanged(made, before)
