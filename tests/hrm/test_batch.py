"""Random rows of a market, gathered where the model trains."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import torch

from hrm.batch import MarketSampler, MarketTable
from hrm.distributed import World

WINDOW, BARS = 4, 12


def table() -> MarketTable:
    """Every number says where it comes from: bar, position and target."""
    bar, p, q = np.arange(BARS), np.arange(3), np.arange(3)
    return MarketTable(
        bar_features=(bar[:, None] + np.array([0.0, 0.5])).astype(np.float32),
        decision_bars=np.array([5, 7, 11]),
        account=(100 * bar[:, None] + p)[:, :, None].astype(np.float32),
        complexity=bar.astype(np.float32),
        q_values=(100 * bar[:, None, None] + 10 * p[:, None] + q).astype(np.float32),
        log_quantity=-bar.astype(np.float32),
    )


def test_a_row_is_one_bar_and_one_position_throughout() -> None:
    batch = MarketSampler(table(), WINDOW, seed=0).batch(300)
    at = batch["complexity"]
    assert set(at.tolist()) == {5.0, 7.0, 11.0}
    assert set(batch["position"].tolist()) == {-1, 0, 1}
    position = batch["position"] + 1
    torch.testing.assert_close(batch["bars"][:, :, 0], at[:, None] + torch.arange(1.0 - WINDOW, 1.0))  # oldest first
    torch.testing.assert_close(batch["bars"][:, :, 1], batch["bars"][:, :, 0] + 0.5)
    torch.testing.assert_close(batch["account"][:, 0], 100 * at + position)
    torch.testing.assert_close(batch["q_values"], (100 * at + 10 * position)[:, None] + torch.arange(3.0))
    torch.testing.assert_close(batch["log_quantity"], -at)


def test_a_seed_is_a_sequence_of_batches() -> None:
    first, again, other = (MarketSampler(table(), WINDOW, seed=seed).batches(8) for seed in (1, 1, 2))
    drawn = [[batch["q_values"] for batch in itertools.islice(each, 5)] for each in (first, again, other)]
    assert torch.equal(torch.stack(drawn[0]), torch.stack(drawn[1]))
    assert not torch.equal(torch.stack(drawn[0]), torch.stack(drawn[2]))


def test_processes_gather_their_shares_of_the_same_global_batch() -> None:
    whole = MarketSampler(table(), WINDOW, seed=3)
    shares = [MarketSampler(table(), WINDOW, seed=3, world=World(rank, 2)) for rank in (0, 1)]
    for _ in range(3):
        batch, parts = whole.batch(8), [share.batch(8) for share in shares]
        for name, rows in batch.items():
            assert torch.equal(torch.cat([part[name] for part in parts]), rows), name


def test_blocks_of_coarser_timeframes_come_first_and_end_with_what_was_known() -> None:
    slow = (np.arange(6)[:, None] + np.array([100.0, 100.5])).astype(np.float32)
    slower = (np.arange(3)[:, None] + np.array([200.0, 200.5])).astype(np.float32)
    closed = np.arange(BARS) // 2
    plain, coarse = table(), replace(table(), coarse=((slower, closed // 2, 1), (slow, closed, 2)))
    batch = MarketSampler(coarse, WINDOW + 3, seed=0).batch(300)
    at = batch["complexity"]
    torch.testing.assert_close(batch["bars"][:, 0, 0], 200 + at // 2 // 2 - 1)
    torch.testing.assert_close(batch["bars"][:, 1:3, 0], 100 + (at // 2)[:, None] + torch.tensor([-2.0, -1.0]))
    base = MarketSampler(plain, WINDOW, seed=0).batch(300)
    assert torch.equal(batch["bars"][:, 3:], base["bars"])
    assert all(torch.equal(batch[name], base[name]) for name in base if name != "bars")
