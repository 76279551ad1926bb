"""What could be earned at best, by the oracle and by one that remembers a window only; and how files are walked."""

from __future__ import annotations

import numpy as np
import pytest

from core.settings import Settings, load_settings
from trading.dataset import build_dataset, random_walk, window_values
from trading.evaluation import best_targets, evaluate_targets


@pytest.fixture(scope="module")
def law_settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    sizes = {"BARS_PER_SESSION": "20", "TRAIN_SESSIONS": "40", "VALIDATION_SESSIONS": "10", "TEST_SESSIONS": "60"}
    environ = {f"HRM_SYNTHETIC_MARKET__{name}": value for name, value in sizes.items()}
    state_dir = str(tmp_path_factory.mktemp("ceilings"))
    return load_settings(preset="compact", environ=environ | {"HRM_PATHS__STATE_DIR": state_dir})


def _score(values: np.ndarray, chosen: Settings) -> float:
    data = build_dataset(chosen, None, 0)
    targets = best_targets(values, data.cost_bps)
    played = evaluate_targets(targets, data.test, data.schema, data.cost_bps)
    assert played.score is not None
    return played.score


def test_who_plays_the_exact_values_loses_nothing(law_settings: Settings) -> None:
    values = build_dataset(law_settings, None, 0).test.values
    assert values is not None
    assert _score(values, law_settings) == pytest.approx(1.0, abs=1e-12)


def test_a_window_knows_less_than_the_oracle_and_a_longer_one_more(law_settings: Settings) -> None:
    short = law_settings.model_copy(
        update={"observation": law_settings.observation.model_copy(update={"window": 4, "patch": 2})}
    )
    assert _score(window_values(short, 0), law_settings) < _score(window_values(law_settings, 0), law_settings) < 1.0


def test_a_window_as_long_as_the_past_knows_what_the_oracle_knows(law_settings: Settings) -> None:
    whole = law_settings.model_copy(
        update={"observation": law_settings.observation.model_copy(update={"window": 4000})}
    )
    test = build_dataset(law_settings, None, 0).test
    np.testing.assert_allclose(window_values(whole, 0), test.values, atol=1e-9)


def test_nothing_predicts_a_random_walk_and_its_labels_do_not_say_so(law_settings: Settings) -> None:
    data = random_walk(law_settings, 0)
    assert not data.optimum_known
    assert data.test.values is None
    assert data.train.values is not None
    counts = [len(part.sessions) for part in (data.train, data.validation, data.test)]
    assert counts[1:] == [10, 60]
    assert 30 < counts[0] <= 40  # of so short sessions the first are still warm-up
    labels = data.train.values[data.train.decision_bars] + data.label_cost_bps * np.array([1, 0, 1])
    earned, error = labels[:, 2].mean(), labels[:, 2].std() / np.sqrt(len(labels) / 24)  # plans overlap for 24 bars
    assert abs(earned) < 3 * error
