"""The report renders whatever the verdict, labels its market, and needs nothing from outside."""

import re
from pathlib import Path

import pytest
from made_up_runs import finished_run, new_run, phase_results, record, rollout_log

from core.gates import Verdict
from flows.migration import PHASES, ExitCode
from flows.report import write_report
from flows.run_state import Outcome


def html_of(run) -> str:
    return write_report(run, run.outcome).read_text(encoding="utf-8")


def bars(tmp_path: Path) -> Path:
    file = tmp_path / "nifty.parquet"
    file.write_bytes(b"bars")
    return file


def test_a_migration_that_passed_shows_every_figure(tmp_path):
    html = html_of(finished_run(new_run(tmp_path)))
    assert "HRM took over" in html
    assert "Synthetic market: simulated, not traded" in html
    for title in ("Equity and drawdown", "Regret per session", "Training", "Agreement in shadow", "Latency", "Rollout"):
        assert f"<h3>{title}</h3>" in html
    assert html.count("<svg") == 6


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("verdict", [Verdict.FAIL, Verdict.INCONCLUSIVE])
def test_a_stop_names_its_phase_and_reason_in_words(tmp_path, phase, verdict):
    run = finished_run(new_run(tmp_path), stopped_at=phase, verdict=verdict)
    html = html_of(run)
    assert ("Stopped: PPO stays" if verdict is Verdict.FAIL else "Inconclusive: PPO stays") in html
    assert f"<b>{phase}</b>: " in html
    assert html.count(">not run<") == len(PHASES) - 1 - list(PHASES).index(phase)


def test_a_rollback_by_the_guard_is_shown_with_its_trigger(tmp_path):
    run = new_run(tmp_path)
    for phase in ("ppo_baseline_capture", "hrm_training", "parallel_validation"):
        record(run, phase, phase_results()[phase])
    result = phase_results()["gradual_migration"] | {
        "events": rollout_log(rolled_back=True),
        "rolled_back_by": "latency_violation",
    }
    record(run, "gradual_migration", result)
    run.finish(
        Outcome(
            outcome="rolled_back",
            exit_code=ExitCode.ROLLED_BACK,
            stopped_at="gradual_migration",
            reason="rolled back by the service: latency_violation",
        )
    )
    html = html_of(run)
    assert "Rolled back: PPO decides" in html
    assert "latency_violation" in html
    assert ">rolled back<" in html  # in the timeline


def test_a_file_is_named_and_shows_daily_results_instead_of_regret(tmp_path):
    html = html_of(finished_run(new_run(tmp_path, bars(tmp_path))))
    assert '<span class="badge">nifty.parquet</span>' in html
    assert "Daily profit and loss" in html
    assert "Regret per session" not in html
    assert "ynthetic market" not in html


def test_the_page_loads_nothing_from_outside(tmp_path):
    html = html_of(finished_run(new_run(tmp_path)))
    assert not re.findall(r'(?:src|href|url)\s*[=(]\s*["\']?(?!#)(?:https?:|//|data:text)', html)
    assert not re.findall(r"<(?:script|link|iframe|img)\b", html)
    outside = set(re.findall(r"https?://[^\s\"'<>]+", html))
    assert outside <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}


def test_names_from_outside_are_escaped(tmp_path):
    file = tmp_path / "<script>alert(1)<!--.csv"
    file.write_bytes(b"bars")
    assert "<script>" not in html_of(finished_run(new_run(tmp_path, file)))
