"""A small market and a small model: a benchmark of seconds."""

from __future__ import annotations

import pytest

from core.settings import Settings, load_settings
from trading.dataset import Dataset, build_dataset

HRM = "HRM_HIERARCHICAL_REASONING_MODEL__"
MARKET = "HRM_SYNTHETIC_MARKET__"
SMALL = {
    **{f"{HRM}ARCHITECTURE__{name}": "16" for name in ("HIDDEN_DIM", "H_MODULE_DIM", "L_MODULE_DIM", "EMBEDDING_DIM")},
    "HRM_PERFORMANCE__BATCH_SIZE": "64",
    "HRM_TRAINING_PARAMS__PPO__N_ENVS": "16",
    f"{MARKET}BARS_PER_SESSION": "20",
    f"{MARKET}TRAIN_SESSIONS": "60",
    f"{MARKET}VALIDATION_SESSIONS": "12",
    f"{MARKET}TEST_SESSIONS": "25",
}


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    state_dir = str(tmp_path_factory.mktemp("benchmarks"))
    return load_settings(preset="compact", environ=SMALL | {"HRM_PATHS__STATE_DIR": state_dir})


@pytest.fixture(scope="session")
def small_data(small: Settings) -> Dataset:
    return build_dataset(small, None, 0)
