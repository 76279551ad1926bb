"""`hrm train`: one agent, without the migration around it. The same training, export and measurement."""

from __future__ import annotations

import re
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console

from core.errors import ConfigError, ModelError
from core.files import write_json
from core.manifest import NAME_PATTERN
from core.settings import Settings
from flows.hrm_training import train_challenger
from flows.measure import evaluate_on_test, headline
from flows.ppo_baseline_capture import train_incumbent
from flows.progress import bars
from flows.run_state import Run, inputs_of

TRAINERS = {"hrm": train_challenger, "ppo": train_incumbent}


def train_and_publish(
    settings: Settings, algorithm: str, data: Path | None, *, seed: int = 0, version: str | None = None
) -> dict[str, Any]:
    """Train, publish as `<algorithm>/<version>`, evaluate on held-out sessions.

    Returns `model`, `train_s`, `mean_segments` and the headline: `score` on the synthetic market, `return_pct` on a
    file, with its 95 % interval. Raises, before anything is written, ConfigError if `version` is no name and
    ModelError if it exists.
    """
    run = _open(settings, algorithm, data, seed=seed, version=version)
    started = time.monotonic()
    with bars(Console(stderr=True)):
        trained = TRAINERS[algorithm].fn(str(run.folder))
    train_s = time.monotonic() - started
    held_out = evaluate_on_test(run, trained["model"])
    return {
        "model": trained["model"],
        "checkpoint": trained.get("checkpoint"),
        "train_s": train_s,
        "mean_segments": held_out.mean_segments,
        **headline(held_out),
    }


def require_name(version: str) -> str:
    """The version, fit for a folder's name. Raises ConfigError."""
    if re.fullmatch(NAME_PATTERN, version) is None:
        raise ConfigError(
            f"version {version!r}: use up to 64 of a-z, 0-9, '.', '_' and '-', beginning with a letter or digit",
            code="bad_version",
        )
    return version


def _open(settings: Settings, algorithm: str, data: Path | None, *, seed: int, version: str | None) -> Run:
    """A folder under `trainings/`, whose name becomes the version."""
    version = f"{datetime.now(UTC):%Y%m%d-%H%M%S}" if version is None else require_name(version)
    state_dir = settings.paths.state_dir.resolve()
    if (state_dir / "models" / algorithm / version).exists():
        raise ModelError(f"{algorithm}/{version} is published already; choose another --version", code="version_exists")
    paths = settings.paths.model_copy(update={"state_dir": state_dir})
    inputs = inputs_of(settings.model_copy(update={"paths": paths}), data, seed)
    run = Run(state_dir / "trainings" / algorithm / version, inputs)
    write_json(run.folder / "run.json", inputs.model_dump(mode="json"))
    return run
