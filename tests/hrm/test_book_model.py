"""The model of a book: a set of instruments, of any size, judged by utility and feasibility."""

from __future__ import annotations

import pytest
import torch
from hrm_planted import HRM, SMALL, settings

from core.settings import Settings
from hrm.batch import Batch
from hrm.book import BookImitation, BookModel, BookOutputs, book_utility
from hrm.trainer import DeepSupervisionTrainer

SET = SMALL | {
    f"{HRM}ARCHITECTURE__POSITIONS": "none",
    f"{HRM}ACT__HALTING": "single_head",
    "HRM_TRAINING_PARAMS__HRM__LEARNING_RATE": "0.003",
}
K, FACTORS = 4, 2
UNBOUNDED = torch.tensor([[9.0, 9.0]])


def of_a_set() -> Settings:
    return settings(SET)


def net(instruments: int = K) -> BookModel:
    return BookModel(of_a_set().hierarchical_reasoning_model, instruments, FACTORS)


def batch(rows: int, seed: int = 0) -> Batch:
    """Instruments that pay alone: the sign of mu is the best target, and limits do not bind."""
    generator = torch.Generator().manual_seed(seed)
    instruments = torch.zeros(rows, K, 4 + FACTORS)
    instruments[:, :, 0] = torch.randn(rows, K, generator=generator)
    worth = instruments[:, :, :1] * torch.tensor([-1.0, 0.0, 1.0])
    rest = instruments[:, :, 0].abs().sum(1, keepdim=True) - instruments[:, :, 0].abs()
    return {
        "instruments": instruments,
        "limits": UNBOUNDED.expand(rows, 2).clone(),
        "max_marginals": worth + rest.unsqueeze(-1),
    }


def segment(model: BookModel, drawn: Batch) -> BookOutputs:
    with torch.no_grad():
        carry = model.initial_carry(len(drawn["limits"]))
        outputs, carry = model(drawn["instruments"], drawn["limits"], carry)
        outputs, _ = model(drawn["instruments"], drawn["limits"], carry)
    assert isinstance(outputs, BookOutputs)
    return outputs


def test_the_order_of_instruments_means_nothing() -> None:
    model, drawn = net(), batch(5)
    order = torch.tensor([2, 0, 3, 1])
    shuffled = drawn | {"instruments": drawn["instruments"][:, order]}
    straight, turned = segment(model, drawn), segment(model, shuffled)
    torch.testing.assert_close(turned.logits, straight.logits[:, order], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(turned.q_halt, straight.q_halt)


def test_the_same_weights_decide_a_book_of_another_size() -> None:
    model = net()
    larger = model.of(7)
    assert larger.parameter_count == model.parameter_count
    assert larger.tokens == model.tokens + 3
    drawn = batch(3)
    torch.testing.assert_close(segment(larger.of(K), drawn).logits, segment(model, drawn).logits)


def test_utility_and_limits_worked_out_by_hand() -> None:
    #        mu   loadings   variance cost position
    rows = [[2.0, 1.0, 0.0, 0.5, 0.1, 1.0], [1.0, 1.0, 2.0, 0.0, 0.3, -1.0]]
    one = {"instruments": torch.tensor([rows]), "limits": torch.tensor([[2.0, 1.0]])}
    long_short = torch.tensor([[1, -1]])
    utility, feasible = book_utility(one, long_short)
    # 2 - 1, less half of variance 0.5, less nothing traded, less half of |(1, 0) - (1, 2)|^2 = 4
    assert utility.item() == pytest.approx(1.0 - 0.25 - 2.0)
    assert feasible.item()
    both_long = torch.tensor([[1, 1]])
    utility, feasible = book_utility(one, both_long)
    assert utility.item() == pytest.approx(3.0 - 0.25 - 0.3 * 2 - 0.5 * (2.0**2 + 2.0**2))
    assert not feasible.item()  # net 2 > 1


def test_an_infeasible_answer_is_never_right_and_impossible_targets_teach_nothing_infinite() -> None:
    drawn = batch(6)
    drawn["max_marginals"][:, 0, 2] = -torch.inf
    drawn["limits"] = torch.zeros(6, 2)
    objective = BookImitation(temperature=0.1, tolerance=1e3)
    outputs = BookOutputs(torch.randn(6, K, 3, requires_grad=True), torch.zeros(6), torch.zeros(6))
    loss = objective(outputs, drawn, None)
    loss.total.backward()
    assert loss.total.isfinite()
    assert outputs.logits.grad is not None and outputs.logits.grad.isfinite().all()
    assert loss.parts["right_ratio"].item() == pytest.approx(1 - loss.parts["infeasible_ratio"].item())


def test_it_learns_what_pays() -> None:
    model = net()
    objective = BookImitation(temperature=0.1, tolerance=0.05)
    run = DeepSupervisionTrainer(model, of_a_set(), objective, total_steps=150)
    for step in range(150):
        run.train_step(batch(64, seed=step))
    drawn = batch(500, seed=10_000)
    exact = (segment(run.ema, drawn).targets == drawn["instruments"][:, :, 0].sign()).float().mean()
    assert exact > 0.9
