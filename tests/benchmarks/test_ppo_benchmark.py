"""`hrm bench ppo` in seconds: both learners train on the same market, and the numbers are consistent."""

from __future__ import annotations

import json
import statistics
import sys

import pytest
import torch

import benchmarks.ppo as bench
from core.errors import ConfigError
from core.settings import Settings
from tests.benchmarks.fixed_keys import fixed


def test_both_learners_are_timed_in_one_run(small: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "SAMPLES", 64)
    monkeypatch.setattr(bench, "SESSIONS", 30)
    monkeypatch.setitem(bench.DEFAULTS, "n_steps", 4)
    monkeypatch.setitem(bench.OUT_OF_THE_BOX, "n_steps", 64)
    hyper = small.training_params.ppo.model_copy(update={"total_timesteps": 8_000, "n_steps": 19})
    params = small.training_params.model_copy(update={"ppo": hyper})
    answer = bench.run(small.model_copy(update={"training_params": params}), runs=2)
    assert json.loads(json.dumps(answer, allow_nan=False)) == answer
    assert {"commit", "machine", "runs", "ratio", "times_out_of_the_box"} <= set(answer)
    assert answer["threads"] == 1
    assert answer["ratio"] == answer["defaults"]["ratio"]
    for found in (answer["defaults"], answer["settings"]):
        assert found["ratio"] == pytest.approx(found["samples_per_s"] / found["sb3_samples_per_s"])
        assert len(found["ratios"]) == 2
        assert statistics.median(found["ratios"]) > 0
    assert torch.get_num_threads() == 1
    trained = answer["incumbent"]
    assert trained["rows"] == 8_000 // (16 * 19) * 16 * 19
    assert trained["ci95_low"] <= trained["score"] <= trained["ci95_high"] < 1.0
    told = {"samples_per_s": answer["defaults"]["samples_per_s"], "ratio_vs_sb3": answer["ratio"]}
    told |= {"sb3_samples_per_s": answer["defaults"]["sb3_samples_per_s"], "score": trained["score"]}
    assert fixed("ppo", answer) == told


def test_without_stable_baselines3_it_says_what_to_install(small: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "benchmarks.sb3", raising=False)
    monkeypatch.delattr("benchmarks.sb3", raising=False)
    monkeypatch.setitem(sys.modules, "stable_baselines3", None)
    with pytest.raises(ConfigError, match=r"pip install 'hrm-trading\[dev\]'") as caught:
        bench.run(small)
    assert caught.value.code == "missing_extra"
