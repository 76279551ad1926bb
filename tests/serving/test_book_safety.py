"""What is answered for a book where the model's answer cannot be: feasible, deterministic, and never a new risk."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from serving.book import BookObservation, feasible, safe_targets, utility
from trading import book as problem

FACTORS = 2


@st.composite
def books(draw: st.DrawFn) -> BookObservation:
    size = draw(st.integers(1, 12))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    own = rng.normal(size=(size, 1 + FACTORS))
    magnitudes = np.abs(rng.normal(size=(size, 2)))
    position = rng.integers(-1, 1, (size, 1), endpoint=True)
    limits = [draw(st.integers(0, size)), draw(st.integers(0, size))]
    instruments = np.concatenate([own, magnitudes, position], axis=1)
    return BookObservation(instruments.astype(np.float32), np.array(limits, np.float32))


def row(positions: list[int], costs: list[float], gross: int, net: int) -> BookObservation:
    instruments = np.zeros((len(positions), 4 + FACTORS), np.float32)
    instruments[:, -1], instruments[:, -2] = positions, costs
    return BookObservation(instruments, np.array([gross, net], np.float32))


@given(book=books())
def test_the_safe_answer_keeps_the_limits_and_only_holds_or_closes(book: BookObservation) -> None:
    targets, why = safe_targets(book)
    assert feasible(targets, book.limits)
    assert ((targets == book.position) | (targets == 0)).all()
    assert why == ("held" if feasible(book.position, book.limits) else "reduced")
    if why == "held":
        assert (targets == book.position).all()


@given(book=books())
def test_no_position_is_closed_that_need_not_be(book: BookObservation) -> None:
    targets, _ = safe_targets(book)
    gross, net = book.limits
    held = book.position
    fewest = max(np.abs(held).sum() - gross, abs(held.sum()) - net, 0)
    closed = (targets != held).sum()
    assert fewest <= closed <= fewest + 1  # one more where closing the last of a side would leave it unbalanced


def test_the_larger_side_is_reduced_first_and_of_it_the_cheapest_to_close() -> None:
    targets, why = safe_targets(row([1, 1, 1, -1], [0.3, 0.1, 0.2, 0.0], gross=4, net=1))
    assert (targets.tolist(), why) == ([1, 0, 1, -1], "reduced")
    targets, _ = safe_targets(row([1, 1, -1, -1], [0.3, 0.1, 0.2, 0.2], gross=2, net=0))
    assert targets.tolist() == [1, 0, 0, -1]  # long first where both are alike, and the first of equals
    targets, _ = safe_targets(row([-1, -1, -1], [0.1, 0.2, 0.3], gross=0, net=0))
    assert targets.tolist() == [0, 0, 0]


@given(book=books(), seed=st.integers(0, 1000))
def test_utility_is_that_of_the_problem(book: BookObservation, seed: int) -> None:
    targets = np.random.default_rng(seed).integers(-1, 1, len(book.instruments), endpoint=True)
    numbers = book.instruments.astype(np.float64)[None]
    size = len(targets)
    stated = problem.Book(
        mu=numbers[:, :, 0],
        loadings=np.ascontiguousarray(numbers[:, :, 1:-3]),
        variance=numbers[:, :, -3],
        cost=numbers[:, :, -2],
        position=book.position[None],
        gross=np.array([size]),
        net=np.array([size]),
    )
    np.testing.assert_allclose(utility(book, targets), problem.utility(stated, targets[None])[0], rtol=1e-9, atol=1e-9)
