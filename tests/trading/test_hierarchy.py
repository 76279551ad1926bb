"""The hierarchical metrics follow their formulas, and a reason is counted for every decision."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from decision_service import follow_signal

from core.halting import HaltingRule
from core.settings import Settings
from trading import backtest
from trading.costs import flat_costs
from trading.features import schema
from trading.hierarchy import hrm_metrics
from trading.journal import UNKNOWN, Journal
from trading.market import Market


@pytest.fixture
def journal(paper_market: Market, paper_settings: Settings) -> Journal:
    observed = schema(paper_settings.observation)
    return backtest.run(follow_signal, paper_market, observed, cost=flat_costs(1.5), initial_capital=1e6).journal


def reasoned(journal: Journal, depths: list[int], stable: list[int] | None = None) -> Journal:
    """The journal's first decisions with these depths."""
    cut = {name: getattr(journal, name)[: len(depths)] for name in ("at", "action", "position", "units")}
    unknown = [UNKNOWN] * len(depths)
    return replace(
        journal, **cut, segments=np.array(depths, dtype=np.int8), stable=np.array(stable or unknown, dtype=np.int8)
    )


def rule(limit: int) -> HaltingRule:
    return HaltingRule(max_segments=limit, min_segments=1, complexity_threshold=0.5)


@pytest.mark.parametrize(
    ("depths", "limit", "expected"),
    [
        ([1] * 10, 1, (1.0, 1.0, 1.0)),
        ([1] * 10, 3, (1.0, 1.0, 1.0)),
        ([3] * 10, 3, (3.0, 0.0, 0.0)),
        ([1] * 5 + [3] * 5, 3, (2.0, 0.5, 0.5)),
    ],
)
def test_depth_efficiency_and_convergence(
    journal: Journal, depths: list[int], limit: int, expected: tuple[float, ...]
) -> None:
    metrics = hrm_metrics(reasoned(journal, depths), np.linspace(0, 1, len(depths)), rule(limit))
    found = (metrics.avg_reasoning_depth, metrics.computation_efficiency, metrics.hierarchical_convergence)
    assert found == pytest.approx(expected)


def test_stability_is_of_the_decisions_that_had_a_segment_to_compare_with(journal: Journal) -> None:
    complexity = np.zeros(5)
    made = reasoned(journal, [1, 2, 3, 2, 4], [0, 1, 0, 1, 1])
    assert hrm_metrics(made, complexity, rule(8)).hrm_convergence_stability == pytest.approx(3 / 4)
    silent = reasoned(journal, [1, 2, 3, 2, 4])
    assert hrm_metrics(silent, complexity, rule(8)).hrm_convergence_stability is None
    shallow = reasoned(journal, [1, 1, 1, 1, 1], [1, 1, 1, 1, 1])
    assert hrm_metrics(shallow, complexity, rule(8)).hrm_convergence_stability is None


def test_every_decision_has_a_halting_reason(journal: Journal) -> None:
    depths = [1, 1, 2, 4, 4]
    assert hrm_metrics(reasoned(journal, depths), np.zeros(5), rule(4)).halting_reasons == {
        "q_learning_decision": 3,
        "max_segments_reached": 2,
    }
    assert hrm_metrics(reasoned(journal, [1] * 5), np.zeros(5), None).halting_reasons == {"single_pass": 5}


def test_quarters_go_from_the_least_complex_bars_to_the_most(journal: Journal) -> None:
    depths, complexity = [4, 1, 2, 1, 3, 2, 3, 4], np.array([0.9, 0.1, 0.3, 0.2, 0.6, 0.4, 0.5, 0.8])
    quarters = hrm_metrics(reasoned(journal, depths), complexity, rule(8)).depth_by_complexity
    assert [quarter.depth for quarter in quarters] == [1.0, 2.0, 3.0, 4.0]
    assert [quarter.decisions for quarter in quarters] == [2, 2, 2, 2]
    assert quarters[0].complexity_from == 0.1 and quarters[-1].complexity_to == 0.9
    same = hrm_metrics(reasoned(journal, depths), np.full(8, 0.5), rule(8)).depth_by_complexity
    assert [(quarter.decisions, quarter.depth) for quarter in same] == [(8, 2.5)]
