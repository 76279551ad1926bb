"""The keys that every answer of a benchmark has, whatever was measured: results are compared over time by them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

EVERYWHERE = "commit machine threads runs"
FIXED = {
    "env": "index_steps_per_s window_steps_per_s scalar_steps_per_s gym_trading_env_steps_per_s "
    "gym_anytrading_steps_per_s ratio_vs_gym_trading_env",
    "backtest": "bars_per_s vectorbt_bars_per_s backtesting_bars_per_s nautilus_bars_per_s "
    "equity_difference_vs_vectorbt year_with_model_s",
    "ppo": "samples_per_s sb3_samples_per_s ratio_vs_sb3 score",
    "learning": "task budget_s device seeds window_ceiling hrm ppo transformer transformer_same_compute greedy hold "
    "score_by_segments act_score act_mean_segments infeasible_ratio hold_ratio",
    "training": "device preset algorithm batch tokens rows_per_s tflops matmul_tflops fraction_of_matmul "
    "peak_memory_gb data_wait_ratio eager_rows_per_s",
    "engine": "preset format provider segment_ms floor_ms ratio_to_floor full_depth_p99_ms rows_per_s rss_mb ready_s",
    "serving": "preset clients decisions_per_s mean_ms p50_ms p99_ms errors peers ratio_vs_best_peer shallow_p50_ms "
    "shallow_p50_whole_request_ms",
    "rollback": "backend workers propagation_p99_ms last_challenger_ms kills lost duplicated stale_epoch_orders",
    "live": "kills duplicate_orders lost_fills ledger_mismatches restart_s decision_to_order_p99_ms bars "
    "undecided_bars",
    "dashboard": "clients fanout_p99_ms dropped_slow_clients",
}
SCORED = {"score", "ci95_low", "ci95_high", "train_s"}


def fixed(name: str, answer: Mapping[str, Any]) -> dict[str, Any]:
    """The fixed keys of a benchmark's answer with their values. Raises KeyError for one that is missing."""
    assert all(answer[key] is not None for key in EVERYWHERE.split())
    return {key: answer[key] for key in FIXED[name].split()}


def measured(name: str, answer: Mapping[str, Any]) -> set[str]:
    """Those of the fixed keys that have a value."""
    return {key for key, value in fixed(name, answer).items() if value is not None}
