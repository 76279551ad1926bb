"""A challenger from the latest bars: trained and judged once, offered or begun, and never twice on the same bars."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from datetime import date, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_migration import tiny_settings

from core.errors import ConfigError, DataError
from core.gates import Verdict
from core.settings import Settings
from delivery.transitions import RolloutState
from flows import drift_check, retraining
from flows.drift_check import DRIFT, checked
from flows.fyers_bars import bars_file, last_whole_day
from flows.phases import dataset_of
from flows.retraining import described, retrain
from flows.run_state import inputs_of, load_run, migration_lock, open_run
from flows.service_process import service_process
from serving import calls
from serving.client import ServiceClient
from trading.dataset import Dataset, build_dataset
from trading.files import to_frame, write_bars
from trading.synthetic import simulate

pytestmark = pytest.mark.usefixtures("prefect_server")


@pytest.fixture(scope="module")
def state_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("retraining")


@pytest.fixture(scope="module")
def settings(state_dir: Path) -> Settings:
    return tiny_settings(state_dir)


@pytest.fixture(scope="module")
def first(settings: Settings, prefect_server: dict[str, str]) -> dict[str, Any]:
    return retrain(settings, None, seed=0)


def test_it_trains_judges_and_offers_with_the_command_to_begin(first: dict[str, Any], settings: Settings) -> None:
    assert first["verdict"]["verdict"] == Verdict.PASS
    assert first["rollout"]["command"] == f"hrm rollout start --challenger {first['rollout']['offered']}"
    assert first["against"] is None  # nobody decides
    run = load_run(settings.paths.state_dir / "runs" / first["run"])
    assert run.step("retraining") is not None and run.outcome is None  # `hrm migrate` goes on with it
    page = described(run, first | {"quality": "simulated"})
    assert first["rollout"]["command"] in page and "drift" in page


def test_the_same_bars_are_not_trained_on_again_and_it_says_where_the_results_are(
    first: dict[str, Any], settings: Settings
) -> None:
    again = retrain(settings, None, seed=0)
    assert again["run"] == first["run"] and "same bars" in again["skipped"]


def test_one_that_was_killed_before_it_said_what_became_of_it_goes_on(
    first: dict[str, Any], settings: Settings
) -> None:
    run = load_run(settings.paths.state_dir / "runs" / first["run"])
    trained = run.phase("hrm_training")
    said = run.folder / "steps" / "retraining.json"
    said.unlink()  # as if it had been killed between training and offering
    again = retrain(settings, None, seed=0)
    assert again["run"] == first["run"] and again["rollout"] == first["rollout"]
    assert run.phase("hrm_training") == trained and said.exists()


def test_a_skip_repeats_the_offer_that_stands(first: dict[str, Any], settings: Settings) -> None:
    assert first["rollout"]["command"] in retrain(settings, None, seed=0)["skipped"]


def test_deployed_a_skip_is_seen_as_one(
    first: dict[str, Any], state_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retraining, "load_settings", lambda: tiny_settings(state_dir))
    state = retraining.retraining.fn(seed=0)
    assert (state.name, state.type.value) == ("Skipped", "COMPLETED")
    assert first["run"] in state.message


def test_a_service_takes_the_challenger_into_the_shadow_and_a_second_one_waits(
    first: dict[str, Any], settings: Settings
) -> None:
    run = load_run(settings.paths.state_dir / "runs" / first["run"])
    champion = run.result("ppo_baseline_capture")["model"]
    with service_process(settings, champion=champion) as service:
        there = settings.model_copy(
            update={"serving": settings.serving.model_copy(update={"port": int(service.url.rpartition(":")[2])})}
        )
        result = retrain(there, None, seed=1, weights="scratch", start_rollout=True)
        assert result["rollout"] == {
            "started": load_run(run.folder.parent / result["run"]).result("hrm_training")["model"]
        }
        assert result["against"]["champion"] == champion and "ci95_low" in result["against"]
        with ServiceClient(service.url, service.token) as client:
            state = client.call(calls.rollout())
        assert (state.phase, state.weight, state.challenger) == ("shadow", 0, result["rollout"]["started"])
        busy = retraining._rollout(there, run, first["verdict"], None, begin=True)
        assert "phase shadow" in busy["why_not_started"] and "offered" in busy
        assert retraining._start(there, run, result["rollout"]["started"], champion) is None  # it has begun already
        assert "phase shadow" in str(retraining._start(there, run, "hrm/other", champion))
        with ServiceClient(service.url, service.token) as client:
            client.call(calls.command("abort"))
        changed = retraining._start(there, run, first["rollout"]["offered"], "ppo/before")
        assert changed == f"{champion} decides by now, and it was judged against ppo/before"


def test_who_is_shown_to_earn_less_is_kept_back(first: dict[str, Any], settings: Settings) -> None:
    run = load_run(settings.paths.state_dir / "runs" / first["run"])
    worse = {"champion": "hrm/old", "advantage_bps_per_day": -3.0, "ci95_low": -5.0, "ci95_high": -1.0}
    assert "shown to earn less" in retraining._rollout(settings, run, first["verdict"], worse, begin=True)["kept_back"]
    failed = {"phase": "hrm_training", "verdict": "fail", "reason": "p99_ms 80 is above 50"}
    assert "p99_ms" in retraining._rollout(settings, run, failed, None, begin=True)["kept_back"]


@pytest.mark.slow  # another training
def test_it_goes_on_from_the_champions_weights(
    first: dict[str, Any], settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_run(settings.paths.state_dir / "runs" / first["run"]).result("hrm_training")["model"]
    monkeypatch.setattr(retraining, "live_state", lambda _: RolloutState(champion=model))
    result = retrain(settings, None, seed=0, weights="champion")
    run = load_run(settings.paths.state_dir / "runs" / result["run"])
    assert run.inputs.start_from == model and run.id != first["run"]
    before = load_run(settings.paths.state_dir / "runs" / first["run"]).result("hrm_training")["curve"][-1]
    assert run.result("hrm_training")["curve"][-1]["loss_bps"] != before["loss_bps"]
    monkeypatch.setattr(retraining, "live_state", lambda _: RolloutState(champion="ppo/v1"))
    assert retrain(settings, None, seed=0, weights="champion")["run"] == first["run"]  # a PPO decides: as from scratch


def test_damaged_bars_are_refused_before_anything_is_trained(settings: Settings, tmp_path: Path) -> None:
    frame = to_frame(simulate(settings.synthetic_market, sessions=80, seed=3).bars)
    frame.loc[frame.index[5::3], "high"] = -1.0
    write_bars(frame, tmp_path / "bad.parquet")
    with pytest.raises(DataError, match="hrm data check"):
        retrain(settings, tmp_path / "bad.parquet", seed=0)


def test_two_at_a_time_are_one_too_many(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retraining, "load_settings", lambda: settings)
    with migration_lock(settings.paths.state_dir), pytest.raises(ConfigError, match="is migrating"):
        retraining.retraining.fn()


def test_bars_that_change_while_they_are_read_are_refused(settings: Settings, tmp_path: Path) -> None:
    file = tmp_path / "bars.parquet"
    frame = to_frame(simulate(settings.synthetic_market, sessions=80, seed=3).bars)
    write_bars(frame, file)
    run = open_run(inputs_of(settings, file, 0))
    write_bars(frame.iloc[: -settings.synthetic_market.bars_per_session], file)
    with pytest.raises(DataError, match=r"other bars than run .* began with") as refused:
        dataset_of(run)
    assert refused.value.code == "data_changed"


def test_two_sources_of_bars_are_one_too_many(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retraining, "load_settings", lambda: settings)
    with pytest.raises(ConfigError, match="name one of them"):
        retraining.retraining.fn(data="bars.parquet", symbol="NSE:NIFTY50-INDEX")
    assert bars_file(settings, "", "") is None  # as the deployment says it without either
    assert bars_file(settings, "bars.parquet", "") == Path("bars.parquet")


@pytest.mark.parametrize(
    ("now", "last"),
    [
        ("2026-11-23T10:05:00+00:00", "2026-11-22"),  # Monday 15:35 in India: futures trade until 15:40
        ("2026-11-23T10:15:00+00:00", "2026-11-23"),
        ("2026-11-22T20:00:00+00:00", "2026-11-22"),  # Monday 01:30 in India, Sunday in UTC
        ("2026-11-22T03:00:00+00:00", "2026-11-22"),  # a Sunday has no session that could be unfinished
        ("2026-01-26T06:00:00+00:00", "2026-01-26"),  # nor has a holiday
    ],
)
def test_no_half_session_is_fetched(now: str, last: str) -> None:
    assert last_whole_day(datetime.fromisoformat(now)) == date.fromisoformat(last)


# Drift


@pytest.fixture(scope="module")
def data(settings: Settings) -> Dataset:
    longer = settings.synthetic_market.model_copy(update={"train_sessions": 300, "test_sessions": 60})
    return build_dataset(settings.model_copy(update={"synthetic_market": longer}), None, 0)


def moved(data: Dataset) -> Dataset:
    features = data.test.bar_features.copy()
    features[:, 0] = features[:, 0] * 3 + 2
    return replace(data, test=replace(data.test, bar_features=features))


def test_the_same_market_does_not_drift(data: Dataset) -> None:
    said = checked(data)
    assert said["verdict"] != "fail" and said["reason"] == ""
    assert {row["feature"] for row in said["features"]} <= set(data.schema.bar_features)
    json.dumps(said, allow_nan=False)


def test_a_market_that_moved_is_told_once_with_the_features_that_did(
    data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[dict[str, Any]] = []

    class Prefect(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            heard.extend(json.loads(self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Prefect)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("PREFECT_API_URL", f"http://127.0.0.1:{server.server_port}/api")
    try:
        said = [checked(moved(data)) for _ in range(2)]
    finally:
        server.shutdown()
        server.server_close()
    assert said[0]["verdict"] == "fail" and said[0]["reason"].startswith(data.schema.bar_features[0])
    assert [one["event"] for one in heard] == [DRIFT, DRIFT]
    assert heard[0]["id"] == heard[1]["id"]  # Prefect takes an event once
    assert heard[0]["resource"]["prefect.resource.id"].startswith("hrm.data.")


def test_what_is_not_finite_is_not_looked_at(data: Dataset) -> None:
    features = data.test.bar_features.copy()
    features[::2] = np.nan
    broken = replace(data, test=replace(data.test, bar_features=features))
    assert drift_check.checked(broken)["verdict"] in ("pass", "inconclusive")
