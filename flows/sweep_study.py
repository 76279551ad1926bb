"""What a sweep varies, and the study that remembers every trial: Optuna on SQLite, or on a Postgres server.

A trial's settings depend on the seed, its number and the trials before it, whichever process draws them. A trial
whose process died has no heartbeat: after GRACE_S whoever works on the study next tries it again, in its folder.
"""

from __future__ import annotations

import fcntl
import os
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import optuna
import sqlalchemy as sa
from optuna.exceptions import ExperimentalWarning
from optuna.pruners import MedianPruner
from optuna.samplers import BaseSampler, TPESampler
from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback
from optuna.trial import FrozenTrial, Trial, TrialState

from core.errors import ConfigError
from core.settings import Settings
from core.settings_file import secret
from flows.run_state import Run

HEARTBEAT_S, GRACE_S = 5, 30
RETRIES = 3  # of a trial whose process died
UNPRUNED_TRIALS, UNPRUNED_LOOKS = 5, 1  # before the median says anything
SQLITE_PATIENCE_S = 60
ENDED = (TrialState.COMPLETE, TrialState.PRUNED)

Choice = dict[str, float]

# Heartbeats are called experimental since Optuna 2.8. Their version is pinned, and what they do is tested.
warnings.filterwarnings("ignore", category=ExperimentalWarning)


def suggested(trial: Trial) -> Choice:
    """Values of a trial, by dotted setting."""
    hrm, act = "training_params.hrm", "hierarchical_reasoning_model.act"
    cycles = "hierarchical_reasoning_model.hierarchical"
    return {
        f"{hrm}.learning_rate": trial.suggest_float(f"{hrm}.learning_rate", 1e-4, 3e-3, log=True),
        f"{hrm}.weight_decay": trial.suggest_float(f"{hrm}.weight_decay", 1e-3, 0.3, log=True),
        f"{hrm}.ema_decay": trial.suggest_float(f"{hrm}.ema_decay", 0.99, 0.9995),
        f"{act}.exploration": trial.suggest_float(f"{act}.exploration", 0.0, 0.3),
        f"{cycles}.N_cycles": trial.suggest_int(f"{cycles}.N_cycles", 1, 3),
        f"{cycles}.T_timesteps": trial.suggest_int(f"{cycles}.T_timesteps", 1, 4),
    }


def chosen(settings: Settings, choice: Mapping[str, float]) -> Settings:
    """The settings with a trial's values, validated."""
    tree = settings.model_dump()
    for name, value in choice.items():
        *sections, leaf = name.split(".")
        section: dict[str, Any] = tree
        for each in sections:
            section = section[each]
        section[leaf] = value
    return Settings.model_validate(tree)


class SeededByTrial(BaseSampler):
    """TPE whose draws are those of the seed and the trial's number, whatever process asks. One trial at a time."""

    def __init__(self, seed: int) -> None:
        self._seed, self._tpe = seed, TPESampler(seed=seed)

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        seed = int(np.random.SeedSequence([self._seed, trial.number]).generate_state(1)[0])
        self._tpe = TPESampler(seed=seed)
        self._tpe.before_trial(study, trial)

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, Any]:
        return self._tpe.infer_relative_search_space(study, trial)

    def sample_relative(self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, Any]) -> dict[str, Any]:
        return self._tpe.sample_relative(study, trial, search_space)

    def sample_independent(self, study: optuna.Study, trial: FrozenTrial, param_name: str, distribution: Any) -> Any:
        return self._tpe.sample_independent(study, trial, param_name, distribution)


def study_of(run: Run) -> optuna.Study:
    """The study of a sweep, made by whoever comes first. Raises ConfigError if its server is not named."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with (run.folder / "study.lock").open("a") as one_at_a_time:
        fcntl.flock(one_at_a_time, fcntl.LOCK_EX)  # two at once would both create the tables
        return optuna.create_study(
            study_name=run.id,
            storage=_storage(run.settings),
            sampler=SeededByTrial(run.inputs.seed),
            pruner=MedianPruner(n_startup_trials=UNPRUNED_TRIALS, n_warmup_steps=UNPRUNED_LOOKS),
            load_if_exists=True,
        )


def ended(study: optuna.Study) -> list[FrozenTrial]:
    """Trials with a result: trained to the end, or given up because half of the others were better by then."""
    return study.get_trials(deepcopy=False, states=ENDED)


def running(study: optuna.Study) -> list[FrozenTrial]:
    return study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))


def _storage(settings: Settings) -> RDBStorage:
    url, options = _place(settings)
    return RDBStorage(
        url,
        engine_kwargs=options,
        heartbeat_interval=HEARTBEAT_S,
        grace_period=GRACE_S,
        heartbeat_stale_trial_callback=RetryHeartbeatStaleTrialCallback(max_retry=RETRIES),
    )


def _place(settings: Settings) -> tuple[str, dict[str, Any]]:
    """Address and engine options. The address may hold a password: it is in no message."""
    name = settings.flows.study_url_env
    if name is None:
        file = settings.paths.state_dir.resolve() / "sweeps.db"
        return f"sqlite:///{file}", {"connect_args": {"timeout": SQLITE_PATIENCE_S}}
    held = secret(name, os.environ)
    if held is None:
        raise ConfigError(f"flows.study_url_env: {name} is not set; set it, or {name}_FILE")
    try:
        url = sa.make_url(held.get_secret_value())
    except (sa.exc.ArgumentError, ValueError):  # the latter of a port that is no number
        url = None
    if url is None or url.get_backend_name() != "postgresql":
        raise ConfigError(
            f"{name} holds no address of a Postgres server; mend it: postgresql://user:password@host/name"
        )
    return url.set(drivername="postgresql+psycopg").render_as_string(hide_password=False), {}
