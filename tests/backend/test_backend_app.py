"""The seed's backend as a process of its own: real uvicorn, real onnxruntime, real ledger."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi.routing import iter_route_contexts
from signal_model import nifty_bars, publish_signal_follower

from backend.app import create_app
from backend.backtests import bars_of, newest_model, prepared
from core.errors import DataError, ModelError
from core.settings import Settings, load_settings
from flows.drill_models import publish_policy
from trading.costs import flat_costs
from trading.gateway import OrderGateway
from trading.ledger import Ledger, Order
from trading.paper import PaperBroker

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def state_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state directory with a published model, bars of NIFTY and one paper position."""
    state_dir = tmp_path_factory.mktemp("state")
    settings = settings_of(state_dir)
    publish_signal_follower(settings, "ppo/v1")
    (state_dir / "data").mkdir()
    nifty_bars().to_csv(state_dir / "data" / "NIFTY_5.csv", index=False)
    ledger = Ledger(state_dir / "paper.db")
    gateway = OrderGateway(ledger, settings.trading)
    order = Order("NIFTY_5:1", "NIFTY_5", 4.0, "champion:ppo/v1", epoch=0, at_ns=1, bar_ns=1)
    gateway.submit(order)
    PaperBroker(gateway, flat_costs(10.0)).fill(order, 100.0, bar_ns=1)
    ledger.close()
    return state_dir


def settings_of(state_dir: Path) -> Settings:
    return load_settings(preset="compact", environ={"HRM_PATHS__STATE_DIR": str(state_dir)})


