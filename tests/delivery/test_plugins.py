"""A desk's own metric: installed as a package is, named by a plan, and an error of measuring when it does not work."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import ValidationError
from test_providers import failure, metric, read

from core.errors import DataError
from delivery.metrics import Provider
from delivery.plugins import installed

DESK = """
import math, threading
released = threading.Event()
def slippage_bps(symbol, of="day"): return {"NIFTY50": 1.5, "NONE": None, "NAN": math.nan}[symbol]
def counted(): return 2, 40
def words(): return "many"
def three(): return 1, 2, 3
def broken(): raise RuntimeError("the desk's\\n file is gone")
def hangs(): released.wait(60)
"""
NAMES = ("slippage_bps", "counted", "words", "three", "broken", "hangs")


@pytest.fixture(autouse=True)
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Two packages beside the service, as pip would leave them; both call something `twice`."""
    (tmp_path / "desk_metrics.py").write_text(DESK)
    for package, names in (("desk", (*NAMES, "twice")), ("other", ("twice",))):
        info = tmp_path / f"{package}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text("[hrm.metrics]\n" + "".join(f"{n} = desk_metrics:{n}\n" for n in names))
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    monkeypatch.undo()
    import sys

    if "desk_metrics" in sys.modules:
        sys.modules.pop("desk_metrics").released.set()


def test_it_says_a_number_or_nothing_or_how_many_are_behind_it() -> None:
    assert read(metric(plugin={"name": "slippage_bps", "symbol": "NIFTY50"})).value == 1.5
    assert read(metric(plugin={"name": "slippage_bps", "symbol": "NONE"})).value is None
    assert read(metric(plugin={"name": "slippage_bps", "symbol": "NAN", "of": "week"})).value is None
    counted = read(metric(plugin={"name": "counted"}))
    assert (counted.value, counted.samples) == (2.0, 40)


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        ({"name": "broken"}, "RuntimeError: the desk's file is gone"),
        ({"name": "words"}, "value is str, not a number"),
        ({"name": "three"}, "one row of value"),
        ({"name": "counted", "symbol": "A"}, "unexpected keyword argument 'symbol'"),
        ({"name": "nobody"}, "not installed where the service runs"),
        ({"name": "twice"}, "the name of 2 plugins"),
    ],
)
def test_what_does_not_work_is_an_error_of_measuring(asked: dict[str, str], why: str) -> None:
    assert why in failure(metric(plugin=asked))


def test_one_that_hangs_is_given_up_and_holds_up_nothing() -> None:
    assert "no answer within 0.2 s" in failure(metric(plugin={"name": "hangs"}), within_s=0.2)
    assert any(thread.name == "aside-plugins of metrics" for thread in threading.enumerate())


def test_a_plan_names_what_is_installed_before_it_starts() -> None:
    with pytest.raises(DataError, match=r"installed under .*: broken, counted"):
        installed("slipage")
    with pytest.raises(ValidationError, match="plugin needs a name"):
        Provider(plugin={"symbol": "A"})
    with pytest.raises(ValidationError, match="one that is not an argument"):
        Provider(plugin={"name": "{{args.anything}}"})
