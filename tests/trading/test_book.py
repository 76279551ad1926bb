"""The book's problem as written, the law its instances follow, and what an answer scores."""

from dataclasses import replace

import numpy as np
import pytest

from core.errors import DataError
from trading.book import Book, BookLaw, Optimum, alone, feasible, gains, score, utility


def by_hand() -> Book:
    """Two instruments that are the same bet, one factor; at most one unit net."""
    return Book(
        mu=np.array([[1.0, 0.9]]),
        loadings=np.array([[[1.0], [1.0]]]),
        variance=np.array([[0.2, 0.4]]),
        cost=np.array([[0.1, 0.3]]),
        position=np.array([[0, 1]]),
        gross=np.array([2]),
        net=np.array([1]),
    )


def test_utility_is_the_formula() -> None:
    one = by_hand()
    assert utility(one, np.array([[0, 1]]))[0] == pytest.approx(0.9 - 0.5 * (1.0 + 0.4))
    assert utility(one, np.array([[1, 0]]))[0] == pytest.approx(1.0 - 0.5 * (1.0 + 0.2) - 0.1 - 0.3)
    assert utility(one, np.array([[1, -1]]))[0] == pytest.approx(1.0 - 0.9 - 0.5 * (0.0 + 0.6) - 0.1 - 0.6)


def test_limits_bound_the_units_held_and_their_balance() -> None:
    one = by_hand()
    assert feasible(one, np.array([[1, -1]]))[0]
    assert not feasible(one, np.array([[1, 1]]))[0]
    tight = replace(one, gross=np.array([1]))
    assert not feasible(tight, np.array([[1, -1]]))[0]


def test_the_table_of_single_targets_and_the_factors_are_the_whole_utility() -> None:
    book = BookLaw(6).draw(50, np.random.default_rng(0))
    targets = np.random.default_rng(1).integers(-1, 2, (50, 6))
    picked = np.take_along_axis(alone(book), targets[..., None] + 1, axis=2).sum(axis=(1, 2))
    exposure = np.einsum("bkf,bk->bf", book.loadings, targets)
    np.testing.assert_allclose(picked - 0.5 * (exposure**2).sum(axis=1), utility(book, targets), atol=1e-12)


def test_staying_put_scores_nothing_the_optimum_one_and_breaking_a_limit_nothing() -> None:
    one = by_hand()
    best = np.array([[0, 1]])
    optimum = Optimum(best, utility(one, best), np.zeros((1, 2, 3)))
    flat_book = replace(one, position=np.array([[0, 0]]))
    assert score(flat_book, replace(optimum, targets=np.array([[1, 0]])), np.array([[1, 0]])) == 1.0
    assert score(flat_book, replace(optimum, targets=np.array([[1, 0]])), np.array([[0, 0]])) == 0.0
    assert gains(one, best)[0] == 0.0  # already there
    assert gains(one, np.array([[1, 1]]))[0] == 0.0
    assert gains(one, np.array([[-1, 0]]))[0] < 0.0  # feasible and bad is worse than nothing


@pytest.mark.parametrize(
    "targets", [np.array([[1, 2]]), np.array([[1]]), np.array([[0.0, 0.5]]), np.array([[True, False]])]
)
def test_an_answer_of_another_shape_or_kind_is_refused(targets) -> None:
    with pytest.raises(DataError, match=r"targets must be int64 \(1, 2\)"):
        gains(by_hand(), targets)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"mu": np.array([[1.0, np.nan]])}, "mu holds a value that is not finite"),
        ({"mu": np.array([[1.0, 0.9]], dtype=np.float32)}, "mu is float32"),
        ({"gross": np.array([2.0])}, "gross is float64"),
        ({"cost": np.array([[0.1]])}, "cost is float64"),
        ({"loadings": np.ones((1, 3, 1))}, "loadings is float64"),
        ({"variance": np.array([[0.2, -0.4]])}, "negative"),
        ({"position": np.array([[1, 1]])}, "breaks a limit"),
        ({"position": np.array([[0, 2]])}, "not in"),
        ({"net": np.array([-1])}, "breaks a limit"),
    ],
)
def test_a_book_that_makes_no_sense_says_which_field(change, says) -> None:
    with pytest.raises(DataError, match=says):
        replace(by_hand(), **change)


@pytest.mark.parametrize(
    ("instruments", "gross", "net"), [(1, {1}, {1}), (8, {2, 3, 4, 5, 6}, {1, 2}), (12, set(range(3, 10)), {1, 2, 3})]
)
def test_limits_scale_with_the_size_of_the_book(instruments, gross, net) -> None:
    book = BookLaw(instruments).draw(500, np.random.default_rng(0))
    assert set(book.gross.tolist()) == gross
    assert set(book.net.tolist()) == net


def test_the_law_has_the_moments_its_formulas_promise() -> None:
    law = BookLaw(8)
    book = law.draw(20_000, np.random.default_rng(3))
    assert book.mu.var() == pytest.approx(law.signal**2 * (1 + law.factors * law.loading**2), rel=0.03)
    assert book.loadings.var() == pytest.approx(law.loading**2, rel=0.01)
    assert book.variance.min() >= law.variance_low
    assert book.variance.max() < law.variance_high
    assert book.cost.mean() == pytest.approx(law.cost_high / 2, rel=0.01)
    assert set(np.unique(book.position)) == {-1, 0, 1}


def test_the_same_seed_draws_the_same_books() -> None:
    once, again = (BookLaw(5).draw(10, np.random.default_rng(7)) for _ in range(2))
    np.testing.assert_array_equal(once.mu, again.mu)
    np.testing.assert_array_equal(once[2:4].position, again.position[2:4])
    assert len(once[once.gross > 1]) == (again.gross > 1).sum()
