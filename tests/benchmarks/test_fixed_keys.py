"""The fixed keys of `hrm bench NAME --json`, of parts that were measured and of parts that were not.

Answers that are whole runs in small are looked at where these are run: test_*_benchmark.py, test_tasks.py,
test_book_task.py, test_serving_bench.py.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import fields
from typing import Any

import pytest
import typer

from benchmarks import (
    backtest,
    commands,
    dashboard,
    engine,
    env,
    learning,
    live,
    live_kills,
    live_session,
    rollback,
    serving,
)
from benchmarks.dashboard import Watched
from benchmarks.live_arena import Tally
from benchmarks.machine import described
from flows.migration import MigrationResult
from tests.benchmarks.fixed_keys import FIXED, SCORED, fixed, measured


def test_every_benchmark_has_fixed_keys() -> None:
    told = typer.main.get_group(commands.app).commands
    assert told.keys() == FIXED.keys()


def test_a_migration_tells_its_keys() -> None:
    told = {field.name for field in fields(MigrationResult)}
    assert {"outcome", "stopped_at", "reason", "phases", "hrm", "ppo", "report", "wall_s"} <= told


def test_the_environment_is_compared_with_its_own_windows() -> None:
    ours = {f"{name}_steps_per_s": 1.0 for name in ("index", "window", "scalar")}
    absent = {"absent": "no network"}
    found = ours | {"gym_trading_env": {"steps_per_s": 4.0}, "gym_anytrading": absent}
    found |= {"index_over_gym_trading_env": 9.0, "window_over_gym_trading_env": 5.0}
    told = fixed("env", described(9) | found | env.flat(found))
    assert (told["gym_trading_env_steps_per_s"], told["ratio_vs_gym_trading_env"]) == (4.0, 5.0)
    assert told["gym_anytrading_steps_per_s"] is None


def test_a_backtest_s_rates_are_of_the_longest_run_and_its_difference_the_largest() -> None:
    peers = {"backtesting": {"bars_per_s": 8e4}, "nautilus_trader": {"bars_per_s": 2e4}}
    short = {"ours": {"bars_per_s": 9e6}, "vectorbt": {"bars_per_s": 1e6, "equity_difference": 2e-9}} | peers
    long = {"ours": {"bars_per_s": 8e6}, "vectorbt": {"bars_per_s": 3e6, "equity_difference": 1e-9}} | peers
    found: dict[str, Any] = {"crossover": {"50000": short, "250000": long}, "year": {"seconds": 7.0}}
    assert fixed("backtest", described(3) | backtest.flat(found)) == {
        "bars_per_s": 8e6,
        "vectorbt_bars_per_s": 3e6,
        "backtesting_bars_per_s": 8e4,
        "nautilus_bars_per_s": 2e4,
        "equity_difference_vs_vectorbt": 2e-9,
        "year_with_model_s": 7.0,
    }
    found["crossover"]["250000"] = {"ours": long["ours"], "vectorbt": {"absent": "no network"}}
    assert backtest.flat(found)["vectorbt_bars_per_s"] is None


def test_the_engine_s_figures_are_of_the_format_that_is_chosen() -> None:
    by_batch = {"1": 2.0, "8": 8.0, "16": 16.0, "32": 32.0}
    rates = dict.fromkeys(("segment_ms", "floor_ms", "ratio_to_floor", "rows_per_s"), by_batch)
    exact = {"provider": "CPUExecutionProvider", "full_depth_p99_ms": 9.0, "rss_mb": 150.0, "ready_s": 1.0} | rates
    told = fixed(
        "engine",
        described(1)
        | {"preset": "default"}
        | engine.flat({"fp32": exact, "static_int8": exact | {"rss_mb": 0.0}}, "fp32"),
    )
    assert (told["format"], told["rss_mb"]) == ("fp32", 150.0)
    assert [told[name] for name in rates] == [2.0, 2.0, 2.0, 32.0]


TURN = {
    "decisions": 100,
    "decisions_per_s": 50.0,
    "latency_ms": {"count": 100, "mean": 3.0, "p50": 2.0, "p95": 5.0, "p99": 6.0, "max": 7.0},
    "by_depth_ms": {"1": {"p50": 1.0}, "3": {"p50": 4.0}},
    "mean_depth": 2.0,
    "errors": {"status 503": 1, "connection lost": 1},
    "server_cores": 1.0,
    "server_us": 9.0,
    "client_us": 9.0,
}
OURS = {"decisions_per_s": 50.0, "mean_ms": 3.0, "p50_ms": 2.0, "p99_ms": 6.0, "errors": 4}


def test_the_service_is_told_with_the_peers_that_were_measured() -> None:
    summary = serving._summary([TURN, TURN])
    load = {"clients": 9, "ours": summary, "ours_json": summary, "ray_serve": summary, "ratio_to_best_peer": 1.0}
    slower = summary | {"by_depth_ms": {"1": {"p50": 2.5}}}
    around = described(3) | {"preset": "default", "clients": 9}
    told = fixed("serving", around | serving.flat({"load": load, "mixed": {"ours": summary, "whole_requests": slower}}))
    assert told == {"preset": "default", "clients": 9, **OURS} | {
        "peers": {"ray_serve": OURS},
        "ratio_vs_best_peer": 1.0,
        "shallow_p50_ms": 1.0,
        "shallow_p50_whole_request_ms": 2.5,
    }
    alone = {"ours": summary, "ratio_to_best_peer": None}
    assert serving.flat({"load": alone})["peers"] is None
    silent = {"ours": summary | {"latency_ms": {"count": 0}}, "ratio_to_best_peer": None}
    assert serving.flat({"load": silent})["p99_ms"] is None
    assert measured("serving", around | serving.flat({})) == {"preset", "clients"}


def test_what_a_rollback_s_parts_found_is_told_of_both_databases(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = {"kills": 5, "seconds": 1.0, "acknowledged": 40, "committed": 40, "lost": 0, "duplicated": 0}
    whole |= {"chain_verifies": True, "consistent": True}
    seen = {"workers": 8, "rollbacks": 3, "latency_ms": {"p50": 1.0, "p99": 20.0, "max": 30.0}}
    slower = seen | {"latency_ms": {"p50": 1.0, "p99": 60.0, "max": 70.0}}
    parts: dict[str, Any] = {
        "kills": {"sqlite": whole, "postgres": whole | {"lost": 2, "duplicated": 1}},
        "seen": {"sqlite": slower, "postgres": seen},
        "orders": {"orders": 9, "stale_accepted": 0},
        "drill": {"triggers": [], "last_challenger_ms": 4.0, "lost_decisions": 0.0},
    }
    monkeypatch.setattr(rollback, "PARTS", {name: lambda _, name=name: parts[name] for name in parts})
    answer = rollback.run(kills=5, rollbacks=3, orders=9)
    assert fixed("rollback", answer) == {
        "backend": "sqlite+postgres",
        "workers": 8,
        "propagation_p99_ms": 60.0,
        "last_challenger_ms": 4.0,
        "kills": 10,
        "lost": 2,
        "duplicated": 1,
        "stale_epoch_orders": 0,
    }
    reached = {goal["figure"]: goal["reached"] for goal in answer["goals"]}
    assert not reached["kills_by_database.postgres.lost"]
    assert reached["kills_by_database.sqlite.lost"]
    assert measured("rollback", rollback.run(kills=5, rollbacks=3, orders=9, only="seen")) == {
        "backend",
        "workers",
        "propagation_p99_ms",
    }


def test_orders_alone_say_nothing_of_databases_and_kills() -> None:
    answer = rollback.run(kills=1, rollbacks=1, orders=200, only="orders")
    assert measured("rollback", answer) == {"stale_epoch_orders"}
    assert all(goal["figure"].startswith("orders.") for goal in answer["goals"])
    json.dumps(answer, allow_nan=False)


def test_a_live_desk_s_figures_are_there_without_the_part_that_has_them(monkeypatch: pytest.MonkeyPatch) -> None:
    ms = {"count": 7, "p50_ms": 13.0, "p99_ms": 58.0, "max_ms": 60.0}
    session = {"counts": {"bars": 1500}, "answer_ms": ms, "decision_to_order_ms": ms, "own_ms": ms}
    session |= {"open_orders": {}, "positions": {}}
    session = live_session._figures(session) | {"bars": 1500, "undecided_bars": 0}
    session |= {"parity": {"same": True}, "replay": {"same": True}}
    killed = live_kills._told(Tally(counts=Counter(kills=12), restarts_s=[1.5, 2.5]))
    monkeypatch.setattr(live_session, "run", lambda **_: dict(session))
    monkeypatch.setattr(live_kills, "run", lambda *_, **__: killed)
    told = fixed("live", live.run(kills=12))
    assert (told["kills"], told["restart_s"], told["duplicate_orders"]) == (12, 2.5, 0)
    assert (told["bars"], told["undecided_bars"], told["decision_to_order_p99_ms"]) == (1500, 0, 58.0)
    only = live.run(kills=12, only="session")
    assert measured("live", only) == {"bars", "undecided_bars", "decision_to_order_p99_ms"}
    assert {goal["figure"].partition(".")[0] for goal in only["goals"]} == {*measured("live", only), "session"}


def test_the_stream_of_the_dashboard_tells_its_keys() -> None:
    watched = Watched({"a": 0.0}, [1.0, 2.0, 3.0])
    found = dashboard._figures(watched, 3, {"dropped_slow_clients": 1, "clients": 3}, 5.0)
    assert measured("dashboard", described(1) | found) == set(fixed("dashboard", described(1) | found))


def test_who_does_not_play_a_task_is_none_and_a_rule_learns_nothing() -> None:
    interval = {"ci95_low": -1.0, "ci95_high": 1.0}
    walked = {"hrm": {"return_pct": 0.5, **interval}, "hold": {"return_pct": 0.0, **interval}, "seeds": 1}
    around = described(1) | {"task": "real", "budget_s": 1.0, "device": "cpu"}
    told = fixed("learning", learning.flat(around | walked))
    assert told["ppo"] is None and told["window_ceiling"] is None
    assert told["hrm"].keys() >= SCORED
    assert (told["hrm"]["score"], told["hrm"]["train_s"], told["hold"]["train_s"]) == (None, None, 0.0)
    assert told["hrm"]["return_pct"] == 0.5
