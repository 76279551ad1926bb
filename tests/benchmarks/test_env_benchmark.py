"""The environment benchmark: resets in every lock-step, ratios within one run, peers that are absent are told."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import env as benchmark
from benchmarks import peers
from benchmarks.peers import PEERS
from core.settings import Settings, load_settings
from tests.benchmarks.fixed_keys import fixed, measured
from trading.features import schema

RATES = ("index", "window", "own_window", "scalar")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer steps: what is tested is the answer, not the speed."""
    for name, value in {"ROWS": 32, "RUNS": 1, "BLOCK": 4, "INDEX_LOCK_STEPS": 8, "WINDOW_LOCK_STEPS": 8}.items():
        monkeypatch.setattr(benchmark, name, value)
    monkeypatch.setattr(benchmark, "SINGLE_STEPS", 200)
    monkeypatch.setattr(benchmark, "BARS", 3_000)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return load_settings(preset="compact", environ={"HRM_PATHS__STATE_DIR": str(tmp_path)})


@pytest.fixture
def scripts(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder of scripts, and peers whose environments are this Python."""
    folder = settings.paths.state_dir / "scripts"
    folder.mkdir()
    monkeypatch.setattr(peers, "SCRIPTS", folder)
    for name in benchmark.PEERS:
        python = settings.paths.state_dir / "peers" / f"{name}-{PEERS[name].digest}" / "bin" / "python"
        python.parent.mkdir(parents=True)
        python.symlink_to(sys.executable)
    return folder


def test_a_peer_that_is_absent_leaves_rates_and_no_ratio(quick: None, settings: Settings, scripts: Path) -> None:
    found = benchmark.run(settings)
    assert list(scripts.iterdir()) == []
    assert all(found[f"{name}_steps_per_s"] > 0 for name in RATES)
    assert all("exit code 2" in found[name]["absent"] for name in benchmark.PEERS)
    assert not [name for name in found if "_over_" in name]
    assert measured("env", found) == {"index_steps_per_s", "window_steps_per_s", "scalar_steps_per_s"}
    json.dumps(found, allow_nan=False)


def test_ratios_are_those_of_one_run(quick: None, settings: Settings, scripts: Path) -> None:
    for name in benchmark.PEERS:
        (scripts / f"{name}.py").write_text("import json, sys; json.load(sys.stdin); print('{\"steps_per_s\": 10.0}')")
    found = benchmark.run(settings)
    for peer in benchmark.PEERS:
        for name in RATES:
            assert found[f"{name}_over_{peer}"] == found[f"{name}_steps_per_s"] / 10.0
    told = fixed("env", found)
    assert told["gym_trading_env_steps_per_s"] == told["gym_anytrading_steps_per_s"] == 10.0
    assert told["ratio_vs_gym_trading_env"] == told["window_steps_per_s"] / 10.0


def test_rows_stand_at_all_stages_of_their_sessions(settings: Settings) -> None:
    spec = schema(settings.observation)
    market = benchmark._market(settings, spec)
    env = benchmark._endless(market, spec, 1.5).env
    stages = np.bincount(env.last - env.at, minlength=74)
    assert len(env) == 1024
    assert stages.min() >= 1
    assert len(market.bars) == pytest.approx(50_000, rel=0.01)
    wide, wide_schema = benchmark._widened(market, spec)
    assert wide.bar_features.shape[1] == len(set(wide_schema.bar_features)) == 16


@pytest.mark.slow
def test_the_other_environments_are_measured_in_the_same_run(quick: None, settings: Settings) -> None:
    found = benchmark.run(settings)
    assert found["gym_trading_env"]["observation"] == found["window"] == [60, 16]
    assert found["gym_anytrading"]["observation"] == [60, 2]
    assert found["index_over_gym_trading_env"] > 0
