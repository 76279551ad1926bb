"""`hrm bench engine`: what its numbers are of; the numbers themselves are a machine's."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from benchmarks import engine_process
from benchmarks.engine import Task, flat, products, run
from core.settings import load_settings
from hrm.export import MarketSegment, export_model, export_segment
from hrm.inference import Product, laid_out
from hrm.model import HierarchicalReasoningModel
from tests.benchmarks.fixed_keys import fixed, measured
from trading.features import schema

SETTINGS = load_settings(preset="compact", environ={})
BATCHES = {1, 8, 16, 32}


@pytest.fixture(scope="module")
def model() -> HierarchicalReasoningModel:
    hrm, seen = SETTINGS.hierarchical_reasoning_model, schema(SETTINGS.observation)
    return HierarchicalReasoningModel(hrm, seen, 1000.0).eval()


@pytest.mark.parametrize("preset", ["compact", "default", "paper_27m"])
def test_the_floor_is_of_every_weight_of_the_blocks_as_often_as_a_segment_uses_it(preset: str) -> None:
    settings = load_settings(preset=preset, environ={})
    hrm = settings.hierarchical_reasoning_model
    net = laid_out(HierarchicalReasoningModel(hrm, schema(settings.observation), 1000.0))
    expected = 0
    for name, layer in net.named_modules():
        if isinstance(layer, Product):
            cycles, steps = hrm.hierarchical.N_cycles, hrm.hierarchical.T_timesteps
            expected += layer.weight.numel() * cycles * (steps if ".f_L." in name else 1)
    assert sum(inputs * outputs * times for inputs, outputs, times in products(settings)) == expected


def test_a_process_tells_the_time_of_segments_beside_their_floor(
    model: HierarchicalReasoningModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_process, "TURNS_S", 0.1)
    monkeypatch.setattr(engine_process, "FULL_DEPTH_S", 0.1)
    store = tmp_path / "models"
    export_model(
        model,
        store=store,
        name="hrm",
        version="v1",
        settings=SETTINGS,
        metrics={},
        dataset_digest="none",
        storage="static_int8",
        observed=MarketSegment(model).drawn(8, np.random.default_rng(0)),
        traced=export_segment(model),
    )
    task = Task(str(store), "hrm/v1", model.tokens, products(SETTINGS))
    found = engine_process.measure(json.loads(json.dumps(asdict(task))))
    told = flat({"static_int8": json.loads(json.dumps(found))}, "static_int8")
    assert told["segment_ms"] == found["segment_ms"][1]
    assert told["rows_per_s"] == found["rows_per_s"][32]
    assert found["provider"] == "CPUExecutionProvider"
    for name in ("segment_ms", "floor_ms", "ratio_to_floor", "rows_per_s"):
        assert found[name].keys() == BATCHES
        assert all(value > 0 for value in found[name].values())
    for batch in BATCHES:
        assert found["rows_per_s"][batch] == pytest.approx(1e3 * batch / found["segment_ms"][batch])
    assert 0 < found["full_depth_p50_ms"] <= found["full_depth_p99_ms"]
    assert found["rss_mb"] > 0
    assert found["ready_s"] > 0


@pytest.mark.slow
def test_every_format_is_measured_in_a_process_without_torch() -> None:
    found = run(SETTINGS)
    assert set(found["formats"]) == {"fp32", "static_int8"}
    assert measured("engine", found) == set(fixed("engine", found))
    assert found["format"] == "fp32"
    for each in found["formats"].values():
        assert each["rss_mb"] < 300
        assert set(map(int, each["rows_per_s"])) == BATCHES
