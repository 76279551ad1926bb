"""Formats of a model file under their gate: trained weights, the serving engine, a market with a known optimum."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_migration import TINY

from core.errors import ModelError
from core.gates import Limit
from core.manifest import Storage
from core.settings import Settings, load_settings
from flows.variants import agreement, cost_of_storage, publish_variant, storage_within_limit
from hrm.agent import HRMAgent
from hrm.batch import MarketSampler, MarketTable
from hrm.decide import decide
from hrm.export import export_model, export_segment
from hrm.model import HierarchicalReasoningModel
from serving.engine import load_engine
from trading.dataset import Dataset, build_dataset, training_table

HRM = "HRM_HIERARCHICAL_REASONING_MODEL__"
SMALL = TINY | {
    f"{HRM}HIERARCHICAL__N_CYCLES": "1",
    f"{HRM}HIERARCHICAL__T_TIMESTEPS": "1",
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


def publish(model: HierarchicalReasoningModel, settings: Settings, version: str, storage: Storage):
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


@pytest.mark.parametrize("storage", ["fp32", "fp16", "int8"])
def test_a_variant_that_passes_is_published_with_the_gates_numbers_and_served_as_it_is(
    trained: HierarchicalReasoningModel, settings: Settings, data: Dataset, storage: Storage
) -> None:
    manifest = publish(trained, settings, f"good-{storage}", storage)
    assert manifest.storage == storage
    assert manifest.metrics["validation"] == 1.0
    assert manifest.metrics["action_agreement_ratio"] >= 0.99
    assert abs(manifest.metrics["excess_regret_bps_per_day"]) <= 0.1
    engine = load_engine(settings, f"hrm/good-{storage}")
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


def test_a_variant_that_fails_its_gate_is_refused_by_how_much_and_not_published(
    trained: HierarchicalReasoningModel, settings: Settings
) -> None:
    strict = with_gate(settings, action_agreement_ratio={"above": 1.0})
    with pytest.raises(ModelError, match=r"hrm/bad \(int8\): action_agreement_ratio is .*, must be > 1: a test"):
        publish(trained, strict, "bad", "int8")
    assert not (store_of(settings) / "hrm" / "bad").exists()


@pytest.fixture
def exported_once(trained: HierarchicalReasoningModel, segment: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exports of `trained` in float32 take no time."""
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
