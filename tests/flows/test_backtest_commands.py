"""`hrm backtest` as a person uses it: numbers, a page, a verdict; and one line where something does not fit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from command_line import Said, said_here
from signal_model import nifty_bars, publish_signal_follower

from core.settings import Settings, load_settings
from flows.drill_models import publish_policy
from trading.dataset import build_dataset
from trading.files import load_market_bars
from trading.market import session_days


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """A state directory with two models, and bars beside it."""
    environ = {
        "HRM_PATHS__STATE_DIR": str(tmp_path / "state"),
        "HRM_PRESET": "compact",
        "HRM_SYNTHETIC_MARKET__TRAIN_SESSIONS": "5",
        "HRM_SYNTHETIC_MARKET__VALIDATION_SESSIONS": "5",
        "HRM_SYNTHETIC_MARKET__TEST_SESSIONS": "30",
    }
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    settings = load_settings(environ=environ)
    publish_signal_follower(settings, "ppo/v1")
    publish_signal_follower(settings, "hrm/v1", sign=-1.0)
    nifty_bars().to_csv(tmp_path / "nifty_5.csv", index=False)
    return settings


@pytest.fixture
def hrm(settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Said]:
    return lambda *arguments: said_here(monkeypatch, capsys, *arguments)


def pages(settings: Settings) -> list[str]:
    return sorted(file.name for file in (settings.paths.state_dir / "backtests").glob("*"))


def test_a_file_is_backtested_and_its_page_is_where_it_says(
    hrm: Callable[..., Said], settings: Settings, tmp_path: Path
) -> None:
    said = hrm("backtest", "--model", "ppo/v1", "--data", tmp_path / "nifty_5.csv", "--cost-sweep", "--json")
    assert said.code == 0, said.err
    told = said.json
    assert (told["model"], told["symbol"], told["instrument"]) == ("ppo/v1", "NIFTY_5", "NIFTY")
    assert "50 units" in told["lots"]
    assert list(told["cost_sweep"]) == ["0", "1", "2", "4"]
    assert told["cost_sweep"]["1"] == pytest.approx(1e4 * told["total_return"] / told["sessions"])
    assert told["report"] == str(settings.paths.state_dir / "backtests" / "ppo-v1-nifty_5.html")
    assert pages(settings) == ["ppo-v1-nifty_5.html"]
    assert "backtest ppo/v1: done" in said.err


def test_people_get_a_table_and_the_path_of_the_page(hrm: Callable[..., Said], tmp_path: Path) -> None:
    page = tmp_path / "here" / "page.html"
    said = hrm("backtest", "--model", "ppo/v1", "--data", tmp_path / "nifty_5.csv", "--report", page)
    assert said.code == 0, said.err
    for words in ("Return", "Sharpe, annual", "Breaks even at", "whole lots of NIFTY", str(page)):
        assert words in said.out.replace("\n", "")
    assert page.read_text().startswith("<!doctype html>")


def test_days_choose_the_sessions_and_not_the_history(hrm: Callable[..., Said], tmp_path: Path) -> None:
    file = tmp_path / "nifty_5.csv"
    whole = hrm("backtest", "--model", "ppo/v1", "--data", file, "--json").json
    some = hrm(
        "backtest", "--model", "ppo/v1", "--data", file, "--from", "2023-01-12", "--to", "2023-01-13", "--json"
    ).json
    assert (some["start_date"], some["end_date"], some["sessions"]) == ("2023-01-12", "2023-01-13", 2)
    assert some["sessions"] < whole["sessions"]


def test_days_that_a_model_was_trained_on_are_left_out_unless_asked_for(
    hrm: Callable[..., Said], settings: Settings, tmp_path: Path
) -> None:
    file = tmp_path / "trained_on.csv"
    nifty_bars(90).to_csv(file, index=False)
    digest = load_market_bars(file).digest
    publish_signal_follower(settings, "hrm/trained", dataset_digest=digest)
    unseen = str(session_days(build_dataset(settings, file, seed=0).test)[0])
    arguments = ("backtest", "--model", "hrm/trained", "--data", file, "--json")
    told = hrm(*arguments).json
    assert told["start_date"] == unseen
    assert not told["in_sample"]
    everything = hrm(*arguments, "--from", "2023-01-02").json
    assert everything["start_date"] < unseen
    assert everything["in_sample"]
    assert "IN SAMPLE" in Path(everything["report"]).read_text()
    pair = ("backtest", "--compare", "ppo/v1", "hrm/trained", "--data", file, "--json")
    assert hrm(*pair).json["sessions"] == told["sessions"]
    refused = hrm(*pair, "--from", "2023-01-02")
    assert refused.code == 2
    assert "trained on" in refused.err
    assert hrm("backtest", "--model", "ppo/v1", "--data", file, "--json").json["seen_until"] is None


def test_without_a_file_held_out_sessions_of_the_synthetic_market_are_tested(hrm: Callable[..., Said]) -> None:
    told = [hrm("backtest", "--model", "ppo/v1", "--seed", seed, "--json").json for seed in (1, 1, 2)]
    assert told[0] == told[1]
    assert told[0]["total_return"] != told[2]["total_return"]
    assert told[0]["sessions"] == 30
    assert told[0]["cost_bps"] == pytest.approx(1.5)
    assert told[0]["instrument"] is told[0]["lots"] is None


def test_two_models_are_compared_on_the_same_sessions(hrm: Callable[..., Said], settings: Settings) -> None:
    said = hrm("backtest", "--compare", "ppo/v1", "hrm/v1", "--json")
    assert said.code == 0, said.err
    told = said.json
    assert told["verdict"] in ("promote", "keep", "undecided")
    assert (told["champion"]["name"], told["challenger"]["name"], told["sessions"]) == ("ppo/v1", "hrm/v1", 30)
    assert pages(settings) == ["ppo-v1-vs-hrm-v1-synthetic-0.html"]
    alone = [hrm("backtest", "--model", model, "--json").json for model in ("ppo/v1", "hrm/v1")]
    earned = [1e4 * one["total_return"] / one["sessions"] for one in alone]
    assert told["difference_bps"]["value"] == pytest.approx(earned[1] - earned[0])
    people = hrm("backtest", "--compare", "ppo/v1", "hrm/v1")
    assert people.code == 0
    assert all(reason in people.out for reason in told["reasons"])


def test_a_challenger_that_does_not_load_is_found_before_the_champion_runs(
    hrm: Callable[..., Said], tmp_path: Path
) -> None:
    said = hrm("backtest", "--compare", "ppo/v1", "hrm/none", "--data", tmp_path / "nifty_5.csv", "--json")
    assert said.json["error"]["code"] == "model_not_found"
    assert "begins" not in said.err


def one_session(file: Path) -> Path:
    nifty_bars().iloc[:30].to_csv(file, index=False)
    return file


def of_a_quarter(file: Path) -> Path:
    bars = nifty_bars()
    bars = bars.groupby(bars["timestamp"].dt.date).head(24)
    first = bars.groupby(bars["timestamp"].dt.date)["timestamp"].transform("min")
    bars.assign(timestamp=first + 3 * (bars["timestamp"] - first)).to_csv(file, index=False)
    return file


def empty(file: Path) -> Path:
    pd.DataFrame(columns=["timestamp", "open", "high", "low", "close", "volume"]).to_csv(file, index=False)
    return file


@pytest.mark.parametrize(
    ("arguments", "code", "named"),
    [
        ((), "usage", "--model NAME/VERSION or --compare"),
        (("--model", "ppo/v1", "--compare", "ppo/v1", "hrm/v1"), "usage", "either"),
        (("--compare", "ppo/v1", "ppo/v1", "--data", "FILE"), "usage", "itself"),
        (("--model", "ppo/v1", "--data", "FILE", "--report", "."), "usage", "directory"),  # before it runs
        (("--compare", "ppo/v1"), "model_id_invalid", "--json"),  # which was taken for the challenger
        (("--model", "ppo/none", "--data", "FILE"), "model_not_found", "ppo/none"),
        (("--model", "none", "--data", "FILE"), "model_id_invalid", "none"),
        (("--compare", "ppo/v1", "hrm/none", "--data", "FILE"), "model_not_found", "hrm/none"),
        (("--model", "ppo/v1", "--data", "absent.csv"), "no_such_file", "absent.csv"),
        (("--model", "ppo/v1", "--data", "FILE", "--symbol", "TATA"), "unknown_symbol", "BANKNIFTY"),
        (("--model", "ppo/v1", "--symbol", "NIFTY"), "usage", "--symbol"),
        (("--model", "ppo/v1", "--data", "FILE", "--from", "2031-01-01"), "no_sessions", "2023-01"),
        (("--model", "ppo/v1", "--data", "FILE", "--to", "2023-01-02"), "no_sessions", "2023-01"),
        (("--model", "ppo/v1", "--data", "FILE", "--from", "2023-01-16", "--to", "2023-01-12"), "usage", "after"),
        (("--model", "ppo/v1", "--data", "FILE", "--from", "yesterday"), "usage", "2023-12-31"),
        (("--model", "ppo/v1", "--data", one_session), "too_few_bars", "too few"),
        (("--model", "ppo/v1", "--data", of_a_quarter), "wrong_timeframe", "900 s"),
        (("--model", "ppo/v1", "--data", empty), "bad_file", "NIFTY"),
        (("--model", "ppo/other", "--data", "FILE"), "schema_mismatch", "another observation schema"),
    ],
)
def test_what_does_not_fit_is_named_and_leaves_nothing(
    hrm: Callable[..., Said], settings: Settings, tmp_path: Path, arguments: tuple[object, ...], code: str, named: str
) -> None:
    publish_policy(settings.paths.state_dir / "models", "ppo/other")
    file = tmp_path / "nifty_5.csv"
    given = [each(tmp_path / "NIFTY.csv") if callable(each) else each for each in arguments]
    said = hrm("backtest", *(file if each == "FILE" else each for each in given), "--json")
    assert said.code == 2, said.out + said.err
    assert said.json["error"]["code"] == code
    assert named in said.json["error"]["message"]
    assert "Traceback" not in said.err
    assert pages(settings) == []


def test_a_page_that_cannot_be_written_is_an_error_and_not_a_traceback(
    hrm: Callable[..., Said], tmp_path: Path
) -> None:
    said = hrm(
        "backtest", "--model", "ppo/v1", "--data", tmp_path / "nifty_5.csv", "--report", "/proc/page.html", "--json"
    )
    assert (said.code, said.json["error"]["code"]) == (2, "disk_error")
