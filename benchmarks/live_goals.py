"""What the figures of `hrm bench live` are to be."""

from benchmarks.serving_goals import Goal

GOALS = (
    Goal("kills", least=1),  # else nothing was tried
    *(Goal(none, most=0) for none in ("duplicate_orders", "lost_fills", "ledger_mismatches", "ended_by_themselves")),
    Goal("restart_s", most=5.0),
    Goal("decision_to_order_p99_ms", most=100),
    Goal("bars", least=1),
    Goal("undecided_bars", most=0),
    *(Goal(f"session.{judge}.same", least=1) for judge in ("parity", "replay")),
)
