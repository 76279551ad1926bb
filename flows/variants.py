"""What storing a model in fewer bits costs, on a market where decisions have a price, and who may be published.

A variant (fp32, fp16, int8: hrm/storage.py; static_int8: hrm/quantize.py; half: hrm/half.py) is exported, run by the
serving engine, and held against the model as it was trained, in torch, on validation sessions of the synthetic market.
Models of real bars too: there alone regret is exact, and the noise of realised returns would hide what a few changed
decisions cost.

    action_agreement_ratio, depth_agreement_ratio   same action, same segments, on what the trained model sees
    excess_regret_bps_per_day                       regret above the trained model's, each on its own path
    model_mb                                        size on disk
    latency_ms_<format>, batch_ms_<format>          one decision at full depth; one segment of BATCH rows, per format

Limits: settings.gates.export. A variant that fails is not published. `auto` is the exact format that fits NFR1.4, or
the one in other arithmetic (static_int8 on a CPU, half on a GPU) if that passes and is faster on this machine. What is
decoded into float32 while it is loaded is no faster than float32.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import structlog

from core.errors import ModelError
from core.gates import Verdict, judge
from core.manifest import ModelManifest, Storage, publish, require_free
from core.settings import Settings
from flows.measure import VALIDATION_SESSIONS, validated
from flows.options import Format
from serving.engine import Engine
from serving.graph import GPU_PROVIDERS
from serving.reasoning import UNLIMITED
from serving.store import MB, load_version
from trading.dataset import Dataset, synthetic_dataset
from trading.env import SessionEnv, run_policy
from trading.evaluation import Evaluation, advantage
from trading.observations import Observations, Policy, observe

if TYPE_CHECKING:  # torch takes seconds to import
    from hrm.model import HierarchicalReasoningModel

log = structlog.get_logger()

MARKET_SEED = 0
GRAPH_MB = 5.0  # room for what is not a weight
CALIBRATION_ROWS = 64
BATCH = 32
MEASURED_S = 2.0
WORTH_IT = 0.7  # of the exact format's time: fewer bits are taken for their speed, if they bring that much


def storage_within_limit(parameters: int, settings: Settings) -> Storage:
    """float32 where it fits NFR1.4, else float16."""
    fits = 4 * parameters / MB + GRAPH_MB <= settings.performance.model_size_limit_mb
    return "fp32" if fits else "fp16"


def publish_variant(
    model: HierarchicalReasoningModel,
    settings: Settings,
    *,
    store: Path,
    storage: Format = "fp32",
    data: Dataset | None = None,
    **export: Any,
) -> ModelManifest:
    """Export into a scratch store, judge, publish in `store`; the manifest's metrics hold the gate's numbers.

    `data` is what the model was trained on: static_int8 is calibrated with it, by default with the synthetic market.
    `export` are hrm.export.export_model's other arguments. Raises ModelError, publishing nothing, if the version is
    taken, the model needs another observation than `settings` describe, the export's own checks fail, or the gate
    says no: the message says which limit and by how much.
    """
    require_free(store / export["name"] / export["version"])  # before minutes are spent on it
    seen = model.schema
    market = synthetic_dataset(settings, MARKET_SEED, interval_s=seen.interval_s, symbols=seen.symbols)
    market.schema.require(model.schema, "the model")
    learned_from = data or market
    learned_from.schema.require(model.schema, "the model")
    with tempfile.TemporaryDirectory(prefix="hrm-variant-") as folder:
        trial = Trial(model, settings, market, observations(learned_from), Path(folder))
        chosen = trial.fastest(export) if storage == "auto" else trial.judged(storage, export)
        files = {name: (chosen.folder / name).read_bytes() for name in chosen.manifest.files}
    fields = {name: value for name, value in chosen.manifest if name != "files"}
    return publish(store, files, **fields)


@dataclass(frozen=True)
class Variant:
    """A published trial: its manifest with what was measured, its engine, and where its files are."""

    manifest: ModelManifest
    engine: Engine
    folder: Path

    def with_metrics(self, metrics: dict[str, float]) -> Variant:
        measured = self.manifest.model_copy(update={"metrics": self.manifest.metrics | metrics})
        return replace(self, manifest=measured)


@dataclass(frozen=True)
class Trial:
    """A trained model and the market on which its variants are held against it."""

    model: HierarchicalReasoningModel
    settings: Settings
    market: Dataset
    observed: Observations
    scratch: Path

    @cached_property
    def traced(self) -> bytes:
        from hrm.export import export_segment

        return export_segment(self.model)

    @cached_property
    def reference(self) -> Evaluation:
        """The trained model on the validation sessions."""
        return validated(_trained(self.model), self.market)

    def judged(self, storage: Storage, export: Mapping[str, Any]) -> Variant:
        """The variant with the gate's numbers. Raises ModelError if the gate says no."""
        from hrm.export import export_model

        store = self.scratch / storage / "models"
        calibration = {"bars": self.observed.bars, "account": self.observed.account}
        manifest = export_model(
            self.model,
            store=store,
            settings=self.settings,
            storage=storage,
            observed=calibration,
            traced=self.traced,
            **export,
        )
        _refuse(manifest, self.settings, {Verdict.FAIL})  # what is too large need not be run
        folder = store / manifest.name / manifest.version
        variant = Variant(manifest, _engine(store, manifest, self.settings), folder)
        variant = variant.with_metrics(cost_of_storage(self.model, variant.engine, self.market, self.reference))
        _refuse(variant.manifest, self.settings, {Verdict.FAIL, Verdict.INCONCLUSIVE})
        return variant

    def fastest(self, export: Mapping[str, Any]) -> Variant:
        """The exact format, or the quick one if its decisions pass and it is worth it; with the times of both."""
        exact = self.judged(storage_within_limit(self.model.parameter_count, self.settings), export)
        quick: Storage = "half" if exact.engine.provider in GPU_PROVIDERS else "static_int8"
        try:
            other = self.judged(quick, export)
        except ModelError as error:  # the exact one has passed everything
            log.warning("format_refused", format=quick, code=error.code, reason=str(error))
            return exact
        measured = times([exact.engine, other.engine], self.observed)
        return (other if _is_worth_it(measured, exact, other) else exact).with_metrics(measured)


