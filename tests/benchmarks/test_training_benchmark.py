"""What `hrm bench training` counts and compares."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.plain import PlainStep
from benchmarks.training import flop_per_row, make_model, make_trainer, random_sampler, run, with_algorithm
from core.settings import Settings, load_settings
from tests.benchmarks.fixed_keys import fixed, measured

TOKENS, ROWS = 5, 16
CPU = torch.device("cpu")


WIDTH = "HRM_HIERARCHICAL_REASONING_MODEL__ARCHITECTURE__"
UNEQUAL = {f"{WIDTH}L_MODULE_DIM": "32", f"{WIDTH}EMBEDDING_DIM": "16"}  # as in the seed's own preset


def settings(algorithm: str, gradient: str = "one_step", widths: dict[str, str] | None = None) -> Settings:
    environ = {"HRM_DEEP_SUPERVISION__MAX_SUPERVISION_SEGMENTS": "6"} | (widths or {})
    chosen = with_algorithm(load_settings(preset="compact", environ=environ), algorithm)
    supervision = chosen.deep_supervision.model_copy(update={"gradient_approximation": gradient})
    return chosen.model_copy(update={"deep_supervision": supervision})


@pytest.mark.parametrize("algorithm", ["published", "single_head"])
@pytest.mark.parametrize("gradient", ["one_step", "last_cycle", "full_bptt"])
def test_the_arithmetic_of_a_step_is_what_torch_counts(algorithm: str, gradient: str) -> None:
    chosen = settings(algorithm, gradient)
    trainer, batch = make_trainer(chosen, TOKENS, CPU, total_steps=10), random_sampler(TOKENS, CPU).batch(ROWS)
    trainer.train_step(batch)
    with FlopCounterMode(display=False) as counter:
        trainer.train_step(batch)
    counted = counter.get_total_flops() / ROWS
    assert flop_per_row(chosen, TOKENS) == pytest.approx(counted, rel=0.04)  # input and output networks come on top


@pytest.mark.parametrize("widths", [{}, UNEQUAL], ids=["equal", "unequal"])
@pytest.mark.parametrize("algorithm", ["published", "single_head"])
def test_the_plain_step_computes_what_the_trainer_does(algorithm: str, widths: dict[str, str]) -> None:
    chosen = settings(algorithm, widths=widths)
    trainer, sampler = make_trainer(chosen, TOKENS, CPU, total_steps=10), random_sampler(TOKENS, CPU)
    plain = PlainStep(make_model(chosen, TOKENS), chosen, CPU)
    batch = sampler.batch(ROWS)
    for group in plain.optimizer.param_groups:  # the schedules differ; what is compared is the arithmetic
        group["lr"] = 0.0
    ours = [trainer.train_step(batch)]
    assert plain.train_step(batch) == pytest.approx(ours[0], rel=1e-5)


def test_the_answer_has_the_keys_and_no_nonsense() -> None:
    answer = run(settings("single_head"), tokens=TOKENS, batch=ROWS, algorithm="single_head", runs=1, total_steps=10)
    assert measured("training", answer) >= set(fixed("training", answer)) - {"peak_memory_gb"}  # of a GPU
    assert answer["rows_per_s"] > 0
    assert answer["eager_rows_per_s"] > 0
    assert 0 < answer["fraction_of_matmul"] < 1.5
    assert 0 <= answer["data_wait_ratio"] < 1
