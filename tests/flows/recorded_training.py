"""The real training loop on a small market, for a process that will be killed: it writes down every loss."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from core.files import sha256_hex
from core.settings import Settings, load_settings
from flows import fit as loop
from flows.phases import dataset_of
from flows.run_state import Run, load_run
from flows.tracking import Description, Record
from hrm.agent import HRMAgent
from hrm.distributed import training_device

SMALL = {
    "HRM_PRESET": "compact",
    "HRM_SYNTHETIC_MARKET__BARS_PER_SESSION": "16",
    "HRM_SYNTHETIC_MARKET__TRAIN_SESSIONS": "60",
    "HRM_SYNTHETIC_MARKET__VALIDATION_SESSIONS": "10",
    "HRM_SYNTHETIC_MARKET__TEST_SESSIONS": "10",
    "HRM_OBSERVATION__WINDOW": "20",
    "HRM_PERFORMANCE__BATCH_SIZE": "16",
    "HRM_TRAINING_PARAMS__HRM__ROWS_PER_EPOCH": "320",
    "HRM_TRAINING_PARAMS__HRM__MAX_EPOCHS": "6",
    "HRM_TRAINING_PARAMS__HRM__VALIDATION_FREQUENCY": "2",
    "HRM_MODEL_MANAGEMENT__CHECKPOINT_FREQUENCY": "3",
    **{
        f"HRM_HIERARCHICAL_REASONING_MODEL__ARCHITECTURE__{name}": "16"
        for name in ("HIDDEN_DIM", "H_MODULE_DIM", "L_MODULE_DIM", "EMBEDDING_DIM")
    },
    "HRM_HIERARCHICAL_REASONING_MODEL__ACT__EXPLORATION": "0.5",
    "HRM_DEEP_SUPERVISION__MAX_SUPERVISION_SEGMENTS": "3",
}
CALLS = 6 * 320 // 16


def small_settings(state_dir: Path, **changes: str) -> Settings:
    return load_settings(environ=SMALL | {"HRM_PATHS__STATE_DIR": str(state_dir)} | changes)


def train(run_dir: str, losses: Path) -> None:
    """Train the run; a line `call loss` for each step in `losses`, and the result beside it when done."""
    torch.set_num_threads(1)
    loop.CHECKPOINT_RATIO = 0.5  # so often that a kill often meets one half-written
    loop.tracked = _untracked  # the store has tests of its own
    _record_losses(losses)
    run = load_run(Path(run_dir))
    agent = agent_of(run)
    curve = loop.fit(agent, dataset_of(run), run)
    weights = b"".join(tensor.numpy().tobytes() for tensor in agent.model.state_dict().values())
    losses.with_suffix(".json").write_text(json.dumps({"curve": curve, "weights": sha256_hex(weights)}))


def agent_of(run: Run) -> HRMAgent:
    data = dataset_of(run)
    return HRMAgent(data.schema, run.settings, data.label_cost_bps, device=training_device(), seed=run.inputs.seed)


def _record_losses(file: Path) -> None:
    add = loop.Position.add

    def add_and_write(self: loop.Position, loss: float) -> None:
        add(self, loss)
        with file.open("a") as lines:
            lines.write(f"{self.calls} {loss.hex()}\n")

    loop.Position.add = add_and_write


@contextmanager
def _untracked(state_dir: Path, run: Description) -> Iterator[Record]:
    yield lambda step, metrics: None