@contextmanager
def backend(
    state_dir: Path, port: int = 0, environment: dict[str, str] | None = None, arguments: Sequence[str] = ()
) -> Iterator[tuple[subprocess.Popen[str], dict[str, Any]]]:
    """The process and its first log line that says where it listens or why it cannot."""
    variables = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "HRM_PATHS__STATE_DIR": str(state_dir),
        "HRM_PRESET": "compact",
    }
    command = [sys.executable, "-m", "backend", "--port", str(port), *arguments]
    with subprocess.Popen(command, env=variables | (environment or {}), stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            lines = (line for line in process.stderr if line.startswith("{"))
            said = (json.loads(line) for line in lines)
            yield process, next(line for line in said if line["event"] in ("listening", "cannot_start"))
        finally:
            process.terminate()


@pytest.fixture(scope="module")
def client(state_dir: Path) -> Iterator[httpx.Client]:
    with backend(state_dir) as (_, listening):
        headers = {"Authorization": f"Bearer {(state_dir / 'api_token').read_text().strip()}"}
        url = f"http://127.0.0.1:{listening['port']}"
        with httpx.Client(base_url=url, headers=headers, timeout=60.0, trust_env=False) as client:
            yield client


def test_a_backtest_answers_the_seed_s_document(client: httpx.Client) -> None:
    answer = client.post(
        "/api/backtest/run",
        json={"symbol": "NIFTY_5", "start_date": "2023-01-12", "end_date": "2023-01-16", "initial_capital": 100000},
    )
    assert answer.status_code == 200, answer.text
    result = answer.json()
    assert (result["start_date"], result["end_date"], result["sessions"]) == ("2023-01-12", "2023-01-16", 3)
    assert result["final_equity"] == pytest.approx(100000 * (1 + result["total_return"]))
    assert result["trades"] > 0
    assert result["model"] == "ppo/v1"
    assert result["instrument"] == "NIFTY"
    assert result["lots"] == "orders are whole lots of NIFTY (50 units), one at least"
    metrics = result["hrm_metrics"]
    assert metrics["avg_reasoning_depth"] == metrics["computation_efficiency"] == 1.0
    assert metrics["hierarchical_convergence"] == 1.0
    assert metrics["hrm_convergence_stability"] is None
    assert metrics["halting_reasons"] == {"single_pass": result["decisions"]}
    assert sum(quarter["decisions"] for quarter in metrics["depth_by_complexity"]) == result["decisions"]
    assert result["performance"]["sharpe"] is None  # of three sessions


def test_positions_are_those_of_the_ledger(client: httpx.Client) -> None:
    answer = client.get("/api/trading/positions").json()
    assert answer["positions"] == [
        {
            "symbol": "NIFTY_5",
            "units": 4.0,
            "average_price": 100.0,
            "realised": pytest.approx(-0.4),
            "costs": pytest.approx(0.4),
            "fills": 1,
            "ledger": "paper.db",
            "what": "replayed on paper",
            "owner": "champion:ppo/v1",
            "mode": "normal",
        }
    ]
    assert answer["problems"] == {}


def test_without_a_ledger_there_are_no_positions_and_none_is_made(tmp_path: Path) -> None:
    with backend(tmp_path) as (_, listening):
        token = (tmp_path / "api_token").read_text().strip()
        answer = httpx.get(
            f"http://127.0.0.1:{listening['port']}/api/trading/positions",
            headers={"Authorization": f"Bearer {token}"},
            trust_env=False,
        )
    assert answer.json() == {"positions": [], "problems": {}}
    assert not (tmp_path / "paper.db").exists()


def test_every_route_but_health_and_the_bare_page_needs_the_token(client: httpx.Client, state_dir: Path) -> None:
    routes = list(iter_route_contexts(create_app(settings_of(state_dir)).routes))
    paths = [(method, route.path) for route in routes for method in route.methods or ()]
    assert {"/health/live", "/api/backtest/run", "/api/trading/kill"} <= {path for _, path in paths}
    for headers in ({}, {"Authorization": "Bearer wrong"}):
        with httpx.Client(base_url=client.base_url, headers=headers, trust_env=False) as stranger:
            for method, path in [*paths, ("GET", "/nothing")]:
                shell = path == "/dashboard" or path.startswith("/dashboard/static/")  # the same for everybody
                expected = 200 if path in ("/health/live", "/metrics") or shell else 401
                assert stranger.request(method, path).status_code == expected, path


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"symbol": "BANKNIFTY"}, 422, "unknown_symbol"),
        ({"symbol": "../../etc/passwd"}, 422, "request_invalid"),
        ({"symbol": "NIFTY_5", "start_date": "2031-01-01"}, 422, "no_sessions"),
        ({"symbol": "NIFTY_5", "start_date": "2023-02-01", "end_date": "2023-01-01"}, 422, "request_invalid"),
        ({"symbol": "NIFTY_5", "initial_capital": 0}, 422, "request_invalid"),
        ({"symbol": "NIFTY_5", "leverage": 10}, 422, "request_invalid"),
        ({"symbol": "NIFTY_5", "model": "hrm/v9"}, 409, "model_not_found"),
        ({}, 422, "request_invalid"),
    ],
)
def test_a_bad_request_is_a_named_problem(
    client: httpx.Client, body: dict[str, object], status: int, code: str
) -> None:
    answer = client.post("/api/backtest/run", json=body)
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert answer.headers["content-type"] == "application/problem+json"


def test_not_finite_capital_is_refused(client: httpx.Client) -> None:
    answer = client.post("/api/backtest/run", content=b'{"symbol": "NIFTY_5", "initial_capital": NaN}')
    assert answer.status_code == 422


def test_bad_bars_are_refused_with_their_problems(client: httpx.Client, state_dir: Path) -> None:
    bars = nifty_bars()
    bars.loc[5, "close"] = -1.0
    bars.to_csv(state_dir / "data" / "BAD.csv", index=False)
    answer = client.post("/api/backtest/run", json={"symbol": "BAD"})
    assert (answer.status_code, answer.json()["code"]) == (422, "bad_bars")
    assert "non_positive_price: 1, first at row 6" in answer.json()["detail"]


def test_a_busy_port_ends_with_exit_code_2_and_the_remedy(client: httpx.Client, state_dir: Path) -> None:
    with backend(state_dir, port=client.base_url.port or 0) as (process, said):
        assert said["code"] == "port_busy"
        assert "another --port" in said["error"]
        assert process.wait(timeout=30) == 2


def test_it_ends_cleanly_when_told_to(state_dir: Path) -> None:
    with backend(state_dir) as (process, _):
        process.terminate()
        assert process.wait(timeout=30) == 0


