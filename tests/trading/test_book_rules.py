"""The heuristics keep the limits, never beat the optimum, and leave something for a model to find."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import DataError
from trading.book import Book, BookLaw, feasible, gains, score, utility
from trading.book_exact import binding_limits, solve
from trading.book_rules import each_alone, greedy, project, relax_and_round

RULES = (greedy, each_alone, relax_and_round)


@pytest.mark.parametrize("instruments", [1, 3, 8, 12])
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_an_answer_is_feasible_and_never_better_than_the_optimum(rule, instruments) -> None:
    book = BookLaw(instruments).draw(60, np.random.default_rng(instruments))
    answer = rule(book)
    assert feasible(book, answer).all()
    assert (utility(book, answer) <= solve(book).utility + 1e-9).all()


def test_one_instrument_needs_no_reasoning() -> None:
    book = BookLaw(1).draw(200, np.random.default_rng(0))
    optimum = solve(book)
    for rule in (greedy, each_alone):
        np.testing.assert_array_equal(rule(book), optimum.targets)


def test_the_default_law_is_hard_for_rules_and_its_limits_bind() -> None:
    book = BookLaw().draw(600, np.random.default_rng(1))
    optimum = solve(book)
    scores = {rule.__name__: score(book, optimum, rule(book)) for rule in RULES}
    assert 0.92 < scores["greedy"] < 0.975
    assert 0.92 < scores["relax_and_round"] < 0.98
    assert scores["each_alone"] < 0.85
    assert (binding_limits(book) > 0).mean() > 0.65


def test_greedy_only_stops_where_no_single_move_pays() -> None:
    book = BookLaw().draw(50, np.random.default_rng(2))
    answer = greedy(book)
    assert (gains(book, answer) >= 0).all()
    for k in range(8):
        for v in (-1, 0, 1):
            moved = answer.copy()
            moved[:, k] = v
            better = feasible(book, moved) & (utility(book, moved) > utility(book, answer) + 1e-9)
            assert not better.any()


def test_greedy_falls_for_what_needs_two_moves_at_once() -> None:
    """A hedged pair is worth more than the best single bet, but its halves are worth less."""
    flat = np.zeros((1, 3), dtype=np.int64)
    loadings = np.array([[[2.0], [2.0], [0.0]]])
    none = np.zeros((1, 3))
    book = Book(np.array([[1.5, -1.5, 0.1]]), loadings, none, none, flat, np.array([2]), np.array([2]))
    np.testing.assert_array_equal(solve(book).targets, [[1, -1, 0]])
    np.testing.assert_array_equal(greedy(book), [[0, 0, 1]])
    np.testing.assert_array_equal(relax_and_round(book), [[1, -1, 0]])


@given(st.integers(1, 9), st.integers(0, 10_000), st.booleans())
def test_projection_repairs_every_answer_and_touches_no_feasible_one(instruments, seed, balanced) -> None:
    rng = np.random.default_rng(seed)
    drawn = BookLaw(instruments).draw(8, rng)
    flat = np.zeros_like(drawn.position)
    zero = np.zeros_like(drawn.net)
    book = Book(drawn.mu, drawn.loadings, drawn.variance, drawn.cost, flat, drawn.gross, zero) if balanced else drawn
    targets = rng.integers(-1, 2, (8, instruments))
    repaired = project(book, targets)
    kept = feasible(book, targets)
    assert feasible(book, repaired).all()
    np.testing.assert_array_equal(repaired[kept], targets[kept])
    assert (utility(book, repaired) >= utility(book, book.position) - 1e-9)[~kept].all()


def test_projection_gives_up_what_costs_least() -> None:
    none, flat = np.zeros((1, 3)), np.zeros((1, 3), dtype=np.int64)
    book = Book(np.array([[3.0, 2.0, 1.0]]), np.zeros((1, 3, 1)), none, none, flat, np.array([3]), np.array([2]))
    np.testing.assert_array_equal(project(book, np.array([[1, 1, 1]])), [[1, 1, 0]])
    with pytest.raises(DataError, match="targets must be"):
        project(book, np.array([[1, 1, 2]]))
