"""Nothing of a test session is known to whoever was trained or chosen for it: by poison and by spans of bars."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from core.errors import DataError
from core.settings import Settings, load_settings
from trading.dataset import LABEL_HORIZON, Dataset, horizon_values, training_table, walk_forward
from trading.features import WARM_UP_BARS
from trading.files import to_frame, write_bars
from trading.market import Bars
from trading.synthetic import simulate

FOLDS = 3
SESSIONS = 120
BARS = 75


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    state_dir = str(tmp_path_factory.mktemp("walked"))
    return load_settings(preset="compact", environ={"HRM_PATHS__STATE_DIR": state_dir})


@pytest.fixture(scope="module")
def bars(settings: Settings) -> Bars:
    return simulate(settings.synthetic_market, sessions=SESSIONS, seed=1).bars


def walked(settings: Settings, bars: Bars, folds: int = FOLDS) -> list[Dataset]:
    file = settings.paths.state_dir / "bars.parquet"
    write_bars(to_frame(bars), file)
    return walk_forward(settings, file, folds)


@pytest.fixture(scope="module")
def datasets(settings: Settings, bars: Bars) -> list[Dataset]:
    return walked(settings, bars)


def test_tests_follow_each_other_and_are_the_second_half(datasets: list[Dataset]) -> None:
    tested = np.concatenate([data.test.sessions for data in datasets])
    assert (np.diff(tested) == 1).all()
    last = int(datasets[0].test.bars.session[-1])
    assert tested[-1] == last
    assert len(tested) == pytest.approx((last - 3) / 2, abs=FOLDS)
    assert [len(data.train.sessions) for data in datasets] == sorted(len(data.train.sessions) for data in datasets)
    for data in datasets:
        assert data.train.sessions[-1] + 5 < data.validation.sessions[0]
        assert data.validation.sessions[-1] + 5 < data.test.sessions[0]


def test_no_training_label_reaches_a_validation_or_test_session(datasets: list[Dataset]) -> None:
    for data in datasets:
        decided = data.train.decision_bars
        last_bar_of_session = (decided // BARS + 1) * BARS - 1
        label_ends = np.minimum(decided + LABEL_HORIZON, last_bar_of_session)
        for later in (data.validation, data.test):
            assert label_ends.max() < later.decision_bars.min()


def test_no_validation_or_test_observation_remembers_a_bar_that_was_trained_on(settings, datasets) -> None:
    """The window, and behind its oldest bar the features' warm-up."""
    memory = settings.observation.window + WARM_UP_BARS
    for data in datasets:
        assert data.validation.decision_bars.min() - memory > data.train.decision_bars.max() + 1
        assert data.test.decision_bars.min() - memory > data.validation.decision_bars.max() + 1


def test_what_is_trained_on_stays_the_same_whatever_becomes_of_the_later_sessions(settings, bars, datasets) -> None:
    data = datasets[0]
    first_validated = np.searchsorted(data.validation.bars.session, data.validation.sessions[0])
    later = bars.timestamps >= data.validation.bars.timestamps[first_validated]
    drift = np.where(later, 1.0 + 0.05 * np.sin(np.arange(len(bars))), 1.0)
    poisoned = replace(bars, **{name: drift * getattr(bars, name) for name in ("open", "high", "low", "close")})
    other = walked(settings, poisoned)[0]
    ours, theirs = training_table(data, settings), training_table(other, settings)
    at = data.train.decision_bars
    np.testing.assert_array_equal(at, theirs["decision_bars"])
    for name in ("bar_features", "account", "complexity", "log_quantity"):
        np.testing.assert_array_equal(ours[name][at], theirs[name][at])
    # Labels charge a cost that follows the file's last price: compared at the same cost.
    first, second = horizon_values(data.train.bars, 1.0), horizon_values(other.train.bars, 1.0)
    np.testing.assert_array_equal(first[at], second[at])
    assert (first != second)[data.test.decision_bars, 0].mean() > 0.9


def test_where_a_session_has_few_bars_the_embargo_covers_more_of_them(settings: Settings) -> None:
    law = settings.synthetic_market.model_copy(update={"bars_per_session": 25})
    short = settings.model_copy(update={"synthetic_market": law})
    data = walked(short, simulate(law, sessions=SESSIONS, seed=2).bars)[-1]
    needed = -(-(settings.observation.window + WARM_UP_BARS) // 25)
    assert needed > settings.evaluation.embargo_sessions
    assert data.validation.sessions[0] - data.train.sessions[-1] > needed - 1


@pytest.mark.parametrize("folds", [0, -1, 100])
def test_more_folds_than_sessions_are_refused(settings: Settings, bars: Bars, folds: int) -> None:
    with pytest.raises(DataError, match="ask for fewer folds") as refused:
        walked(settings, bars, folds)
    assert refused.value.code == "empty_split"
