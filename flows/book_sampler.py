"""Instances of a book with their exact optimum, drawn and solved on the device that trains on them.

The law is trading.book.BookLaw's. On a GPU the optimum is found by enumeration, all 3^K answers of a batch as a few
matrix products, in less time than the model learns from them; on a CPU by trading.book_exact, of any size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from core.errors import DataError
from hrm.batch import Batch
from trading.book import Book, BookLaw
from trading.book_exact import solve

LARGEST = 8  # instruments on a GPU; 3^9 answers a row are 20,000 numbers


class BookSampler:
    """Endless batches of `instruments` [B, K, 4 + F], `limits` [B, 2] and `max_marginals` [B, K, 3]."""

    def __init__(self, law: BookLaw, *, seed: int, device: torch.device | str = "cpu") -> None:
        """Raises DataError for a book too large to enumerate on a GPU."""
        self.law, self.device = law, torch.device(device)
        self.generator = torch.Generator(self.device).manual_seed(seed)
        self._solve = _exact if self.device.type == "cpu" else _enumeration(law.instruments, self.device)

    def batch(self, rows: int) -> Batch:
        instruments, limits = draw(self.law, rows, self.generator)
        drawn = {"instruments": instruments, "limits": limits}
        return drawn | {"max_marginals": self._solve(drawn)}

    def batches(self, rows: int) -> Iterator[Batch]:
        while True:
            yield self.batch(rows)


def book_of(batch: Batch) -> Book:
    """A batch of instances as the exact solver and the heuristics take them."""
    instruments, limits = (batch[name].double().cpu().numpy() for name in ("instruments", "limits"))
    whole = limits.round().astype(np.int64)
    return Book(
        mu=instruments[:, :, 0],
        loadings=np.ascontiguousarray(instruments[:, :, 1:-3]),
        variance=instruments[:, :, -3],
        cost=instruments[:, :, -2],
        position=instruments[:, :, -1].round().astype(np.int64),
        gross=whole[:, 0],
        net=whole[:, 1],
    )


def arrays_of(book: Book) -> dict[str, NDArray[np.float32]]:
    """The other way: a model's inputs, `instruments` [B, K, 4 + F] and `limits` [B, 2]."""
    own = [column[..., None] for column in (book.mu, book.variance, book.cost, book.position)]
    instruments = np.concatenate([own[0], book.loadings, *own[1:]], axis=2)
    return {"instruments": instruments.astype(np.float32), "limits": book.limits.astype(np.float32)}


def _exact(drawn: Batch) -> Tensor:
    return torch.from_numpy(solve(book_of(drawn)).max_marginals).float()


def _enumeration(instruments: int, device: torch.device) -> Callable[[Batch], Tensor]:
    if instruments > LARGEST:
        raise DataError(f"a book of {instruments} instruments is too large to enumerate on a GPU; at most {LARGEST}")
    answers = torch.tensor(list(product((-1, 0, 1), repeat=instruments)), device=device).float()
    compiled = torch.compile(max_marginals)
    return lambda drawn: compiled(drawn["instruments"], drawn["limits"], answers)


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
