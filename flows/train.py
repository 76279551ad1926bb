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
from flows.fit import PHASE as HRM_PHASE
from flows.hrm_training import train_challenger
from flows.measure import evaluate_on_test, headline
from flows.ppo_baseline_capture import PHASE as PPO_PHASE
from flows.ppo_baseline_capture import train_incumbent
from flows.progress import bars, report
from flows.run_state import Inputs, Run, inputs_of, load_run, only_one

TRAINERS = {"hrm": (HRM_PHASE, train_challenger), "ppo": (PPO_PHASE, train_incumbent)}


def train_and_publish(
    settings: Settings, algorithm: str, data: Path | None, *, seed: int = 0, version: str | None = None
) -> dict[str, Any]:
    """Train, publish as `<algorithm>/<version>`, evaluate on held-out sessions.

    A training of an HRM that was killed is continued if it is named by its `version` again. Under torchrun all
    processes train together; the first answers, the others return nothing.

    Returns `model`, `train_s` (of this process), `mean_segments` and the headline: `score` on the synthetic market,
    `return_pct` on a file, with its 95 % interval. Raises, before anything is written, ConfigError if `version` is no
    name or another training's, or is being trained now, and ModelError if it is published.
    """
    from hrm.distributed import joined  # imports torch

    with joined() as world:
        if world.size > 1 and algorithm != "hrm":
            raise ConfigError(f"{algorithm} trains in one process; leave torchrun away")
        if not world.leads:
            train_challenger.fn(world.tell(""))
            return {}
        run = _open(settings, algorithm, data, seed=seed, version=version)
        complaint = "trains this version; wait for it, or choose another --version"
        with only_one(run.folder / "training.lock", complaint, code="training_running"):
            world.tell(str(run.folder))
            return _train(run, algorithm)


def _train(run: Run, algorithm: str) -> dict[str, Any]:
    phase, trainer = TRAINERS[algorithm]
    started = time.monotonic()
    with bars(Console(stderr=True)):
        report(phase, 0.0, run.id)
        trained = trainer.fn(str(run.folder))
        train_s = time.monotonic() - started
        report(phase, 0.95, "measuring on held-out sessions")
        held_out = evaluate_on_test(run, trained["model"])
        report(phase, 1.0, f"{trained['model']} published")
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
    """A folder under `trainings/`, whose name becomes the version: a new one, or one that was not finished."""
    name = f"{datetime.now(UTC):%Y%m%d-%H%M%S}" if version is None else require_name(version)
    state_dir = settings.paths.state_dir.resolve()
    if (state_dir / "models" / algorithm / name).exists():
        raise ModelError(f"{algorithm}/{name} is published already; choose another --version", code="version_exists")
    paths = settings.paths.model_copy(update={"state_dir": state_dir})
    inputs = inputs_of(settings.model_copy(update={"paths": paths}), data, seed)
    run = Run(state_dir / "trainings" / algorithm / name, inputs)
    if (run.folder / "run.json").exists():
        _require_same(load_run(run.folder), inputs)
    write_json(run.folder / "run.json", inputs.model_dump(mode="json"))
    if version is None and algorithm == "hrm":
        hint = f"hrm/{name}: if it is interrupted, --version {name} continues it"
        Console(stderr=True).print(hint, highlight=False, soft_wrap=True)
    return run


def _require_same(begun: Run, inputs: Inputs) -> None:
    if begun.inputs.key != inputs.key:
        raise ConfigError(
            f"{begun.folder}: was begun with other settings, data or seed; repeat those, or choose another --version",
            code="other_training",
        )
