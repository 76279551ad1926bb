"""The schema of several timeframes and symbols: blocks of whole patches, the coarsest first."""

import pytest
from pydantic import ValidationError

from core.errors import ConfigError, ModelError
from core.observation import ObservationSchema, Timeframe, coarsest_first
from core.settings import load_settings

DAY, QUARTER = Timeframe(name="day", bars=4), Timeframe(name="15min", bars=8)


def schema(**changes: object) -> ObservationSchema:
    fields = {
        "window": 24,
        "patch": 4,
        "bar_features": ("x",),
        "account_features": ("y",),
        "timeframes": (DAY, QUARTER),
    }
    return ObservationSchema.model_validate(fields | changes)


def test_the_window_is_all_blocks_and_the_base_bars_are_what_is_left() -> None:
    assert schema().base_window == 12
    assert schema(timeframes=()).base_window == 24


def test_any_order_of_timeframes_is_sorted_the_coarsest_first() -> None:
    assert coarsest_first([QUARTER, DAY]) == (DAY, QUARTER)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"timeframes": (QUARTER, DAY)}, "the coarsest first"),
        ({"timeframes": (DAY, DAY)}, "must differ"),
        ({"timeframes": (Timeframe(name="day", bars=6),)}, "does not divide the 6 bars"),
        ({"timeframes": (Timeframe(name="day", bars=24),)}, "does not divide the 0 bars"),
        ({"interval_s": 420}, "15min is not made of whole bars of 420 s"),
        ({"interval_s": 900}, "15min is not made of whole bars of 900 s"),
        ({"symbols": ("NIFTY",)}, "two or more"),
        ({"symbols": ("NIFTY", "NIFTY")}, "two or more"),
        ({"timeframes": ({"name": "0min", "bars": 4},)}, "pattern"),
        ({"timeframes": ({"name": "week", "bars": 4},)}, "pattern"),
    ],
)
def test_a_schema_that_contradicts_itself_is_refused(changes: dict[str, object], complaint: str) -> None:
    with pytest.raises(ValidationError, match=complaint):
        schema(**changes)


def test_schemas_differ_by_timeframes_interval_and_symbols() -> None:
    others = [schema(timeframes=()), schema(interval_s=60), schema(symbols=("A", "B"))]
    assert len({other.digest for other in (schema(), *others)}) == 4
    for other in others:
        with pytest.raises(ModelError, match="another observation schema"):
            schema().require(other, "the model")


def test_a_schema_written_before_there_were_timeframes_still_reads() -> None:
    old = '{"window": 60, "patch": 20, "bar_features": ["x"], "account_features": ["y"]}'
    assert ObservationSchema.model_validate_json(old).base_window == 60


def test_timeframes_are_a_setting_and_must_fill_patches() -> None:
    text = "[{name: 15min, bars: 20}, {name: day, bars: 40}]"
    settings = load_settings(preset="compact", environ={"HRM_OBSERVATION__TIMEFRAMES": text})
    assert [timeframe.bars for timeframe in settings.observation.timeframes] == [20, 40]
    for wrong in (
        "[{name: day, bars: 7}]",
        "[{name: day, bars: 20}, {name: day, bars: 40}]",
        "[{name: week, bars: 20}]",
    ):
        with pytest.raises(ConfigError, match="observation"):
            load_settings(preset="compact", environ={"HRM_OBSERVATION__TIMEFRAMES": wrong})