def cost_of_storage(
    model: HierarchicalReasoningModel, engine: Engine, data: Dataset, reference: Evaluation | None = None
) -> dict[str, float]:
    """`engine`'s decisions against those of the trained `model` on the validation sessions, as named above.

    `reference` is the trained model's evaluation there, if it has been made.
    """
    trained = _trained(model)
    lost = advantage(reference or validated(trained, data), validated(engine.decide, data))
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


def times(engines: Sequence[Engine], observed: Observations) -> dict[str, float]:
    """`latency_ms_<format>` of one decision at full depth, `batch_ms_<format>` of one segment of BATCH rows.

    The engines take turns, and each one's best turn counts: what else the machine does only adds to it.
    """
    found = defaultdict[str, list[float]](list)
    begun = time.monotonic()
    while len(found) == 0 or time.monotonic() - begun < MEASURED_S:
        for engine in engines:
            storage, rule = engine.manifest.storage, engine.manifest.halting
            depth = rule.max_segments if rule else 1
            found[f"latency_ms_{storage}"].append(_think_ms(engine, observed, rows=1, segments=depth))
            found[f"batch_ms_{storage}"].append(_think_ms(engine, observed, rows=BATCH, segments=1))
    return {name: min(each) for name, each in found.items()}


def observations(data: Dataset) -> Observations:
    """CALIBRATION_ROWS of the training bars, at every position."""
    random = np.random.default_rng(MARKET_SEED)
    at = random.choice(data.train.decision_bars, CALIBRATION_ROWS)
    return observe(data.train, data.schema, at, random.integers(-1, 1, CALIBRATION_ROWS, endpoint=True))


def _think_ms(engine: Engine, observed: Observations, *, rows: int, segments: int) -> float:
    reasoning = engine.reasoning(rows)
    bars, account, complexity, position = (array[:rows] for array in observed)
    reasoning.join({"bars": bars, "account": account}, complexity, position, np.full(rows, UNLIMITED))
    started = time.perf_counter()
    for _ in range(segments):
        reasoning.step()
    return (time.perf_counter() - started) * 1e3


def _is_worth_it(measured: Mapping[str, float], exact: Variant, other: Variant) -> bool:
    """Alone and in a batch count alike."""
    ratios = [
        measured[f"{what}_ms_{other.manifest.storage}"] / measured[f"{what}_ms_{exact.manifest.storage}"]
        for what in ("latency", "batch")
    ]
    return math.sqrt(math.prod(ratios)) < WORTH_IT


def _trained(model: HierarchicalReasoningModel) -> Policy:
    from hrm.decide import decide

    return partial(decide, model)


def _engine(store: Path, manifest: ModelManifest, settings: Settings) -> Engine:
    """The variant as the service would run it; its size is the gate's business."""
    model_id, size_limit_mb = f"{manifest.name}/{manifest.version}", manifest.metrics["model_mb"] + GRAPH_MB
    return Engine(load_version(store, model_id, size_limit_mb=size_limit_mb), settings.serving)


def _refuse(manifest: ModelManifest, settings: Settings, verdicts: set[Verdict]) -> None:
    gate = judge(manifest.metrics, settings.gates.export)
    if gate.verdict in verdicts:
        raise ModelError(
            f"{manifest.name}/{manifest.version} ({manifest.storage}): {gate.reason}; nothing was published, "
            f"choose a format with more or fewer bits",
            code="gate_failed",
        )
