"""What storing a model in fewer bits costs, on a market where decisions have a price, and who may be published.

A variant (fp32, fp16, int8: hrm/storage.py) is exported, run by the serving engine, and held against the model as it
was trained, in torch, on validation sessions of the synthetic market. Models of real bars too: there alone regret is
exact, and the noise of realised returns would hide what a few changed decisions cost.

    action_agreement_ratio, depth_agreement_ratio   same action, same segments, on what the trained model sees
    excess_regret_bps_per_day                       regret above the trained model's, each on its own path
    model_mb                                        size on disk

Limits: settings.gates.export. A variant that fails is not published.
"""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from core.errors import ModelError
from core.gates import Verdict, judge
from core.manifest import ModelManifest, Storage, publish, require_free
from core.settings import Settings
from flows.measure import VALIDATION_SESSIONS, validated
from serving.engine import Engine
from serving.store import MB, load_version
from trading.dataset import Dataset, synthetic_dataset
from trading.env import SessionEnv, run_policy
from trading.evaluation import advantage
from trading.observations import Policy

if TYPE_CHECKING:  # torch takes seconds to import
    from hrm.model import HierarchicalReasoningModel

MARKET_SEED = 0
GRAPH_MB = 5.0  # room for what is not a weight


def storage_within_limit(parameters: int, settings: Settings) -> Storage:
    """float32 where it fits NFR1.4, else float16."""
    fits = 4 * parameters / MB + GRAPH_MB <= settings.performance.model_size_limit_mb
    return "fp32" if fits else "fp16"


def publish_variant(
    model: HierarchicalReasoningModel, settings: Settings, *, store: Path, **export: Any
) -> ModelManifest:
    """Export into a scratch store, judge, publish in `store`; the manifest's metrics hold the gate's numbers.

    `export` are hrm.export.export_model's other arguments. Raises ModelError, publishing nothing, if the version is
    taken, the model needs another observation than `settings` describe, the export's own checks fail, or the gate
    says no: the message says which limit and by how much.
    """
    from hrm.export import export_model

    require_free(store / export["name"] / export["version"])  # before minutes are spent on it
    seen = model.schema
    market = synthetic_dataset(settings, MARKET_SEED, interval_s=seen.interval_s, symbols=seen.symbols)
    market.schema.require(model.schema, "the model")
    with tempfile.TemporaryDirectory(prefix="hrm-variant-") as folder:
        scratch = Path(folder) / "models"
        manifest = export_model(model, store=scratch, settings=settings, **export)
        _refuse(manifest, settings, {Verdict.FAIL})  # what is too large need not be run
        engine = _engine(scratch, manifest, settings)
        manifest = _with_metrics(manifest, cost_of_storage(model, engine, market))
        _refuse(manifest, settings, {Verdict.FAIL, Verdict.INCONCLUSIVE})
        files = {name: (scratch / manifest.name / manifest.version / name).read_bytes() for name in manifest.files}
    fields = {name: value for name, value in manifest if name != "files"}
    return publish(store, files, **fields)


def cost_of_storage(model: HierarchicalReasoningModel, engine: Engine, data: Dataset) -> dict[str, float]:
    """`engine`'s decisions against those of the trained `model` on the validation sessions, as named above."""
    from hrm.decide import decide

    trained = partial(decide, model)
    lost = advantage(validated(trained, data), validated(engine.decide, data))
    return agreement(trained, engine.decide, data) | {"excess_regret_bps_per_day": float(lost.mean())}


def agreement(reference: Policy, variant: Policy, data: Dataset) -> dict[str, float]:
    """How often `variant` takes the same action and the same segments on what `reference` sees on its way."""
    sessions = data.validation.sessions[:VALIDATION_SESSIONS]
    same = []
    for seen, decided, step in run_policy(reference, SessionEnv(data.validation, data.schema, sessions, data.cost_bps)):
        other = variant(*seen)
        pairs = (decided.action, other.action), (decided.segments, other.segments)
        same.append(np.stack([(ours == theirs)[step.active] for ours, theirs in pairs]))
    action, depth = np.concatenate(same, axis=1).mean(axis=1)
    return {"action_agreement_ratio": float(action), "depth_agreement_ratio": float(depth)}


def _engine(store: Path, manifest: ModelManifest, settings: Settings) -> Engine:
    """The variant as the service would run it; its size is the gate's business."""
    model_id, size_limit_mb = f"{manifest.name}/{manifest.version}", manifest.metrics["model_mb"] + GRAPH_MB
    return Engine(load_version(store, model_id, size_limit_mb=size_limit_mb), settings.serving)


def _with_metrics(manifest: ModelManifest, metrics: dict[str, float]) -> ModelManifest:
    return manifest.model_copy(update={"metrics": manifest.metrics | metrics})


def _refuse(manifest: ModelManifest, settings: Settings, verdicts: set[Verdict]) -> None:
    gate = judge(manifest.metrics, settings.gates.export)
    if gate.verdict in verdicts:
        raise ModelError(
            f"{manifest.name}/{manifest.version} ({manifest.storage}): {gate.reason}; nothing was published, "
            f"choose a format with more or fewer bits",
            code="gate_failed",
        )
