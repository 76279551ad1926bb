"""Who watches a terminal sees bars; a log file gets a line when a phase begins and one when it ends."""

import io

from rich.console import Console

from flows import progress
from flows.progress import bars, report


def shown(*, terminal: bool) -> str:
    output = io.StringIO()
    with bars(Console(file=output, force_terminal=terminal, width=100)):
        report("hrm_training", 0.0, "starting")
        report("hrm_training", 0.5, "epoch 1 of 2")
        report("hrm_training", 1.0, "pass")
        report("parallel_validation", 0.0, "starting")
    return output.getvalue()


def test_a_log_file_gets_a_line_when_a_phase_begins_and_one_when_it_ends():
    lines = shown(terminal=False).splitlines()
    assert lines == ["hrm_training: begins", "hrm_training: pass (0 s)", "parallel_validation: begins"]


def test_a_log_file_hears_of_a_long_phase_now_and_then(monkeypatch):
    monkeypatch.setattr(progress, "LINE_EVERY_S", 0.0)
    assert "hrm_training: 50%, epoch 1 of 2" in shown(terminal=False).splitlines()


def test_a_terminal_gets_bars():
    assert "━" in shown(terminal=True)
