"""What is taken away from a decision's inputs to see what it meant, and what stands there instead.

Bars are replaced by the mean of the same feature over the bars of their own timeframe in this window: nothing out of
the ordinary happened then. Account features are replaced by 0, their middle, or none. Which actions are legal stays.

Shapes: W window, F bar features, A account features, G groups of bars.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from core.observation import ObservationSchema

MOST_GROUPS = 32  # of bars: more do not fit on a screen, and each costs as many runs as there are features

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Group:
    """Bars of one timeframe that stand together."""

    name: str  # bars of the timeframe, counted back from the newest, which is -1
    start: int
    stop: int


@dataclass(frozen=True)
class Occlusion:
    """Rows `start` to `stop` of the window in one feature or all, or one account feature, or all."""

    bars: Group | None = None
    feature: int | None = None
    account: int | None = None
    all_bars: bool = False
    all_account: bool = False

    def write(self, bars: Floats, account: Floats, baseline: Floats) -> None:
        """Into `bars` [W, F] and `account` [A], copies of the decision's."""
        if self.all_bars:
            bars[:] = baseline
        if self.bars is not None:
            rows, columns = slice(self.bars.start, self.bars.stop), slice(None)
            if self.feature is not None:
                columns = slice(self.feature, self.feature + 1)
            bars[rows, columns] = baseline[rows, columns]
        if self.all_account:
            account[:] = 0.0
        if self.account is not None:
            account[self.account] = 0.0


def groups(schema: ObservationSchema) -> list[Group]:
    """The window in at most MOST_GROUPS groups as far as its timeframes allow, oldest first; none spans two."""
    size = 1
    while size < schema.window and _count(schema, size) > MOST_GROUPS:
        size += 1
    return [
        Group(f"{name} {_places(at - stop, end - stop - 1)}", at, end)
        for name, start, stop in _blocks(schema)
        for at in range(start, stop, size)
        for end in (min(at + size, stop),)
    ]


def usual(bars: Floats, schema: ObservationSchema) -> Floats:
    """[W, F]: each bar as the mean of its timeframe's bars in this window."""
    filled = np.empty_like(bars)
    for _, start, stop in _blocks(schema):
        filled[start:stop] = bars[start:stop].mean(axis=0, dtype=np.float64)
    return filled


def shuffled(bars: Floats, schema: ObservationSchema, generator: np.random.Generator) -> Floats:
    """[W, F]: the same bars of each timeframe in another order: the check on `usual`."""
    return np.concatenate([generator.permutation(bars[start:stop]) for _, start, stop in _blocks(schema)])


def applied(occlusions: Sequence[Occlusion], bars: Floats, account: Floats, baseline: Floats) -> tuple[Floats, Floats]:
    """[n, W, F] and [n, A] with one thing taken away in each."""
    many_bars, many_accounts = (np.repeat(array[None], len(occlusions), axis=0) for array in (bars, account))
    for occlusion, row, row_account in zip(occlusions, many_bars, many_accounts, strict=True):
        occlusion.write(row, row_account, baseline)
    return many_bars, many_accounts


def _blocks(schema: ObservationSchema) -> Iterator[tuple[str, int, int]]:
    """Timeframe, first row and the row after its last, in the window's order."""
    start = 0
    base = f"{schema.interval_s / 60:g}min"
    for name, size in (*((each.name, each.bars) for each in schema.timeframes), (base, schema.base_window)):
        yield name, start, start + size
        start += size


def _count(schema: ObservationSchema, size: int) -> int:
    return sum(-(-(stop - start) // size) for _, start, stop in _blocks(schema))


def _places(first: int, last: int) -> str:
    return f"{first}" if first == last else f"{first} to {last}"
