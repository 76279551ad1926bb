"""A book of instruments decided jointly under limits: where reasoning in depth pays (trading/book.py has the problem).

Score: share of the attainable gain over staying put on fresh instances, an infeasible answer counting 0; 1 is the
exact optimum. Contenders: the HRM, plain transformers of the same size and of the same compute per segment, all
trained on the same law with the same objective for the same time, and what desks do without a model.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor

from benchmarks.intervals import named, over_seeds
from core.settings import Settings
from flows import book_training
from flows.book_publishing import EXACT, score_of
from flows.book_sampler import BookSampler, arrays_of, book_of
from flows.book_training import SEGMENTS, TEMPERATURE, TEST_SEED, book_settings, staying_put, think
from flows.training_clock import over_trainings
from hrm import control
from hrm.act import AdaptiveComputationTime
from hrm.batch import Batch
from hrm.book import BookModel
from hrm.distributed import training_device
from trading import book_rules
from trading.book import Book, BookLaw, feasible, gains
from trading.book_exact import binding_limits, solve
from trading.bootstrap import Interval

TEST_ROWS = {"cuda": 32_768, "cpu": 2048}
RULE_ROWS = 2048  # of the test instances, for the heuristics: the relaxation takes 2 ms each
OTHER_SIZES = {12: 1024, 16: 512}  # instruments: instances; the model has seen books of 8 only
RULES = {
    "greedy": book_rules.greedy,
    "relax_and_round": book_rules.relax_and_round,
    "each_alone": book_rules.each_alone,
}
CONTROLS = {"transformer": control.same_size, "transformer_same_compute": control.same_compute}
CONTENDERS = ("hrm", *CONTROLS)

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Answers:
    """What a model earns on the test instances; arrays per instance."""

    by_segments: Floats  # [S, B] gain after 1, 2, ... segments
    infeasible: Floats  # [S] share of answers that break a limit
    exact: Floats  # [S] share that are optimal
    act: Floats  # [B] gain where the model halts by itself
    segments: Floats  # [B] it then took
    targets: NDArray[np.int64]  # [B, K] at full depth


@dataclass(frozen=True, eq=False)
class Test:
    """Instances nobody trained on, with their exact optimum."""

    batch: Batch
    book: Book
    attainable: Floats  # [B] gain of the optimum over staying put
    entropy: Floats  # [B] of the soft labels, summed over instruments: how close the calls are

    @classmethod
    def draw(cls, law: BookLaw, rows: int, device: torch.device) -> Test:
        batch = BookSampler(law, seed=TEST_SEED, device=device).batch(rows)
        marginals = batch["max_marginals"]
        attainable = marginals.amax((1, 2)) - staying_put(batch)
        labels = torch.softmax(marginals / (10 * TEMPERATURE), -1)
        entropy = -torch.xlogy(labels, labels).sum((1, 2))
        return cls(batch, book_of(batch), _numpy(attainable), _numpy(entropy))


def run(settings: Settings, names: tuple[str, ...], *, budget_s: float, seeds: int) -> dict[str, Any]:
    """The answer of `hrm bench learning --task book` for the models `names`; the heuristics are always there."""
    device, law, settings = training_device(), BookLaw(), book_settings(settings)
    test = Test.draw(law, TEST_ROWS[device.type], device)
    answer: dict[str, Any] = {"instruments": law.instruments, "test_instances": len(test.attainable)}
    for name in names:
        trained = [train(name, law, settings, budget_s=budget_s, seed=seed) for seed in range(seeds)]
        found = [answers(model, test) for model, _ in trained]
        answer[name] = _summary(found, test) | over_trainings([facts for _, facts in trained])
        if name == "hrm":
            answer |= _of_hrm(found, test)
            answer["other_sizes"] = {str(k): _other_size(trained[0][0], k, rows) for k, rows in OTHER_SIZES.items()}
    rows = slice(0, RULE_ROWS)
    for name, rule in RULES.items():
        few = test.book[rows]
        answer[name] = named("score", score_of(gains(few, rule(few)), test.attainable[rows]))
    answer["hold"] = named("score", Interval(0.0, 0.0, 0.0))
    return answer


def train(
    name: str, law: BookLaw, settings: Settings, *, budget_s: float, seed: int
) -> tuple[BookModel, dict[str, Any]]:
    """A model trained for `budget_s` seconds, and what it took. `name` is one of CONTENDERS."""
    settings = CONTROLS[name](settings) if name in CONTROLS else settings
    return book_training.train(law, settings, budget_s=budget_s, seed=seed, name=f"{name}, seed {seed}")


def answers(model: BookModel, test: Test) -> Answers:
    """A model at every depth it may think to, and at the one it chooses."""
    act = AdaptiveComputationTime(model.settings)
    thoughts = think(model, test.batch, act.rule.max_segments)
    gain = torch.stack([thought.gain for thought in thoughts])
    simple = torch.zeros_like(gain[0])  # no market complexity here: the minimum is the settings'
    halted = torch.stack([act.halted(i, t.q_halt, t.q_halt, simple) for i, t in enumerate(thoughts, start=1)])
    first = halted.int().argmax(0)  # the last segment always halts
    best = torch.from_numpy(test.attainable).to(gain.device)
    return Answers(
        by_segments=_numpy(gain),
        infeasible=_numpy(torch.stack([1 - t.feasible.double().mean() for t in thoughts])),
        exact=_numpy((gain >= best - EXACT).double().mean(1)),
        act=_numpy(gain.gather(0, first.unsqueeze(0)).squeeze(0)),
        segments=_numpy(first + 1),
        targets=thoughts[-1].targets.cpu().numpy(),
    )


def _summary(found: list[Answers], test: Test) -> dict[str, Any]:
    """At full depth: as answered, and after the repair of infeasible answers."""
    scores = [score_of(one.by_segments[-1], test.attainable) for one in found]
    repaired = [book_rules.project(test.book, one.targets) for one in found]
    projected = [score_of(gains(test.book, targets), test.attainable) for targets in repaired]
    return named("score", over_seeds(scores)) | {
        "scores": [score.value for score in scores],
        "projected_score": over_seeds(projected).value,
        "exact_ratio": fmean(float(one.exact[-1]) for one in found),
        "infeasible_ratio": fmean(float(one.infeasible[-1]) for one in found),
        "infeasible_ratio_projected": 1 - fmean(float(feasible(test.book, targets).mean()) for targets in repaired),
    }


def _of_hrm(found: list[Answers], test: Test) -> dict[str, Any]:
    """Depth: forced, and as the model chooses it; by quarter of difficulty."""
    curves = np.array([[score_of(gain, test.attainable).value for gain in one.by_segments] for one in found])
    quarter = np.searchsorted(np.quantile(test.entropy, (0.25, 0.5, 0.75)), test.entropy)
    segments = np.mean([one.segments for one in found], axis=0)
    act = over_seeds([score_of(one.act, test.attainable) for one in found])
    return {
        "score_by_segments": curves.mean(0).tolist(),
        "infeasible_by_segments": np.mean([one.infeasible for one in found], axis=0).tolist(),
        "act_score": act.value,
        "act_ci95": [act.ci95_low, act.ci95_high],
        "act_mean_segments": float(segments.mean()),
        "act_segments_by_difficulty": [float(segments[quarter == q].mean()) for q in range(4)],
        "act_segments_by_binding_limits": _by_binding_limits(segments, test),
        "act_segments_difficulty_correlation": _rank_correlation(segments, test.entropy),
        "infeasible_ratio": fmean(float(one.infeasible[-1]) for one in found),
    }


def _other_size(model: BookModel, instruments: int, rows: int) -> dict[str, float]:
    """The same weights on larger books, which it has never seen, against the exact solver."""
    law = BookLaw(instruments=instruments)
    book = law.draw(rows, np.random.default_rng(TEST_SEED))
    started = time.perf_counter()
    optimum = solve(book)
    solve_ms = 1e3 * (time.perf_counter() - started) / rows
    batch = {name: torch.from_numpy(array).to(training_device()) for name, array in arrays_of(book).items()}
    targets = think(model.of(instruments), batch, SEGMENTS)[-1].targets.cpu().numpy()
    best = gains(book, optimum.targets)
    return {
        "score": score_of(gains(book, targets), best).value,
        "projected_score": score_of(gains(book, book_rules.project(book, targets)), best).value,
        "greedy_score": score_of(gains(book, book_rules.greedy(book)), best).value,
        "exact_solver_ms": solve_ms,
    }


def _by_binding_limits(segments: Floats, test: Test) -> list[float | None]:
    """Mean segments where 0, 1 and 2 limits bind; None where there is no such instance."""
    binding = binding_limits(test.book[:RULE_ROWS])
    of = [segments[:RULE_ROWS][binding == limits] for limits in range(3)]
    return [float(some.mean()) if len(some) else None for some in of]


def _rank_correlation(segments: Floats, difficulty: Floats) -> float | None:
    """Spearman's; None where every instance takes as long."""
    return None if np.ptp(segments) == 0 else float(stats.spearmanr(segments, difficulty).statistic)


def _numpy(tensor: Tensor) -> Floats:
    return tensor.double().cpu().numpy()
