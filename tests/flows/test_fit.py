"""kill -9 of a training at any moment, then the same again: the losses are those of a training nobody killed."""

from __future__ import annotations

import json
import math
import multiprocessing
import random
import re
import shutil
import signal
import time
from pathlib import Path

import pytest
import recorded_training
from recorded_training import CALLS, small_settings

from core.errors import ModelError
from flows.fit import REPORT_EVERY, Position, Training, fit
from flows.pace import Spacing, clock
from flows.phases import dataset_of
from flows.progress import watched_by
from flows.run_state import Run, inputs_of, load_run, open_run
from hrm.checkpoint import INDEX, NEXT, read_checkpoint

SERVER = multiprocessing.get_context("forkserver")  # fresh processes that need not import everything again
SERVER.set_forkserver_preload(["flows.fit", "hrm.agent", "hrm.checkpoint"])
DEADLINE_S = 120
KILLS = 4


def new_run(state_dir: Path) -> Run:
    return open_run(inputs_of(small_settings(state_dir), None, 0))


def start(run: Run, losses: Path) -> multiprocessing.process.BaseProcess:
    process = SERVER.Process(target=recorded_training.train, args=(str(run.folder), losses))
    process.start()
    return process


def finish(run: Run, losses: Path) -> dict[str, object]:
    process = start(run, losses)
    process.join(DEADLINE_S)
    assert process.exitcode == 0
    return json.loads(losses.with_suffix(".json").read_text())


def recorded(losses: Path) -> list[tuple[int, str]]:
    """(call, loss) of every whole line."""
    lines = losses.read_text().splitlines(keepends=True) if losses.exists() else []
    return [(int(line.split()[0]), line.split()[1]) for line in lines if line.endswith("\n")]


def kill_after(steps: int, delay_s: float, run: Run, losses: Path) -> list[tuple[int, str]]:
    """Train until so many steps are done, and a little longer; kill -9; the losses until then."""
    process = start(run, losses)
    deadline = time.monotonic() + DEADLINE_S
    while len(recorded(losses)) < steps and process.is_alive():
        assert time.monotonic() < deadline
        time.sleep(0.001)
    time.sleep(delay_s)  # into the step, or into the writing of a checkpoint
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL, "the training ended before it was killed"
    return recorded(losses)


def damage_newest(run: Run) -> None:
    folder = run.folder / "checkpoint"
    index = NEXT if (folder / NEXT).exists() else INDEX
    file = folder / read_checkpoint(folder, index).training.name
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(bytes(data))


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A training that nobody killed; its losses and its result lie beside the run."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    run = new_run(folder)
    finish(run, folder / "losses")
    return run


def losses_of(run: Run) -> Path:
    return run.settings.paths.state_dir / "losses"


def test_a_training_killed_at_any_moment_continues_with_the_identical_losses(tmp_path, uninterrupted):
    expected = recorded(losses_of(uninterrupted))
    assert [call for call, _ in expected] == list(range(1, CALLS + 1))
    run, chance = new_run(tmp_path), random.Random(0)
    attempts = []
    for kill in range(KILLS):
        losses = tmp_path / f"losses-{kill}"
        attempts.append(kill_after(chance.randint(1, CALLS // KILLS), chance.uniform(0, 0.03), run, losses))
        if kill == KILLS - 2:
            damage_newest(run)
    result = finish(run, tmp_path / "losses-last")
    attempts.append(recorded(tmp_path / "losses-last"))
    assert result == json.loads(losses_of(uninterrupted).with_suffix(".json").read_text())
    assert sum(attempt[0][0] > 1 for attempt in attempts) >= KILLS - 1, "it began anew instead of continuing"
    for attempt in attempts:
        first = attempt[0][0]
        assert attempt == expected[first - 1 : first - 1 + len(attempt)]
    assert attempts[-1][-1][0] == CALLS


def test_a_finished_training_is_not_repeated(tmp_path, uninterrupted):
    result = finish(uninterrupted, tmp_path / "losses")
    assert result == json.loads(losses_of(uninterrupted).with_suffix(".json").read_text())
    assert recorded(tmp_path / "losses") == []


def test_a_training_without_a_whole_checkpoint_says_what_to_do(tmp_path, uninterrupted):
    shutil.copytree(uninterrupted.folder, tmp_path / "run")
    run = load_run(tmp_path / "run")
    for file in (run.folder / "checkpoint").glob("training-*"):
        file.write_bytes(b"")
    with pytest.raises(ModelError, match=r"the one before it neither.*delete the folder to train anew"):
        fit(recorded_training.agent_of(run), dataset_of(run), run)


def test_the_mean_loss_of_an_epoch_leaves_out_steps_that_diverged():
    position = Position()
    for loss in (1.0, math.nan, 2.0, math.inf):
        position.add(loss)
    assert position.calls == 4
    assert position.end_epoch() == 1.5
    assert (position.loss_sum, position.losses) == (0.0, 0)


def test_a_checkpoint_is_due_at_multiples_and_the_dearer_the_rarer():
    spacing = Spacing(every=10, ratio=0.5, step=23)
    assert [step for step in range(24, 35) if spacing.due(step)] == [30]
    assert spacing.carry_out(30, lambda: None) == 40
    spacing.last, spacing.last_ended = 30, time.monotonic() - 1.0  # ten steps took a second
    assert spacing.carry_out(40, lambda: time.sleep(0.6)) >= 60  # 1.2 s of training must pay for it


def test_the_clock_reads_as_people_write_time():
    assert [clock(seconds) for seconds in (0, 59.6, 3599, 3723)] == ["0:00", "1:00", "59:59", "1:02:03"]


def test_whoever_watches_hears_of_speed_loss_halting_and_time_left(tmp_path, uninterrupted):
    shutil.copytree(uninterrupted.folder, tmp_path / "run", ignore=shutil.ignore_patterns("checkpoint"))
    run, heard, recorded_steps = load_run(tmp_path / "run"), [], []
    training = Training(recorded_training.agent_of(run), dataset_of(run), run)
    training.record = lambda step, metrics: recorded_steps.append((step, set(metrics)))
    with watched_by(lambda phase, ratio, note: heard.append((phase, ratio, note))):
        for _ in range(REPORT_EVERY):
            training.advance()
    [(phase, ratio, note)] = heard
    assert (phase, ratio) == ("hrm_training", pytest.approx(0.9 * REPORT_EVERY / CALLS))
    assert re.fullmatch(
        r"\d+:\d\d left · [\d,]+ rows/s · loss [-.\de+]+ · \d\.\d segments, \d+% halted · epoch 2/6", note
    )
    [(step, names)] = recorded_steps
    assert step == REPORT_EVERY
    assert {"rows_s", "train/total", "train/halted_ratio", "train/recoveries"} <= names
