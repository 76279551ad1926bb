"""What a scheduled drift check leaves behind for whoever watches."""

from pathlib import Path

import pytest

from flows.drift_check import drift_check
from trading.drift_record import newest


def test_a_check_is_on_record_with_what_it_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sessions = {"TRAIN": "60", "VALIDATION": "10", "TEST": "20"}
    for part, count in sessions.items():
        monkeypatch.setenv(f"HRM_SYNTHETIC_MARKET__{part}_SESSIONS", count)
    monkeypatch.setenv("HRM_PATHS__STATE_DIR", str(tmp_path))
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    said = drift_check.fn()
    record = newest(tmp_path)
    assert record is not None
    assert (record.verdict, record.features) == (said["verdict"], len(said["features"]))
    assert record.drifted == tuple(row["feature"] for row in said["features"] if row["verdict"] == "fail")
    assert record.psi == {row["feature"]: row["psi"] for row in said["features"]}