def test_the_synthetic_market_needs_no_file_and_is_the_same_every_time(state_dir: Path) -> None:
    settings = settings_of(state_dir)
    bars = bars_of("SYNTHETIC", settings).part(0, 75 * 20)
    results = [prepared(settings, "ppo/v1", bars).run().result.total_return for _ in range(2)]
    assert results[0] == results[1] != 0.0


def test_a_model_brings_its_own_window_and_patches(state_dir: Path) -> None:
    """Settings say what the next training observes; a published model looks at what it was trained on."""
    plain = settings_of(state_dir)
    sizes = {"HRM_OBSERVATION__WINDOW": "40", "HRM_OBSERVATION__PATCH": "10"}
    other = load_settings(preset="compact", environ={"HRM_PATHS__STATE_DIR": str(state_dir)} | sizes)
    results = [prepared(each, "ppo/v1", bars_of("NIFTY_5", each)).run().result for each in (plain, other)]
    np.testing.assert_array_equal(results[0].equity, results[1].equity)


def test_a_model_of_other_features_is_refused(state_dir: Path, tmp_path: Path) -> None:
    settings = settings_of(tmp_path)
    publish_policy(tmp_path / "models", "ppo/other")  # of two features that nobody computes
    with pytest.raises(ModelError, match="another observation schema"):
        prepared(settings, "ppo/other", bars_of("NIFTY_5", settings_of(state_dir)))


def test_bars_of_another_timeframe_are_refused(state_dir: Path) -> None:
    settings = settings_of(state_dir)
    bars = bars_of("NIFTY_5", settings)
    first = bars.timestamps[np.flatnonzero(bars.first_of_session)][np.cumsum(bars.first_of_session) - 1]
    hourly = replace(bars, timestamps=first + 3 * (bars.timestamps - first))
    with pytest.raises(DataError, match="bars of 900 s"):
        prepared(settings, "ppo/v1", hourly)


def test_what_is_traded_is_whole_lots_where_they_are_known(state_dir: Path) -> None:
    settings = settings_of(state_dir)
    bars = bars_of("NIFTY_5", settings)
    lots = {}
    for symbol, name in ((None, "NIFTY_5"), ("BANKNIFTY", "NIFTY_5"), (None, "MINE")):
        tested = prepared(settings, "ppo/v1", replace(bars, name=name), symbol=symbol).run()
        lots[symbol, name] = set(np.unique(np.abs(tested.result.journal.units)))
    assert lots == {(None, "NIFTY_5"): {0.0, 50.0}, ("BANKNIFTY", "NIFTY_5"): {0.0, 25.0}, (None, "MINE"): {0.0, 20.0}}


def test_before_the_lots_are_known_single_units_are_traded_and_it_says_so(state_dir: Path) -> None:
    settings = settings_of(state_dir)
    bars = bars_of("NIFTY_5", settings)
    then = replace(bars, name="BANKNIFTY", timestamps=bars.timestamps - 4 * 365 * 24 * 3600 * 10**9)
    tested = prepared(settings, "ppo/v1", then).run()
    assert set(np.unique(np.abs(tested.result.journal.units))) == {0.0, 20.0}
    assert tested.lots == "the lots of BANKNIFTY are not known for these days: single units are traded"


def test_an_unknown_instrument_is_named_with_the_known_ones(state_dir: Path) -> None:
    settings = settings_of(state_dir)
    with pytest.raises(DataError, match="NIFTY") as error:
        prepared(settings, "ppo/v1", bars_of("NIFTY_5", settings), symbol="RELIANCE")
    assert error.value.code == "unknown_symbol"


def test_bars_too_few_for_a_decision_are_refused(state_dir: Path) -> None:
    settings = settings_of(state_dir)
    with pytest.raises(DataError, match="too few"):
        prepared(settings, "ppo/v1", bars_of("NIFTY_5", settings).part(0, 90))


def test_the_newest_hrm_is_preferred_and_an_empty_store_is_an_error(state_dir: Path, tmp_path: Path) -> None:
    assert newest_model(state_dir / "models") == "ppo/v1"
    with pytest.raises(ModelError, match="no published model"):
        newest_model(tmp_path)
