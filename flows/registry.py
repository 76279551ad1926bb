"""Published models in MLflow's registry: versions with lineage, and who decides as aliases champion and challenger.

The rollout's state says who decides; aliases follow it, so they are read by people and never by a decision. MLflow has
no compare-and-set: whoever projects last writes what the state was when it looked, and the next projection mends it.
What cannot be reached is warned about and caught up with by the next one; nothing waits for it.

A version is registered once, under the manifest's digest: its source is the store's folder, its run the training's.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import structlog

from core.manifest import MANIFEST, ModelManifest
from core.settings import Settings
from delivery.state_database import place_of
from delivery.store import RolloutStore
from delivery.transitions import RolloutState
from flows.run_state import Run, runs_of
from flows.tracking import client_of, run_id_of
from serving.graph import expected_inputs
from serving.store import list_versions

if TYPE_CHECKING:  # mlflow takes seconds to import
    from mlflow import MlflowClient

DIGEST_TAG, VERSION_TAG = "hrm.manifest_sha256", "hrm.version"
ABSENT = "not in the store, or it may not be loaded; bring its folder back, or roll back before the service restarts"

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Published:
    """A version in the store whose signature was verified. `run`: the folder of the migration that trained it."""

    manifest: ModelManifest
    sha256: str  # of manifest.json
    folder: Path
    run: Path | None = None

    @property
    def id(self) -> str:
        return f"{self.manifest.name}/{self.manifest.version}"


class ModelRegistry(Protocol):
    """Where people look models up. Both may be called again and again, by several processes."""

    def register(self, version: Published) -> None:
        """Make it known, with where it came from."""
        ...

    def point(self, aliases: Mapping[str, Published | None]) -> None:
        """Each alias at its version, which is registered, or nowhere."""
        ...


class MlflowRegistry:
    """In MLFLOW_TRACKING_URI, or <state_dir>/mlflow.db."""

    def __init__(self, state_dir: Path) -> None:
        self._client: MlflowClient = client_of(state_dir)

    def register(self, version: Published) -> None:
        name = version.manifest.name
        self._ensure_name(name)
        if self._number(version) is None:
            run_id = None if version.run is None else run_id_of(self._client, version.run)
            source = version.folder.resolve().as_uri()
            self._client.create_model_version(name, source, run_id=run_id, tags=tags(version))

    def point(self, aliases: Mapping[str, Published | None]) -> None:
        for model in self._client.search_registered_models():
            for alias, wanted in aliases.items():
                self._point(model.name, alias, wanted, model.aliases.get(alias))

    def _point(self, name: str, alias: str, wanted: Published | None, now: str | None) -> None:
        number = self._number(wanted) if wanted is not None and wanted.manifest.name == name else None
        if number is not None and str(now) != number:
            self._client.set_registered_model_alias(name, alias, number)
        elif number is None and now is not None:
            self._client.delete_registered_model_alias(name, alias)

    def _ensure_name(self, name: str) -> None:
        from mlflow.exceptions import MlflowException

        try:
            self._client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise

    def _number(self, version: Published) -> str | None:
        """MLflow's number of exactly this version: another store's, or an earlier one, may have the same name."""
        named = f"name = '{version.manifest.name}' and tags.`{VERSION_TAG}` = '{version.manifest.version}'"
        found = self._client.search_model_versions(f"{named} and tags.`{DIGEST_TAG}` = '{version.sha256}'")
        return str(max(found, key=lambda each: int(each.version)).version) if found else None


def tags(version: Published) -> dict[str, str]:
    """Lineage, signature and metrics, as text."""
    manifest = version.manifest
    known = {
        DIGEST_TAG: version.sha256,
        VERSION_TAG: manifest.version,
        "dataset_digest": manifest.dataset_digest,
        "git_commit": manifest.git_commit,
        "algorithm": manifest.algorithm,
        "preset": manifest.preset,
        "storage": manifest.storage,
        "signature": json.dumps(signature(manifest)),
        "metrics": json.dumps(manifest.metrics),
    }
    return {name: text for name, text in known.items() if text is not None}


def signature(manifest: ModelManifest) -> list[dict[str, Any]]:
    """The graph's inputs as MLflow's tensor specifications: a free number of rows first."""
    return [
        {"type": "tensor", "name": name, "tensor-spec": {"dtype": "float32", "shape": [-1, *shape]}}
        for name, shape in expected_inputs(manifest).items()
    ]


def project(settings: Settings, registry: ModelRegistry | None = None) -> dict[str, Any]:
    """Register what the store holds and point the aliases: `registered`, `aliases`, `problems`. Raises nothing.

    Who decides, or is rolled out, and is not in the store has no alias, and is a problem: the service could not start.
    """
    try:
        registry = registry or MlflowRegistry(settings.paths.state_dir)
        versions = {version.id: version for version in published(settings)}
        for version in versions.values():
            registry.register(version)
        state = _state(settings)
        aliases = {"champion": state.champion, "challenger": state.challenger}
        registry.point({alias: versions.get(model or "") for alias, model in aliases.items()})
    except Exception as error:  # whatever a store raises: aliases are for people, and the next projection mends them
        why = f"{type(error).__name__}: {error}".splitlines()[0]
        log.warning("registry_unavailable", why=why, effect="aliases are behind; the next projection catches up")
        return {"registered": 0, "aliases": {}, "problems": [why]}
    return {"registered": len(versions), "aliases": aliases, "problems": _absent(aliases, versions)}


def _absent(aliases: Mapping[str, str | None], versions: Mapping[str, Published]) -> list[str]:
    found = [f"{alias} {model}: {ABSENT}" for alias, model in aliases.items() if model and model not in versions]
    for problem in found:
        log.error("model_absent", problem=problem)
    return found


def published(settings: Settings) -> Iterator[Published]:
    """Every version of the store that may be loaded here."""
    store = settings.paths.state_dir / "models"
    runs = {model: run.folder for run in runs_of(settings) for model in _made_by(run)}
    for row in list_versions(store):
        if row["problem"] is None:
            model_id = str(row["id"])
            data = (store / model_id / MANIFEST).read_bytes()
            manifest = ModelManifest.model_validate_json(data)
            yield Published(manifest, hashlib.sha256(data).hexdigest(), store / model_id, runs.get(model_id))


def _made_by(run: Run) -> list[str]:
    records = (run.phase(name) for name in ("ppo_baseline_capture", "hrm_training"))
    return [str(record.result.get("model")) for record in records if record is not None]


def _state(settings: Settings) -> RolloutState:
    place = place_of(settings)
    if isinstance(place, Path) and not place.exists():
        return RolloutState()
    store = RolloutStore(place, settings.rollout)
    try:
        return store.read()
    finally:
        store.close()
