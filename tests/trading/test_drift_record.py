"""The newest drift check on record: whole, the last one, and never believed when it is damaged."""

import json
import time
from pathlib import Path

import pytest
from pydantic import ValidationError

from core.errors import DataError
from trading.drift_record import FILE, DriftRecord, keep, newest


def test_the_last_check_is_the_one_on_record(tmp_path: Path) -> None:
    assert newest(tmp_path) is None
    keep(tmp_path, "pass", {"adx": 0.01}, ())
    keep(tmp_path, "fail", {"adx": 0.3, "volatility": 0.4, "macd": 0.0}, ("volatility", "adx"))
    record = newest(tmp_path)
    assert record is not None and record.drifted == ("volatility", "adx")
    assert (record.features, record.psi) == (3, {"adx": 0.3, "volatility": 0.4, "macd": 0.0})
    assert abs(record.at_s - time.time()) < 60
    assert [file.name for file in tmp_path.iterdir()] == [FILE]


def test_a_state_directory_that_is_not_there_yet_is_made(tmp_path: Path) -> None:
    keep(tmp_path / "new", "inconclusive", {}, ())
    assert newest(tmp_path / "new") is not None


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"at_s": -1, "verdict": "pass", "features": 1, "drifted": []}', '{"verdict": "fail"}']
)
def test_what_is_no_record_is_refused_with_its_place_and_the_remedy(tmp_path: Path, text: str) -> None:
    (tmp_path / FILE).write_text(text)
    with pytest.raises(DataError, match=f"{FILE}: .*delete it") as error:
        newest(tmp_path)
    assert error.value.code == "drift_unreadable"


def test_a_verdict_that_there_is_not_is_never_written(tmp_path: Path) -> None:
    with pytest.raises(ValidationError):
        keep(tmp_path, "perhaps", {}, ())
    assert not (tmp_path / FILE).exists()


def test_a_record_has_no_other_fields(tmp_path: Path) -> None:
    keep(tmp_path, "pass", {}, ())
    assert set(json.loads((tmp_path / FILE).read_text())) == set(DriftRecord.model_fields)


def test_a_record_of_before_there_were_figures_is_read(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text('{"at_s": 1, "verdict": "fail", "features": 6, "drifted": ["signal"]}')
    record = newest(tmp_path)
    assert record is not None and (record.features, record.drifted, record.psi) == (6, ("signal",), {})


def test_a_figure_that_is_no_number_is_never_written(tmp_path: Path) -> None:
    with pytest.raises(ValidationError):
        keep(tmp_path, "pass", {"signal": float("nan")}, ())
    assert not (tmp_path / FILE).exists()
