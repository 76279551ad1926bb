"""Who decides in a running service when a migration begins: the incumbent that it must beat, never silently demote.

no service runs, or nobody                                      a PPO is trained
a PPO of the same data and features, or one     it is the incumbent: measured, not trained again
that was imported and has these features
a model of this run                             the run is resumed
anything else, or another rollout under way     refused before anything is trained
"""

from __future__ import annotations

from pathlib import Path

from core.errors import ConfigError
from core.settings import Settings
from delivery.state_database import place_of
from delivery.store import RolloutStore
from delivery.transitions import RolloutState
from flows.phases import dataset_of
from flows.run_state import Run
from flows.service import reachable_service
from serving.store import load_version


def live_state(settings: Settings) -> RolloutState:
    """The rollout of the service that runs in the state directory; an empty one while none runs."""
    place = place_of(settings)
    with reachable_service(settings) as service:
        if service is None or (isinstance(place, Path) and not place.exists()):
            return RolloutState()
    store = RolloutStore(place, settings.rollout)
    try:
        return store.read()
    finally:
        store.close()


def acting_ppo(run: Run, state: RolloutState) -> str | None:
    """The model that decides now, if a new migration of the run's data can begin from it.

    Raises ModelError if the model that decides is absent or damaged.
    """
    if state.champion is None or state.challenger is not None:
        return None
    limit_mb = run.settings.performance.model_size_limit_mb
    manifest = load_version(run.models, state.champion, size_limit_mb=limit_mb).manifest
    data = dataset_of(run)
    known = manifest.imported or manifest.dataset_digest == data.digest
    comparable = known and manifest.observation.digest == data.schema.digest
    return state.champion if manifest.algorithm == "ppo" and comparable else None


def require_free_or_own(run: Run, state: RolloutState) -> None:
    """Raises ConfigError if a model decides that this run neither made nor can begin from."""
    if state.champion is None or state.champion in _models_of(run):
        return
    serving = run.settings.serving
    if state.challenger is not None:
        raise ConfigError(
            f"{serving.host}:{serving.port}: a rollout of {state.challenger} is under way; finish it with the command "
            f"that began it, end it with `hrm rollout abort`, or choose another --state-dir",
            code="rollout_under_way",
        )
    if run.phase("ppo_baseline_capture") is not None or acting_ppo(run, state) is None:
        raise ConfigError(
            f"{serving.host}:{serving.port}: {state.champion} decides here; this migration would replace it with a PPO "
            f"of its own: choose another --state-dir, or stop the service first",
            code="champion_mismatch",
        )


def _models_of(run: Run) -> set[str]:
    records = [run.phase(name) for name in ("ppo_baseline_capture", "hrm_training")]
    return {record.result["model"] for record in records if record is not None}
