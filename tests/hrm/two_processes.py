"""What each of two processes does that torchrun starts: `torchrun ... two_processes.py FOLDER`.

Trains on its share of the global batches, saves, goes on, and repeats the last steps from the checkpoint.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from hrm_planted import HRM, SMALL, model, objective, planted_batch, settings

from hrm.checkpoint import Extra, load_checkpoint, save_checkpoint
from hrm.distributed import World, joined, training_device
from hrm.trainer import DeepSupervisionTrainer
from hrm.training_state import Trainer

ROWS = 32  # of the global batch
BEFORE, AFTER = 8, 6  # steps before and after the checkpoint
ENVIRON = SMALL | {
    f"{HRM}ACT__HALTING": "q_learning",
    f"{HRM}ACT__EXPLORATION": "0.5",
    "HRM_DEEP_SUPERVISION__MAX_SUPERVISION_SEGMENTS": "4",
}


def trainer(seed: int = 0) -> Trainer:
    """Rows halt in it at once, unless the random minimum says otherwise."""
    made = DeepSupervisionTrainer(
        model(ENVIRON), settings(ENVIRON), objective(), total_steps=50, seed=seed, device=training_device()
    )
    torch.nn.init.constant_(made.model.q_head.bias[0], 0.5)
    return made


def losses(run: Trainer, steps: range) -> list[float]:
    return [
        run.train_step({name: run.world.share(rows) for name, rows in planted_batch(ROWS, step).items()})
        for step in steps
    ]


def together(folder: Path, world: World) -> dict[str, object]:
    run = trainer()
    first = losses(run, range(BEFORE))
    save_checkpoint(folder, run, Extra({"from": world.rank}))
    first += losses(run, range(BEFORE, BEFORE + AFTER))
    other = trainer(seed=7)
    extra = load_checkpoint(folder, other)
    assert run.rows is not None
    return {
        "losses": first,
        "resumed": losses(other, range(BEFORE, BEFORE + AFTER)),
        "notes": extra.notes,
        "ages": run.rows.steps.tolist(),
        "told": world.tell(f"rank {world.rank} speaks"),
        "gathered": [data.hex() for data in world.gather(bytes([world.rank, 255]))],
    }


def main() -> None:
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    with joined() as world:
        found = together(folder / "checkpoint", world)
        (folder / f"rank-{world.rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
