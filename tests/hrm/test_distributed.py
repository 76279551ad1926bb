"""Two gloo processes on the CPU are one process with the same global batch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from two_processes import AFTER, BEFORE, losses, trainer

from core.errors import ConfigError
from hrm.checkpoint import load_checkpoint
from hrm.distributed import World, joined

HERE = Path(__file__).parent
STEPS = range(BEFORE + AFTER)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("two")


@pytest.fixture(scope="module")
def both(folder: Path) -> list[dict[str, Any]]:
    """What each of the two processes found."""
    path = os.pathsep.join((str(HERE), str(HERE.parent.parent)))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*command, str(HERE / "two_processes.py"), str(folder)],
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in (0, 1)]


def test_they_have_the_losses_of_one_process(both: list[dict[str, Any]]) -> None:
    assert both[0]["losses"] == both[1]["losses"]
    alone = trainer()
    assert both[0]["losses"] == pytest.approx(losses(alone, STEPS), rel=1e-5)
    assert alone.rows is not None
    assert both[0]["ages"] + both[1]["ages"] == alone.rows.steps.tolist()
    assert len(set(alone.rows.steps.tolist())) > 1  # rows were replaced, each in its own time


def test_they_resume_with_the_identical_losses_each_with_its_rows(both: list[dict[str, Any]]) -> None:
    for process in both:
        assert process["resumed"] == process["losses"][BEFORE:]
        assert process["notes"] == {"from": 0}  # written by the first alone


def test_one_process_continues_what_two_began(both: list[dict[str, Any]], folder: Path) -> None:
    alone = trainer(seed=9)
    load_checkpoint(folder / "checkpoint", alone)
    assert losses(alone, STEPS[BEFORE:]) == pytest.approx(both[0]["losses"][BEFORE:], rel=1e-5)


def test_the_first_is_heard_by_all_and_all_are_gathered_in_order(both: list[dict[str, Any]]) -> None:
    for process in both:
        assert process["told"] == "rank 0 speaks"
        assert process["gathered"] == ["00ff", "01ff"]


def test_alone_everything_is_ones_own() -> None:
    with joined() as world:
        assert world == World(rank=0, size=1) == World.current()
        assert world.leads
        assert world.tell("text") == "text"
        assert world.gather(b"data") == [b"data"]
        rows = torch.arange(5)
        assert torch.equal(world.share(rows), rows)
        world.wait()


def test_rows_that_cannot_be_shared_equally_are_refused_with_a_remedy() -> None:
    with pytest.raises(ConfigError, match=r"5 rows cannot be shared equally by 2 .*multiple of 2"):
        World(0, 2).share(torch.arange(5))
