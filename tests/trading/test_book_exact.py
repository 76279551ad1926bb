"""The exact solver is exact: against every answer counted one by one, ties and impossible limits included."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trading.book import Book, BookLaw, feasible, utility
from trading.book_exact import binding_limits, solve


def plain_utility(book: Book, b: int, p: tuple[int, ...]) -> float:
    """The formula once more, in plain Python; -inf where a limit is broken."""
    if sum(map(abs, p)) > book.gross[b] or abs(sum(p)) > book.net[b]:
        return -np.inf
    factors = range(book.loadings.shape[2])
    common = sum(sum(book.loadings[b, k, f] * v for k, v in enumerate(p)) ** 2 for f in factors)
    each = sum(
        book.mu[b, k] * v - 0.5 * book.variance[b, k] * v * v - book.cost[b, k] * abs(v - book.position[b, k])
        for k, v in enumerate(p)
    )
    return float(each - 0.5 * common)


def counted(book: Book, b: int) -> np.ndarray:
    """Max-marginals [K, 3] of one instance from all 3^K answers."""
    best = np.full((book.instruments, 3), -np.inf)
    for p in product((-1, 0, 1), repeat=book.instruments):
        value = plain_utility(book, b, p)
        for k, v in enumerate(p):
            best[k, v + 1] = max(best[k, v + 1], value)
    return best


@st.composite
def books(draw: st.DrawFn) -> Book:
    """One small instance of quarters, so that ties are common; limits from nothing to everything, held from flat."""
    k, f = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    quarters = st.integers(-8, 8).map(lambda n: n / 4)

    def row(size: int, low: float) -> np.ndarray:
        values = draw(st.lists(quarters.map(lambda x: abs(x) if low == 0 else x), min_size=size, max_size=size))
        return np.array(values).reshape(1, -1)

    gross, net = draw(st.integers(0, k)), draw(st.integers(0, k))
    held = np.zeros((1, k), dtype=np.int64)
    if gross and net:
        held[0, draw(st.integers(0, k - 1))] = draw(st.sampled_from([-1, 1]))
    return Book(
        row(k, -1), row(k * f, -1).reshape(1, k, f), row(k, 0), row(k, 0), held, np.array([gross]), np.array([net])
    )


@given(books())
def test_optimum_and_max_marginals_are_those_of_counting_every_answer(book) -> None:
    found, expected = solve(book), counted(book, 0)
    np.testing.assert_allclose(found.max_marginals[0], expected, atol=1e-9)
    assert found.utility[0] == pytest.approx(expected.max(), abs=1e-9)
    assert feasible(book, found.targets)[0]
    assert utility(book, found.targets)[0] == found.utility[0]


@pytest.mark.parametrize(("instruments", "rows"), [(8, 200), (12, 2)])
def test_larger_books_agree_with_enumeration(instruments, rows) -> None:
    book = BookLaw(instruments).draw(rows, np.random.default_rng(4))
    answers = np.array(list(product((-1, 0, 1), repeat=instruments)))
    found = solve(book)
    for b in range(rows):
        exposure = answers @ book.loadings[b]
        value = answers @ book.mu[b] - 0.5 * (answers**2 @ book.variance[b] + (exposure**2).sum(axis=1))
        value -= np.abs(answers - book.position[b]) @ book.cost[b]
        value[(np.abs(answers).sum(axis=1) > book.gross[b]) | (np.abs(answers.sum(axis=1)) > book.net[b])] = -np.inf
        np.testing.assert_array_equal(found.targets[b], answers[value.argmax()])
        for k, v in product(range(instruments), (-1, 0, 1)):
            expected = value[answers[:, k] == v].max()
            assert found.max_marginals[b, k, v + 1] == pytest.approx(expected, abs=1e-9)


def test_the_argmax_of_the_max_marginals_is_the_optimum() -> None:
    found = solve(BookLaw(16).draw(20, np.random.default_rng(5)))
    np.testing.assert_array_equal(found.max_marginals.argmax(axis=2) - 1, found.targets)
    np.testing.assert_allclose(
        found.max_marginals.max(axis=2), np.repeat(found.utility[:, None], 16, axis=1), atol=1e-9
    )


def test_one_instrument_is_the_single_decision_with_its_cost() -> None:
    book = BookLaw(1).draw(200, np.random.default_rng(6))
    risk = book.variance[:, 0] + (book.loadings[:, 0] ** 2).sum(axis=1)
    worth = [
        book.mu[:, 0] * v - 0.5 * risk * v * v - book.cost[:, 0] * np.abs(v - book.position[:, 0]) for v in (-1, 0, 1)
    ]
    np.testing.assert_array_equal(solve(book).targets[:, 0], np.argmax(worth, axis=0) - 1)
    assert (binding_limits(book) == 0).all()


def test_binding_limits_are_those_the_optimum_without_limits_would_break() -> None:
    eager = np.full((3, 4), 5.0)  # wants +1 everywhere: gross 4, net 4
    nothing, flat = np.zeros((3, 4)), np.zeros((3, 4), dtype=np.int64)
    gross, net = np.array([4, 4, 2]), np.array([4, 1, 1])
    book = Book(eager, np.zeros((3, 4, 1)), nothing, nothing, flat, gross, net)
    np.testing.assert_array_equal(binding_limits(book), [0, 1, 2])
