"""What the figures of `hrm bench rollback` are to be."""

from benchmarks.rollback_statistics import GOALS as STATISTICS
from benchmarks.serving_goals import Goal

DATABASES = ("sqlite", "postgres")
SEEN_P99_MS = {"sqlite": 150, "postgres": 100}

GOALS = (
    *(
        Goal(f"kills_by_database.{database}.{count}", most=0)
        for database in DATABASES
        for count in ("lost", "duplicated")
    ),
    *(
        Goal(f"kills_by_database.{database}.{proof}", least=1)
        for database in DATABASES
        for proof in ("chain_verifies", "consistent")
    ),
    *(Goal(f"seen.{database}.latency_ms.p99", most=limit_ms) for database, limit_ms in SEEN_P99_MS.items()),
    *(Goal(f"blind.{how}.most_s", most=2.0) for how in ("file_moved", "server_silent", "server_gone")),
    *(Goal(f"orders.{none}", most=0) for none in ("stale_accepted", "epochs_fell", "discrepancies")),
    *(Goal(f"orders.{some}", least=1) for some in ("accepted", "refused_stale_epoch")),  # else nothing was tried
    Goal("resume.max_s", most=5.0),
    *(Goal(f"resume.{proof}", least=1) for proof in ("chain_verifies", "each_step_once")),
    Goal("drill.last_challenger_ms", most=1000),
    Goal("drill.lost_decisions", most=0),
    *STATISTICS,
)
