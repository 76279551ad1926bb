"""Instances of a book with their exact optimum, drawn and solved on the device that trains on them.

The law is trading.book.BookLaw's, the optimum by enumeration: all 3^K answers of a batch as a few matrix products,
which a GPU does in less time than the model learns from them. K = 8 is 6,561 answers; trading.book_exact solves more.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import torch
from torch import Tensor

from hrm.batch import Batch
from trading.book import BookLaw

LARGEST = 8  # instruments; 3^9 answers a row are 20,000 numbers


class BookSampler:
    """Endless batches of `instruments` [B, K, 4 + F], `limits` [B, 2] and `max_marginals` [B, K, 3]."""

    def __init__(self, law: BookLaw, *, seed: int, device: torch.device | str = "cpu") -> None:
        assert law.instruments <= LARGEST, f"enumeration ends at {LARGEST} instruments"  # noqa: S101
        self.law, self.device = law, torch.device(device)
        self.generator = torch.Generator(self.device).manual_seed(seed)
        answers = torch.tensor(list(product((-1, 0, 1), repeat=law.instruments)), device=self.device)
        self._solve = torch.compile(max_marginals) if self.device.type == "cuda" else max_marginals
        self._answers = answers.float()

    def batch(self, rows: int) -> Batch:
        instruments, limits = draw(self.law, rows, self.generator)
        return {
            "instruments": instruments,
            "limits": limits,
            "max_marginals": self._solve(instruments, limits, self._answers),
        }

    def batches(self, rows: int) -> Iterator[Batch]:
        while True:
            yield self.batch(rows)


def draw(law: BookLaw, rows: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """`rows` instances of the law (its docstring has the formulas): instruments [B, K, 4 + F] and limits [B, 2]."""
    device, shape = generator.device, (rows, law.instruments)

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=generator, device=device)

    def integer(low: int, high: int, size: tuple[int, ...]) -> Tensor:
        return torch.randint(low, high + 1, size, generator=generator, device=device)

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(shape, generator=generator, device=device)

    loadings = law.loading * normal(*shape, law.factors)
    mu = law.signal * (normal(*shape) + (loadings * normal(rows, 1, law.factors)).sum(-1))
    low, high = law.gross_range
    gross, net = integer(low, high, (rows,)), integer(1, low, (rows,))
    position = _within_limits(integer(-1, 1, shape), gross, net)
    own = (uniform(law.variance_low, law.variance_high), uniform(0.0, law.cost_high), position.float())
    instruments = torch.cat((mu.unsqueeze(-1), loadings, torch.stack(own, -1)), -1)
    return instruments, torch.stack((gross, net), -1).float()


def max_marginals(instruments: Tensor, limits: Tensor, answers: Tensor) -> Tensor:
    """The best feasible utility of each instrument's three targets, [B, K, 3]; `answers` are all 3^K, in order."""
    mu, loadings, rest = instruments.tensor_split((1, -3), -1)
    variance, cost, position = rest.unbind(-1)
    rows, k = mu.shape[:2]
    targets = torch.tensor((-1.0, 0.0, 1.0), device=mu.device)
    alone = (
        mu * targets
        - 0.5 * variance.unsqueeze(-1) * targets.square()
        - cost.unsqueeze(-1) * (targets - position.unsqueeze(-1)).abs()
    )
    chosen = torch.nn.functional.one_hot(answers.long() + 1, 3).float().flatten(1)  # [3^K, 3K]
    exposure = torch.einsum("ak,bkf->fba", answers, loadings)
    utility = alone.flatten(1) @ chosen.T - 0.5 * exposure.square().sum(0)
    used, held = answers.abs().sum(1), answers.sum(1).abs()
    feasible = (used <= limits[:, :1]) & (held <= limits[:, 1:])
    utility = utility.masked_fill(~feasible, -torch.inf)
    best = [utility.view(rows, 3**j, 3, -1).amax((1, 3)) for j in range(k)]
    return torch.stack(best, 1)


def _within_limits(wanted: Tensor, gross: Tensor, net: Tensor) -> Tensor:
    """Wanted positions one instrument after the other, each only if the limits still hold."""
    kept = torch.zeros_like(wanted)
    for k in range(wanted.shape[1]):
        tried = kept.clone()
        tried[:, k] = wanted[:, k]
        holds = (tried.abs().sum(1) <= gross) & (tried.sum(1).abs() <= net)
        kept = torch.where(holds.unsqueeze(1), tried, kept)
    return kept
