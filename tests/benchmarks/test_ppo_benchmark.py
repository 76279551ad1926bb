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


def test_both_learners_are_timed_in_one_run(small: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "SAMPLES", 64)
    monkeypatch.setattr(bench, "SESSIONS", 30)
    monkeypatch.setitem(bench.DEFAULTS, "n_steps", 4)
    monkeypatch.setitem(bench.OUT_OF_THE_BOX, "n_steps", 64)
    answer = bench.run(small, runs=2)
    assert json.loads(json.dumps(answer, allow_nan=False)) == answer
    assert {"commit", "machine", "runs", "ratio", "times_out_of_the_box"} <= set(answer)
    assert answer["threads"] == 1
    assert answer["ratio"] == answer["defaults"]["ratio"]
    for found in (answer["defaults"], answer["settings"]):
        assert found["ratio"] == pytest.approx(found["samples_per_s"] / found["sb3_samples_per_s"])
        assert len(found["ratios"]) == 2
        assert statistics.median(found["ratios"]) > 0
    assert torch.get_num_threads() == 1


def test_without_stable_baselines3_it_says_what_to_install(small: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "benchmarks.sb3", raising=False)
    monkeypatch.delattr("benchmarks.sb3", raising=False)
    monkeypatch.setitem(sys.modules, "stable_baselines3", None)
    with pytest.raises(ConfigError, match=r"pip install 'hrm-trading\[dev\]'") as caught:
        bench.run(small)
    assert caught.value.code == "missing_extra"
