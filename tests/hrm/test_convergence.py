"""The convergence monitor (seed 9.1.1) by itself; what a trainer does with it: test_trainer.py."""

from __future__ import annotations

from collections.abc import Iterable

from structlog.testing import capture_logs

from hrm.convergence import PATIENCE, ConvergenceMonitor


def said(losses: Iterable[float], monitor: ConvergenceMonitor | None = None) -> list[int]:
    """The steps at which the monitor says that a training converges slowly."""
    monitor = monitor or ConvergenceMonitor(1000, {})
    with capture_logs() as logs:
        for step, loss in enumerate(losses, 1):
            monitor.observe(loss, step, dict)
    assert {(line["event"], line["log_level"]) for line in logs} <= {("training_converges_slowly", "info")}
    assert all("learning_rate" in line["remedy"] for line in logs)
    return [line["step"] for line in logs]


def test_a_loss_that_stands_still_is_said_once() -> None:
    assert said([1.0] * 1000) == [1 + PATIENCE]


def test_a_loss_that_falls_a_percent_in_time_is_not_slow() -> None:
    assert said(0.9995**step for step in range(3000)) == []  # 5 % in every 100 steps


def test_a_loss_that_falls_less_is() -> None:
    assert said(0.99995**step for step in range(300)) != []  # 0.5 %


def test_each_plateau_is_said_and_a_rising_loss_is_one() -> None:
    assert len(said([1.0] * 300 + [0.5] * 600)) == 2
    assert len(said([0.5] * 10 + [0.5 + 0.001 * step for step in range(500)])) == 1


def test_noise_around_one_level_is_no_progress() -> None:
    assert len(said(1.0 + 0.01 * (-1) ** step for step in range(2000))) <= 2


def test_slowness_changes_no_rate() -> None:
    monitor = ConvergenceMonitor(1000, {})
    assert said([1.0] * 500, monitor)
    assert monitor.learning_rate_factor == 1.0
