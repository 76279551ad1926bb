"""The real migration on very little data: `python tiny_migration.py`. Everything runs; nothing is good."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from core.settings import Settings, load_settings

LENIENT = "[{metric: model_mb, max: 100, why: a test}]"
TINY = {
    "HRM_PRESET": "compact",
    "HRM_HIERARCHICAL_REASONING_MODEL__HIERARCHICAL__N_CYCLES": "1",  # exported in a third of the time
    "HRM_HIERARCHICAL_REASONING_MODEL__HIERARCHICAL__T_TIMESTEPS": "1",
    "HRM_SYNTHETIC_MARKET__BARS_PER_SESSION": "16",
    "HRM_SYNTHETIC_MARKET__TRAIN_SESSIONS": "60",
    "HRM_SYNTHETIC_MARKET__VALIDATION_SESSIONS": "20",
    "HRM_SYNTHETIC_MARKET__TEST_SESSIONS": "40",
    "HRM_TRAINING_PARAMS__PPO__TOTAL_TIMESTEPS": "4000",
    "HRM_TRAINING_PARAMS__PPO__N_ENVS": "32",
    "HRM_TRAINING_PARAMS__HRM__ROWS_PER_EPOCH": "2560",
    "HRM_TRAINING_PARAMS__HRM__MAX_EPOCHS": "1",
    "HRM_GATES__PPO_BASELINE_CAPTURE": LENIENT,
    "HRM_GATES__HRM_TRAINING": LENIENT,
    "HRM_GATES__PARALLEL_VALIDATION": "[{metric: decisions, min: 1, why: a test}]",
    "HRM_GATES__GRADUAL_MIGRATION": "[{metric: challenger_decisions, min: 1, why: a test}]",
    "HRM_TRIGGERS__LATENCY_MS": "1000000",  # the guard sleeps: a busy test machine is slow
    "HRM_TRIGGERS__PERFORMANCE_BATCH": "1000000",
    "HRM_PERFORMANCE__INFERENCE_TIMEOUT_MS": "1000",
    "HRM_SERVING__PORT": "9",  # nobody listens on the discard port: a service of its own is started
}


def tiny_settings(state_dir: Path, **changes: str) -> Settings:
    return load_settings(environ=TINY | {"HRM_PATHS__STATE_DIR": str(state_dir)} | changes)


def main() -> int:
    from flows.migration import run_migration

    result = run_migration(tiny_settings(Path(sys.argv[1])))
    sys.stdout.write(json.dumps(result.to_dict()) + "\n")
    return result.exit_code


if __name__ == "__main__":
    sys.exit(main())
