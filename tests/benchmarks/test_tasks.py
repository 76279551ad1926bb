"""`hrm bench learning` end to end, a second each: keys, consistency, and what must hold whatever was learned."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import instrument, learning, random_walk, walk_forward
from benchmarks.contenders import train
from core.errors import ConfigError, DataError
from core.settings import Settings
from flows.tracking import trials
from tests.benchmarks.fixed_keys import fixed, measured
from trading import dataset
from trading.dataset import Dataset
from trading.files import to_frame, write_bars
from trading.synthetic import simulate

SCORED = {"score", "ci95_low", "ci95_high"}


@pytest.fixture(scope="module")
def answer(small: Settings) -> dict[str, Any]:
    return learning.run(small, task="instrument", budget_s=1.0, seeds=1)


def test_every_contender_answers_with_a_score_its_interval_and_its_time(answer: dict[str, Any]) -> None:
    for name in instrument.CONTENDERS:
        assert {*SCORED, "train_s", "scores", "rows", "looks"} <= set(answer[name])
        assert answer[name]["ci95_low"] <= answer[name]["score"] <= answer[name]["ci95_high"]
    assert measured("learning", answer) == set(fixed("learning", answer)) - {"greedy", "infeasible_ratio"}  # of books
    assert SCORED | {"train_s"} <= answer["hold"].keys()
    assert answer["data_s"] >= 0
    assert len(answer["score_by_segments"]) == 16


def test_the_answer_is_plain_json_without_a_number_that_is_none(answer: dict[str, Any]) -> None:
    assert json.loads(json.dumps(answer, allow_nan=False)) == answer


def test_the_ceiling_of_the_window_lies_between_nothing_and_the_oracle(answer: dict[str, Any]) -> None:
    assert 0.3 < answer["window_ceiling"] < 1.0
    assert answer["share_of_ceiling"] == pytest.approx(answer["hrm"]["score"] / answer["window_ceiling"])


def test_the_paired_difference_is_the_difference_of_the_scores(answer: dict[str, Any]) -> None:
    assert answer["hrm_minus_ppo"]["score"] == pytest.approx(answer["hrm"]["score"] - answer["ppo"]["score"])
    assert answer["hrm_better_with_every_seed"] == (answer["hrm"]["score"] > answer["ppo"]["score"])


def test_the_controls_are_of_the_same_size_and_of_the_same_compute(answer: dict[str, Any]) -> None:
    assert answer["transformer"]["parameters"] == answer["hrm"]["parameters"]
    assert answer["transformer_same_compute"]["block_passes"] == answer["hrm"]["block_passes"]
    assert answer["transformer"]["block_passes"] < answer["hrm"]["block_passes"]


def test_ppo_trains_for_seconds_instead_of_samples(small: Settings, small_data: Dataset) -> None:
    contender = train("ppo", small_data, small, budget_s=1.0, seed=0)
    assert 0 < contender.facts["rows"] < small.training_params.ppo.total_timesteps
    assert contender.facts["looks"]


def test_on_a_random_walk_staying_flat_earns_nothing_and_trading_costs(small: Settings) -> None:
    found = random_walk.run(small, random_walk.CONTENDERS, budget_s=1.0, seeds=2)
    assert found["hold"]["return_bps_per_day"] == 0.0
    assert found["hold"]["hold_ratio"] == 1.0
    assert found["buy_and_hold"]["hold_ratio"] == 0.0
    assert found["buy_and_hold"]["turnover_per_day"] == 2.0
    assert found["hold_ratio"] == found["hrm"]["hold_ratio"]
    assert all(math.isfinite(found["ppo"][key]) for key in ("return_bps_per_day", "ci95_low", "ci95_high"))


def test_a_file_is_walked_forward_and_its_test_sessions_are_pooled(small: Settings, tmp_path: Path) -> None:
    bars = simulate(small.synthetic_market, sessions=110, seed=5).bars
    write_bars(to_frame(bars), tmp_path / "bars.parquet")
    found = learning.run(small, task="instrument", budget_s=0.5, seeds=3, data=tmp_path / "bars.parquet")
    assert (found["task"], found["seeds"], found["folds"]) == ("real", 1, walk_forward.FOLDS)
    assert fixed("learning", found)["window_ceiling"] is None
    assert found["hold"]["return_pct"] == 0.0
    assert found["hrm"]["return_pct"] == pytest.approx(sum(found["hrm"]["return_pct_by_fold"]))
    assert found["hrm"]["trials"] >= walk_forward.FOLDS
    difference = found["hrm"]["return_pct"] - found["ppo"]["return_pct"]
    assert found["hrm_minus_ppo"]["return_pct"] == pytest.approx(difference)
    compared = found["hrm_for_ppo"]
    assert compared["difference_bps"]["value"] * compared["sessions"] == pytest.approx(100 * difference)
    assert compared["verdict"] in ("promote", "keep", "undecided")
    assert found["hold"]["break_even_cost_multiple"] is None
    sweep = found["buy_and_hold"]["return_bps_by_cost_multiple"]
    assert sweep["0"] > sweep["1"] > sweep["4"]
    for name in ("hrm", "ppo", "hold"):
        assert 0.0 <= found[name]["deflated_sharpe"] <= 1.0
    assert 0.0 <= found["best_of_all_p_value"] <= 1.0
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_the_looks_of_a_walk_are_on_record_for_whoever_asks_later(small: Settings, tmp_path: Path) -> None:
    write_bars(to_frame(simulate(small.synthetic_market, sessions=110, seed=6).bars), tmp_path / "bars.parquet")
    first = walk_forward.run(small, ("ppo",), budget_s=0.3, data=tmp_path / "bars.parquet")
    assert not first["trials_complete"]  # nothing was known of earlier ones
    assert first["trials_on_record"] == first["ppo"]["trials"] > 0
    digest = dataset.walk_forward(small, tmp_path / "bars.parquet", 1)[0].digest
    assert trials(small.paths.state_dir, digest).count == first["trials_on_record"]


def test_a_choice_is_overfitted_by_the_mean_of_the_folds_that_had_one() -> None:
    rng = np.random.default_rng(0)
    noise = [rng.standard_normal(64) for _ in range(8)]
    skilled = [*noise, rng.standard_normal(64) + 1.0]
    both = walk_forward.overfitted([noise, skilled])
    assert both == pytest.approx((walk_forward.overfitted([noise]) + walk_forward.overfitted([skilled])) / 2)
    assert walk_forward.overfitted([skilled]) < 0.05
    assert walk_forward.overfitted([[noise[0]], [one[:31] for one in noise]]) is None
    assert walk_forward.overfitted([]) is None


def test_a_file_too_short_to_walk_is_refused(small: Settings, tmp_path: Path) -> None:
    write_bars(to_frame(simulate(small.synthetic_market, sessions=40, seed=5).bars), tmp_path / "bars.parquet")
    with pytest.raises(DataError, match="bring more history"):
        learning.run(small, task="instrument", budget_s=0.5, seeds=1, data=tmp_path / "bars.parquet")


def test_an_unknown_contender_is_named_with_those_there_are(small: Settings) -> None:
    with pytest.raises(ConfigError, match=r"no such contender: lstm; there are hrm, ppo"):
        learning.run(small, task="instrument", budget_s=1.0, seeds=1, contenders=("hrm", "lstm"))


def test_the_learning_benchmark_needs_no_prefect_and_no_service() -> None:
    program = (
        "import sys, cli, benchmarks.learning, benchmarks.instrument, benchmarks.random_walk, benchmarks.walk_forward\n"
        "print(sorted({'prefect', 'fastapi', 'onnxruntime', 'sqlalchemy'} & set(sys.modules)))"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=root, check=True)
    assert done.stdout.strip() == "[]"
