"""Instances for a device: the law's own distribution, solved exactly, by enumeration as by branch and bound."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch

from core.errors import DataError
from flows.book_sampler import BookSampler, _enumeration, book_of, max_marginals
from trading.book import BookLaw, feasible, gains, utility
from trading.book_exact import solve


@pytest.mark.parametrize("instruments", [1, 4, 8])
def test_enumeration_and_branch_and_bound_find_the_same_max_marginals(instruments: int) -> None:
    drawn = BookSampler(BookLaw(instruments=instruments), seed=1).batch(40)
    answers = torch.tensor(list(product((-1.0, 0.0, 1.0), repeat=instruments)))
    enumerated = max_marginals(drawn["instruments"], drawn["limits"], answers)
    torch.testing.assert_close(enumerated, drawn["max_marginals"], atol=1e-4, rtol=1e-5)


def test_the_batch_is_the_book() -> None:
    drawn = BookSampler(BookLaw(), seed=2).batch(50)
    book = book_of(drawn)
    optimum = solve(book)
    best = drawn["max_marginals"].amax((1, 2)).numpy()
    np.testing.assert_allclose(best, optimum.utility, atol=1e-4)
    np.testing.assert_allclose(utility(book, optimum.targets), best, atol=1e-4)
    assert feasible(book, book.position).all()
    assert (gains(book, optimum.targets) >= 0).all()


def test_it_draws_the_law_that_trading_draws() -> None:
    law = BookLaw()
    ours, theirs = book_of(BookSampler(law, seed=3).batch(4000)), law.draw(4000, np.random.default_rng(3))
    for name in ("mu", "loadings", "variance", "cost", "position", "gross", "net"):
        here, there = getattr(ours, name).astype(float), getattr(theirs, name).astype(float)
        scale = there.std()
        assert abs(here.mean() - there.mean()) < 5 * scale / np.sqrt(4000), name
        np.testing.assert_allclose(np.quantile(here, (0.1, 0.9)), np.quantile(there, (0.1, 0.9)), atol=0.12 * scale)


def test_a_book_too_large_to_enumerate_is_refused() -> None:
    with pytest.raises(DataError, match="at most 8"):
        _enumeration(12, torch.device("cpu"))
