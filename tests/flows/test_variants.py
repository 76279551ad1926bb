"""Formats of a model file under their gate: trained weights, the serving engine, a market with a known optimum."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from tiny_migration import TINY

from core.errors import ModelError
from core.gates import Limit
from core.manifest import ModelManifest, Storage
from core.settings import Settings, load_settings
from flows.options import Format
from flows.variants import agreement, cost_of_storage, publish_variant, storage_within_limit
from hrm.agent import HRMAgent
from hrm.batch import MarketSampler, MarketTable
from hrm.decide import decide
from hrm.export import export_model, export_segment
from hrm.model import HierarchicalReasoningModel
from hrm.segment import OTHER_GOLDEN_ROWS
from serving.engine import Engine, load_engine
from serving.store import StoredModel, load_version
from trading.dataset import Dataset, build_dataset, training_table
from trading.observations import observe

SMALL = TINY | {
    "HRM_TRAINING_PARAMS__HRM__EMA_DECAY": "0.98",
    "HRM_TRAINING_PARAMS__HRM__WARMUP_STEPS": "10",
}
STEPS = 100


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return load_settings(environ=SMALL | {"HRM_PATHS__STATE_DIR": str(tmp_path_factory.mktemp("state"))})


@pytest.fixture(scope="module")
def data(settings: Settings) -> Dataset:
    return build_dataset(settings, None, 0)


@pytest.fixture(scope="module")
def trained(settings: Settings, data: Dataset) -> HierarchicalReasoningModel:
    agent = HRMAgent(data.schema, settings, data.label_cost_bps)
    sampler = MarketSampler(MarketTable(**training_table(data, settings)), data.schema.window, seed=0)
    for _ in range(STEPS):
        agent.trainer.train_step(sampler.batch(128))
    return agent.model


@pytest.fixture(scope="module")
def segment(trained: HierarchicalReasoningModel) -> bytes:
    return export_segment(trained)


def store_of(settings: Settings) -> Path:
    return settings.paths.state_dir / "models"


def publish(model: HierarchicalReasoningModel, settings: Settings, version: str, storage: Format) -> ModelManifest:
    return publish_variant(
        model,
        settings,
        store=store_of(settings),
        name="hrm",
        version=version,
        metrics={"validation": 1.0},
        dataset_digest="abc",
        storage=storage,
    )


def with_gate(settings: Settings, **limits: Mapping[str, float]) -> Settings:
    gate = tuple(Limit(metric=metric, why="a test", **bounds) for metric, bounds in limits.items())
    return settings.model_copy(update={"gates": settings.gates.model_copy(update={"export": gate})})


@pytest.mark.parametrize("storage", ["fp32", "fp16", "int8", "static_int8"])
@pytest.mark.usefixtures("exported_once")
def test_a_variant_that_passes_is_published_with_the_gates_numbers_and_served_as_it_is(
    trained: HierarchicalReasoningModel, settings: Settings, data: Dataset, storage: Storage
) -> None:
    version = f"good-{storage.replace('_', '-')}"
    manifest = publish(trained, settings, version, storage)
    assert manifest.storage == storage
    assert manifest.metrics["validation"] == 1.0
    assert manifest.metrics["action_agreement_ratio"] >= 0.99
    assert abs(manifest.metrics["excess_regret_bps_per_day"]) <= 0.1
    engine = load_engine(settings, f"hrm/{version}")
    assert engine.manifest.metrics == manifest.metrics
    assert engine.golden_max_abs_error < 1e-4


def test_a_model_that_differs_is_measured_to_differ_and_to_cost(
    trained: HierarchicalReasoningModel, settings: Settings, data: Dataset
) -> None:
    patient, hasty = copy.deepcopy(trained), copy.deepcopy(trained)
    with torch.no_grad():
        hasty.output_network.policy.weight.neg_()
        patient.q_head.bias[0], hasty.q_head.bias[0] = -100.0, 100.0
    publish(hasty, with_gate(settings, model_mb={"max": 100}), "other", "fp32")
    cost = cost_of_storage(patient, load_engine(settings, "hrm/other"), data)
    assert cost["action_agreement_ratio"] < 0.9
    assert cost["depth_agreement_ratio"] < 0.9
    assert cost["excess_regret_bps_per_day"] > 0.1


def test_agreement_counts_what_the_reference_sees(trained: HierarchicalReasoningModel, data: Dataset) -> None:
    def reference(*seen: np.ndarray):
        return decide(trained, *seen)

    def deeper(*seen: np.ndarray):
        decided = decide(trained, *seen)
        return decided._replace(segments=decided.segments + (seen[3] == 0))

    assert agreement(reference, reference, data) == {"action_agreement_ratio": 1.0, "depth_agreement_ratio": 1.0}
    ratios = agreement(reference, deeper, data)
    assert ratios["action_agreement_ratio"] == 1.0
    assert ratios["depth_agreement_ratio"] < 1.0


@pytest.mark.usefixtures("exported_once")
def test_a_variant_that_fails_its_gate_is_refused_by_how_much_and_not_published(
    trained: HierarchicalReasoningModel, settings: Settings
) -> None:
    strict = with_gate(settings, action_agreement_ratio={"above": 1.0})
    with pytest.raises(ModelError, match=r"hrm/bad \(int8\): action_agreement_ratio is .*, must be > 1: a test"):
        publish(trained, strict, "bad", "int8")
    assert not (store_of(settings) / "hrm" / "bad").exists()


@pytest.fixture
def exported_once(trained: HierarchicalReasoningModel, segment: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """`trained` was exported already, in earnest: every format is made of the same graph. Only the time is saved."""
    monkeypatch.setattr("hrm.export.export_segment", lambda _: segment)


@pytest.mark.usefixtures("exported_once")
def test_a_limit_without_data_refuses_too(trained: HierarchicalReasoningModel, settings: Settings) -> None:
    with pytest.raises(ModelError, match=r"never_measured is no data"):
        publish(trained, with_gate(settings, never_measured={"min": 0.0}), "bad", "fp32")
    assert not (store_of(settings) / "hrm" / "bad").exists()


@pytest.mark.usefixtures("exported_once")
def test_what_is_too_large_is_refused_before_it_is_run(
    trained: HierarchicalReasoningModel, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flows.variants.cost_of_storage", lambda *_: pytest.fail("it was run"))
    with pytest.raises(ModelError, match=r"model_mb is .*, must be <= 0\.001"):
        publish(trained, with_gate(settings, model_mb={"max": 0.001}), "large", "fp32")


def test_a_version_that_is_taken_is_refused_before_anything_is_exported(
    trained: HierarchicalReasoningModel, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hrm.export.export_segment", lambda _: pytest.fail("it was exported"))
    (store_of(settings) / "hrm" / "taken").mkdir(parents=True)
    with pytest.raises(ModelError, match="taken exists already"):
        publish(trained, settings, "taken", "fp32")


@pytest.mark.usefixtures("exported_once")
def test_auto_measures_both_and_publishes_the_faster(
    trained: HierarchicalReasoningModel, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    for worth_it, storage in ((1e9, "static_int8"), (0.0, "fp32")):
        monkeypatch.setattr("flows.variants.WORTH_IT", worth_it)
        manifest = publish(trained, settings, f"auto-{worth_it:g}".replace("+", ""), "auto")
        assert manifest.storage == storage
        measured = {name for name in manifest.metrics if name.startswith(("latency_ms_", "batch_ms_"))}
        assert measured == {f"{what}_ms_{each}" for what in ("latency", "batch") for each in ("fp32", "static_int8")}
        assert all(0 < manifest.metrics[name] < 1e3 for name in measured)


@pytest.mark.usefixtures("exported_once")
def test_auto_keeps_the_exact_format_where_integers_decide_otherwise(
    trained: HierarchicalReasoningModel, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flows.variants.WORTH_IT", 1e9)
    monkeypatch.setattr("hrm.quantize.WEIGHT_LEVELS", 1)  # weights of -1, 0 and 1: another model
    strict = with_gate(settings, action_agreement_ratio={"min": 0.99}, excess_regret_bps_per_day={"max": 0.1})
    manifest = publish(trained, strict, "auto-exact", "auto")
    assert manifest.storage == "fp32"
    assert manifest.metrics["action_agreement_ratio"] == 1.0


@pytest.fixture(scope="module")
def integers(trained: HierarchicalReasoningModel, segment: bytes, settings: Settings) -> StoredModel:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hrm.export.export_segment", lambda _: segment)
        publish(trained, settings, "integers", "static_int8")
    return load_version(store_of(settings), "hrm/integers", size_limit_mb=100)


def test_a_decision_of_integers_is_bit_by_bit_the_same_in_any_batch(
    integers: StoredModel, settings: Settings, data: Dataset
) -> None:
    random, engine = np.random.default_rng(0), Engine(integers, settings.serving)
    at = random.choice(data.test.decision_bars, 40)
    seen = observe(data.test, data.schema, at, random.integers(-1, 2, 40))
    together = engine.decide(*seen)
    for rows in ([5], [39, 5], list(range(7, 29)), [5] * 9 + [1]):
        part = engine.decide(*(array[rows] for array in seen))
        for name in ("action", "quantity", "probabilities", "value", "segments"):
            np.testing.assert_array_equal(getattr(part, name), getattr(together, name)[rows], err_msg=name)


def test_a_processor_that_rounds_some_activation_otherwise_may_serve_integers(
    integers: StoredModel, settings: Settings
) -> None:
    rows = len(integers.golden["in_reset"])
    assert rows == OTHER_GOLDEN_ROWS
    moved = shifted(integers, np.arange(rows) < rows // 4)
    assert Engine(moved, settings.serving).golden_max_abs_error == 0.0


def test_a_processor_that_computes_integers_otherwise_may_not(
    integers: StoredModel, trained: HierarchicalReasoningModel, settings: Settings, data: Dataset
) -> None:
    with pytest.raises(ModelError, match="differs from its golden outputs") as error:
        Engine(shifted(integers, np.ones(len(integers.golden["in_reset"]), np.bool_)), settings.serving)
    assert error.value.code == "golden_mismatch"
    other = replace(integers, onnx=with_one_scale_wrong(integers.onnx))
    with pytest.raises(ModelError, match="differs from its golden outputs"):
        Engine(other, settings.serving)


def shifted(model: StoredModel, rows: np.ndarray) -> StoredModel:
    """Goldens of a machine that answers 0.01 more in some rows."""
    moved = model.golden["out_value"] + 0.01 * rows.astype(np.float32)
    return replace(model, golden={**model.golden, "out_value": moved})


def with_one_scale_wrong(file: bytes) -> bytes:
    """What another arithmetic comes to: one place where every activation is 3 % larger."""
    model = onnx.load_from_string(file)
    scale = next(tensor for tensor in model.graph.initializer if tensor.name.endswith(".s"))
    scale.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(scale) * np.float32(1.03), scale.name))
    return bytes(model.SerializeToString())


def test_integers_are_computed_on_the_processor_even_where_a_gpu_is_wanted_first(
    integers: StoredModel, settings: Settings
) -> None:
    assert settings.serving.providers[0] == "CUDAExecutionProvider"
    assert Engine(integers, settings.serving).provider == "CPUExecutionProvider"
    strict = settings.serving.model_copy(update={"strict_provider": True})
    with pytest.raises(ModelError, match="export another format than static_int8"):
        Engine(integers, strict)


def test_a_model_of_another_observation_is_refused(trained: HierarchicalReasoningModel, settings: Settings) -> None:
    wider = settings.model_copy(update={"observation": settings.observation.model_copy(update={"window": 80})})
    with pytest.raises(ModelError, match="another observation schema"):
        publish(trained, wider, "wider", "fp32")


def test_weights_too_many_for_the_limit_are_stored_in_16_bits(settings: Settings) -> None:
    assert storage_within_limit(27_569_666, settings) == "fp16"
    assert storage_within_limit(215_000, settings) == "fp32"
    roomy = settings.performance.model_copy(update={"model_size_limit_mb": 200.0})
    assert storage_within_limit(27_569_666, settings.model_copy(update={"performance": roomy})) == "fp32"


@pytest.mark.slow
@pytest.mark.parametrize(("storage", "expected_mb"), [("fp16", 56), ("int8", 29)])
def test_paper_27m_fits_the_limit(tmp_path: Path, storage: Storage, expected_mb: float) -> None:
    settings = load_settings(preset="paper_27m", environ={"HRM_PATHS__STATE_DIR": str(tmp_path)})
    data = build_dataset(load_settings(environ=SMALL | {"HRM_PATHS__STATE_DIR": str(tmp_path)}), None, 0)
    hrm, quantity_max = settings.hierarchical_reasoning_model, settings.trading.max_quantity
    model = HierarchicalReasoningModel(hrm, data.schema, quantity_max).eval()
    with torch.no_grad():  # contractive, as training makes it: a random recurrence is chaotic
        for parameter in model.recurrence.parameters():
            parameter.mul_(0.5)
    export_model(
        model,
        store=store_of(settings),
        name="hrm",
        version="v1",
        settings=settings,
        metrics={},
        dataset_digest="abc",
        storage=storage,
    )
    engine = load_engine(settings, "hrm/v1")
    assert engine.manifest.parameters > 27e6
    assert engine.manifest.metrics["model_mb"] == pytest.approx(expected_mb, abs=2)
